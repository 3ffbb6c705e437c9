"""Kills an agent with SIGKILL at every step of a turn, in forked children; run by test_crash.py.

Each child opens the agent on a folder of its own, answers one whole turn, and dies inside the next
one at the given step. A second child opens the folder again and says what it finds.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import chromadb  # noqa: F401  (imported once here, not in every child)
from palimpsest import Agent, ScriptedLLM
from palimpsest.agent.loop import Loop
from palimpsest.memory.base import Memory
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.ledger import Ledger
from palimpsest.memory.projection import check
from palimpsest.memory.search.index import HybridIndex
from palimpsest.memory.traces import Traces

FIRST, SECOND = "The heron nests in March.", "The pelican nests in June."


def open_agent(home: Path) -> Agent:
    return Agent.open(
        ScriptedLLM(lambda _: "Understood, noted."),
        home=home,
        memories=["scm:gate=always"],
        embedder=HashingEmbedder(),
    )


def kill(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def around(owner: type, name: str, *, before: bool) -> Callable[[Any], None]:
    """Makes `owner.name` deadly, just before or just after it has done its work."""

    def arm(_: Any) -> None:
        real = getattr(owner, name)

        def deadly(*args: Any, **options: Any) -> Any:
            if before:
                kill()
            result = real(*args, **options)
            kill()
            return result

        setattr(owner, name, deadly)

    return arm


def steps(agent: Agent) -> dict[str, Callable[[Any], None]]:
    store = type(agent.memories[0])
    places: list[tuple[type, str]] = [
        (Loop, "hear"),
        (Loop, "cue"),
        (Loop, "recall"),
        (Loop, "remember"),
        (store, "write"),
        (HybridIndex, "replace"),
        (HybridIndex, "settle"),
        (Ledger, "advance"),
        (Loop, "follow"),
        (Traces, "put"),
    ]
    return {
        f"{'before' if before else 'after'} {owner.__name__}.{name}": around(
            owner, name, before=before
        )
        for owner, name in places
        for before in (True, False)
    } | {"in the middle of the reply": lambda _: None}


def die(home: Path, step: str) -> None:
    agent = open_agent(home)
    agent.ask(FIRST, session="a")
    steps(agent)[step](None)
    pieces = agent.stream(SECOND, session="a")
    for _ in pieces:
        os.write(1, b"heard\n")  # a token came, so the message has been acknowledged
        if step == "in the middle of the reply":
            kill()
    kill()


def tell(home: Path) -> None:
    with open_agent(home) as agent:
        turns = agent.turns(session="a")
        memory: Memory = agent.memories[0]
        fresh = memory.digest()
        report = check(agent.ledger, memory)
        memory.rebuild(agent.ledger.records(agent.scope))
        found = {
            "turns": [[t.user.text, t.reply.text if t.reply else None] for t in turns],
            "agrees": report.agrees,
            "as rebuilt": memory.digest() == fresh,
            "recalled": [note.text for note in agent.recall("When does the pelican nest?").notes],
        }
        agent.ledger.verify_chain()
        os.write(1, json.dumps(found).encode() + b"\n")


def forked(act: Callable[[], object]) -> tuple[int, str]:
    """Run `act` in a child; its exit status and what it wrote."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(into, 1)
        try:
            act()
        except BaseException as error:
            os.write(2, repr(error).encode() + b"\n")
            os._exit(1)
        os._exit(0)
    os.close(into)
    _, status = os.waitpid(child, 0)
    with os.fdopen(out) as pipe:
        return status, pipe.read()


def main(root: Path) -> None:
    names = json.loads(forked(lambda: os.write(1, _names(root).encode()))[1])
    results = {}
    for number, step in enumerate(names):
        home = root / str(number)
        status, said = forked(partial(die, home, step))
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        told_status, told = forked(partial(tell, home))
        results[step] = {"killed": killed, "heard": "heard" in said, "opens": told_status == 0}
        results[step] |= json.loads(told) if told else {}
    print(json.dumps(results))


def _names(root: Path) -> str:
    with open_agent(root / "names") as agent:
        return json.dumps(list(steps(agent)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
