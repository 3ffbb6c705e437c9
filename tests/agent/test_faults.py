"""The power goes, the disk is full, the folder is barred: what was acknowledged is there."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import pytest
from palimpsest import Agent, ScriptedLLM
from palimpsest.errors import HomeLocked, LedgerError, StoreError
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.home import Home
from palimpsest.memory.ledger import Ledger
from palimpsest.memory.record import Scope

SCRIPT = Path(__file__).with_name("fault_script.py")
KILLS = int(os.environ.get("PALIMPSEST_TEST_KILLS", "200"))


def open_agent(home: Path, **options: Any) -> Agent:
    llm = ScriptedLLM(lambda _: "Noted.")
    return Agent.open(llm, home=home, memories=["scm"], embedder=HashingEmbedder(), **options)


def script(*words: object) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX processes")
def test_killed_at_random_under_concurrent_writes_nothing_acknowledged_is_lost(
    tmp_path: Path,
) -> None:
    kept, erased = set[str](), set[str]()
    chance = random.Random(11)
    pipe, command = subprocess.PIPE, [sys.executable, str(SCRIPT), "kills", str(tmp_path)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        for life in range(KILLS):
            print("live", file=process.stdin, flush=True)
            born, pid = process.stdout.readline().split()
            assert born == "born"
            lines = iter(process.stdout.readline, "")
            heard = list(islice(lines, chance.randrange(6)))
            time.sleep(chance.uniform(0.0, 0.05))
            os.kill(int(pid), signal.SIGKILL)
            for line in (*heard, *takewhile(lambda line: line != "dead\n", lines)):
                (kept if line.startswith("+") else erased).update(line.split()[1:])
            if life % 10 == 9 or life == KILLS - 1:
                _all_there(tmp_path, kept, erased)
        process.stdin.close()
    assert len(kept) > KILLS and len(erased) > KILLS / 4


def _all_there(home: Path, kept: set[str], erased: set[str]) -> None:
    with Ledger.open(home / "ledger.sqlite3") as ledger:
        ledger.verify_chain()
        assert not ledger.upkeep.faults()
        there = {record.id for record in ledger.records(Scope())}
        undone = {event.subject for event in ledger.events() if event.kind == "erase"}
    assert kept - undone <= there  # what was acknowledged and not erased is there
    assert erased <= undone and not undone & there


@pytest.mark.parametrize("room", [300_000, 700_000, 1_500_000])
def test_on_a_full_disk_nothing_acknowledged_is_lost_and_all_is_well_when_there_is_room(
    tmp_path: Path, room: int
) -> None:
    told = json.loads(script("full", tmp_path, room)[-1])
    assert told["error"] in ("LedgerError", "StoreError")
    assert "as it was before the write" in told["message"] and str(tmp_path) in told["message"]
    assert told.get("recalled", 0) > 0 or "recall error" in told
    assert told["said"]
    seen = Agent.doctor(home=tmp_path, embedder=HashingEmbedder())
    assert [each.part for each in seen.findings if each.state == "ill"] in ([], ["store scm"])
    assert Agent.doctor(home=tmp_path, embedder=HashingEmbedder(), fix=True).healthy
    with open_agent(tmp_path) as agent:
        agent.verify_chain()
        there = {record.id for record in agent.ledger.records(agent.scope)}
        assert set(told["said"]) <= there
        agent.remember("The heron nests in March.")
        assert "heron" in agent.recall("When does the heron nest?").notes[0].text


def test_a_folder_that_one_may_not_write_to_is_a_typed_error(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with open_agent(home) as agent:
        agent.remember("The heron nests in March.")
    before = {path: path.read_bytes() for path in home.rglob("*.sqlite3")}
    for parent in tmp_path.parents:
        if parent.owner() == tmp_path.owner() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    tmp_path.chmod(0o755)
    for path in [*home.rglob("*"), home]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    (write, why), (read, why_not), seen = map(json.loads, script("barred", home))
    assert write == read == "LedgerError"
    assert str(home) in why and "make it writable" in why
    assert str(home) in why_not and "copy the folder to where you may write" in why_not
    ill = {part: (what, remedy) for part, state, what, remedy in seen if state == "ill"}
    assert ill.keys() == {"lock", "ledger"} and "make it writable" in ill["lock"][0]
    assert "copy the folder" in ill["ledger"][0] and ill["ledger"][1] is None
    home.chmod(0o755)
    for path in home.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert {path: path.read_bytes() for path in home.rglob("*.sqlite3")} == before
    with open_agent(home) as agent:
        assert agent.recall("heron").notes


def test_a_folder_that_cannot_be_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LedgerError, match=r"Not a directory; make it writable"):
        open_agent(tmp_path / "file" / "home")
    (tmp_path / "home" / "stores").mkdir(parents=True)
    (tmp_path / "home" / "stores" / "scm").write_text("in the way")
    with pytest.raises(StoreError, match=r"stream\.sqlite3: File exists"):
        open_agent(tmp_path / "home")


def test_the_second_process_on_a_folder_is_told_who_has_it(tmp_path: Path) -> None:
    code = (
        "import sys; from palimpsest.memory.home import Home\n"
        "with Home(sys.argv[1]).lock(): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "held\n"
        for opened in (
            lambda: open_agent(tmp_path),
            lambda: Agent.doctor(home=tmp_path, fix=True),
            lambda: Agent.restore(tmp_path / "b.zip", home=tmp_path),
        ):
            with pytest.raises(HomeLocked, match=f"process {process.pid} on .* since 20"):
                opened()
        assert f"process {process.pid}" in str(Home(tmp_path).holder())
        process.stdin.close()
    assert Home(tmp_path).holder() is None
    with open_agent(tmp_path) as agent:
        agent.remember("now it is mine")
