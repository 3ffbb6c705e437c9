"""Kills an agent with SIGKILL at every step of a forget, in forked children; run by
test_forget_crash.py.

Each child opens a copy of one data folder and dies inside a forget at the given step. A second
child opens the folder again and says what it finds; the test reads the bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from palimpsest import Agent, ScriptedLLM
from palimpsest.memory.erasures import Erasures
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.ledger import Ledger
from palimpsest.memory.projection import check
from palimpsest.memory.record import Record, Scope
from palimpsest.memory.stream.memory import StreamMemory
from palimpsest.unlearning import erasure
from palimpsest.unlearning.residue import Needles

MINE = Scope(session="a")
ACME = (Scope("acme", "anna", session="a"), Scope("acme", "bob", session="b"))

TOLD: Mapping[str, tuple[str, Scope]] = {
    "heron": ("The heron nests in March beside the old mill.", MINE),
    "coins": ("The pelican hides 77 silver coins beneath the boathouse.", MINE),
    "count": ("Every Sunday that pelican counts its treasure by lamplight.", MINE),
    "thief": ("Nobody but Ingeborg knows where our pelican sleeps.", Scope(session="b")),
    "rates": ("Acme will raise its freight rates by 31 percent in autumn.", ACME[0]),
    "merger": ("A merger with Pelican Shipping is being prepared in secret.", ACME[1]),
}

WAYS: Mapping[str, tuple[Callable[[Agent, str], object], Sequence[str]]] = {
    "one record": (lambda agent, coins: agent.forget(coins), ["coins"]),
    "a query": (lambda agent, _: agent.forget(query="pelican"), ["coins", "count", "thief"]),
    "a tenant": (
        lambda agent, _: agent.forget(everything=True, all_users=True, tenant="acme"),
        ["rates", "merger"],
    ),
}
"""How it is asked for, and what of `TOLD` goes."""

STEPS: tuple[tuple[Any, str, int], ...] = (
    (Erasures, "note", 1),
    (Erasures, "erase", 1),
    (StreamMemory, "forget", 1),
    (Ledger, "advance", 1),
    (StreamMemory, "purge", 1),
    (Ledger, "purge", 1),
    (Needles, "search", 1),
    (erasure, "sign", 1),
    (Erasures, "note", 2),
)
"""(owner, name, call): what is deadly, and at which of its calls during a forget."""


def open_agent(home: Path) -> Agent:
    return Agent.open(
        ScriptedLLM(lambda _: "Understood, noted."),
        home=home,
        memories=["scm:gate=always"],
        embedder=HashingEmbedder(),
    )


def begin(home: Path) -> None:
    with open_agent(home) as agent:
        records = {name: Record(text=text, scope=scope) for name, (text, scope) in TOLD.items()}
        agent.append(list(records.values()))
        agent.ask("Understood?", session="c")
        os.write(1, json.dumps({name: record.id for name, record in records.items()}).encode())


def arm(owner: Any, name: str, call: int, *, before: bool) -> None:
    """Make the n-th call of `owner.name` deadly, just before or just after it does its work."""
    real, seen = getattr(owner, name), []

    def deadly(*args: Any, **options: Any) -> Any:
        seen.append(name)
        if before and len(seen) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **options)
        if not before and len(seen) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)


def die(home: Path, way: str, coins: str, owner: Any, name: str, call: int, before: bool) -> None:
    agent = open_agent(home)
    arm(owner, name, call, before=before)
    WAYS[way][0](agent, coins)


def tell(home: Path) -> None:
    with open_agent(home) as agent:
        agent.ledger.verify_chain()
        tenants = [agent.forgotten(), agent.forgotten(all_users=True, tenant="acme")]
        scopes = {scope.across_sessions() for _, scope in TOLD.values()}
        found = {
            "reports": [
                {"ids": sorted(report.ids), "residue": report.residue}
                for reports in tenants
                for report in reports
            ],
            "waiting": len(agent.ledger.erasures.every("noted", "erased")),
            "said": [record.text for scope in scopes for record in agent.ledger.records(scope)],
            "agrees": all(check(agent.ledger, memory).agrees for memory in agent.memories),
            "recalled": [note.text for note in agent.recall("Where does the heron nest?").notes],
        }
        os.write(1, json.dumps(found).encode())


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


def main(root: Path, way: str) -> None:
    ids = json.loads(forked(partial(begin, root / "begun"))[1])
    results = {}
    for owner, name, call in STEPS:
        for before in (True, False):
            step = f"{'before' if before else 'after'} {owner.__name__}.{name} {call}"
            home = root / step.replace(" ", "-")
            shutil.copytree(root / "begun", home)
            status, _ = forked(partial(die, home, way, ids["coins"], owner, name, call, before))
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            opened, told = forked(partial(tell, home))
            results[step] = {"killed": killed, "opens": opened == 0, "home": str(home)}
            results[step] |= json.loads(told) if told else {}
    print(json.dumps({"ids": ids, "steps": results}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
