"""Processes that the faults befall; run by test_faults.py.

kills HOME        threads that write until SIGKILL, one life for each line of input
full HOME BYTES   an agent that may write no file beyond so many bytes
barred HOME       an agent of a user who may not write to the folder
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from palimpsest import Agent, ScriptedLLM
from palimpsest.errors import PalimpsestError
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.ledger import Ledger
from palimpsest.memory.record import Record, Scope, new_id

WRITERS = 4
NOBODY = 65534


def open_agent(home: Path, **options: Any) -> Agent:
    llm = ScriptedLLM(lambda _: "Noted.")
    return Agent.open(llm, home=home, memories=["scm"], embedder=HashingEmbedder(), **options)


def say(*words: object) -> None:
    """One line, in one write: a kill leaves it whole or cut, and never mixed with another's."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def write_until_killed(home: Path) -> None:
    ledger = Ledger.open(home / "ledger.sqlite3")

    def write(number: int) -> None:
        scope = Scope(session=f"s{number}")
        last: Record | None = None
        while True:
            batch = [Record(text=f"word {n} " * 20, scope=scope, kind="fact") for n in range(3)]
            if last is not None:
                batch.append(Record(text="newer", scope=scope, kind="fact", supersedes=last.id))
            ledger.append(batch)
            say("+", *(record.id for record in batch))
            ledger.erase([batch[1].id], scope)
            say("-", batch[1].id)
            last = batch[0]

    say("born", os.getpid())
    for number in range(WRITERS):
        threading.Thread(target=write, args=(number,), daemon=True).start()
    signal.pause()


def kills(home: Path) -> None:
    Ledger.open(home / "ledger.sqlite3").close()
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            write_until_killed(home)
        os.waitpid(child, 0)
        say("dead")


def full(home: Path, size: int) -> None:
    """Write until nothing more fits; tell what was acknowledged, and what the error was."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write fails instead
    said: list[str] = []
    with open_agent(home) as agent:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            while True:
                said.append(agent.remember(f"{new_id()} " + "word " * 400, session="s").id)
        except PalimpsestError as error:
            found: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
        try:
            found["recalled"] = len(agent.recall("word").notes)
        except PalimpsestError as error:
            found["recall error"] = str(error)
    say(json.dumps(found | {"said": said}))


def barred(home: Path) -> None:
    if os.geteuid() == 0:
        os.setegid(NOBODY)
        os.seteuid(NOBODY)  # root may write anywhere
    for read_only in (False, True):
        try:
            with open_agent(home, read_only=read_only):
                say("opened")
        except PalimpsestError as error:
            say(json.dumps([type(error).__name__, str(error)]))
    seen = Agent.doctor(home=home, embedder=HashingEmbedder()).findings
    say(json.dumps([[each.part, each.state, each.what, each.remedy] for each in seen]))


if __name__ == "__main__":
    verb, home, *rest = sys.argv[1:]
    verbs: dict[str, Callable[..., None]] = {"kills": kills, "full": full, "barred": barred}
    verbs[verb](Path(home), *map(int, rest))
