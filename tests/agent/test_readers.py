"""One process writes, others read beside it; run as a program, this is the one that writes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from palimpsest import Agent, ScriptedLLM
from palimpsest.errors import HomeLocked, LedgerError, StoreError
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.ledger import Ledger

ENOUGH = 40
"""Facts that the other process is to have said before it is looked at."""


def open_agent(home: Path, **options: Any) -> Agent:
    llm = ScriptedLLM(lambda _: "Noted.")
    return Agent.open(llm, home=home, memories=["scm"], embedder=HashingEmbedder(), **options)


def talk_until_killed(home: Path) -> None:
    with open_agent(home) as agent:
        agent.ask("The heron nests in March.", session="chat")
        number = 0
        while True:
            agent.remember(f"Fact {number} is about a pelican.", session="facts")
            print(number, flush=True)
            number += 1


@contextmanager
def another_process(home: Path) -> Iterator[subprocess.Popen[str]]:
    """One that holds the folder and writes to it all the while."""
    command = [sys.executable, __file__, str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pipe = process.stdout
        for line in pipe:
            if int(line) == ENOUGH:
                break
        draining = threading.Thread(target=lambda: [None for _ in pipe])
        draining.start()
        try:
            yield process
        finally:
            process.kill()
            draining.join()


def test_readers_see_one_state_while_another_process_writes(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with another_process(home) as writer:
        with pytest.raises(HomeLocked, match=f"process {writer.pid} on "):
            open_agent(home)
        with open_agent(home, read_only=True) as one, open_agent(home, read_only=True) as two:
            for reader in (one, two):
                assert "heron" in reader.recall("When does the heron nest?").notes[0].text
                assert {"chat", "facts"} == {each.id for each in reader.sessions()}
                assert reader.why(session="chat").reply
                assert reader.turns(session="chat")[0].user.text.startswith("The heron")
            before = one.stats()
            assert before.census.records > ENOUGH
            one.verify_chain()
            exported = one.export_to(tmp_path / "all.jsonl")
            backup = two.backup(tmp_path / "b.zip")
            seen = Agent.doctor(home=home, embedder=HashingEmbedder())
            assert seen.healthy, seen
            assert two.stats().census.records >= before.census.records
        assert writer.poll() is None
    with Ledger.open(tmp_path / "copy.db") as copy:
        copy.transfer.take((tmp_path / "all.jsonl").read_bytes().splitlines(keepends=True))
        copy.verify_chain()
        assert before.census.records <= copy.stats()["records"] <= exported.rows
    assert backup.records > ENOUGH
    with open_agent(home) as agent:  # the lock went with the process
        assert agent.stats().census.records >= backup.records


def test_a_reader_sees_what_is_said_after_it_opened(tmp_path: Path) -> None:
    with open_agent(tmp_path) as writer:
        writer.remember("The pelican nests in June.")
        with open_agent(tmp_path, read_only=True) as reader:
            assert len(reader.recall("When does the heron nest?").notes) <= 1
            record = writer.remember("The heron nests in March.")
            assert "heron" in reader.recall("When does the heron nest?").notes[0].text
            writer.forget(record.id)
            assert not any(
                "heron" in note.text for note in reader.recall("When does the heron nest?").notes
            )


def test_a_reader_can_see_what_would_be_forgotten(tmp_path: Path) -> None:
    with open_agent(tmp_path) as writer:
        record = writer.remember("The heron nests in March.")
        with open_agent(tmp_path, read_only=True) as reader:
            plan = reader.forget("heron", dry_run=True)
            assert plan.ids == {record.id} and plan.stores[0].erased
            with pytest.raises(LedgerError, match="opened to be read only"):
                reader.forget(plan)
        assert writer.forget(plan).ids == {record.id}


def test_a_reader_changes_nothing_whatever_it_is_asked(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with open_agent(home) as writer:
        record = writer.remember("The heron nests in March.", session="s")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    (tmp_path / "a.txt").write_text("A text.")
    with open_agent(home, read_only=True) as reader:
        lines = reader.export_to(tmp_path / "all.jsonl")
        writes: dict[str, Callable[[], object]] = {
            "remember": lambda: reader.remember("more"),
            "ask": lambda: reader.ask("Hello?"),
            "correct": lambda: reader.correct(record.id, "In April."),
            "forget": lambda: reader.forget(record.id),
            "fork": lambda: reader.fork("s", "t"),
            "ingest": lambda: reader.ingest(tmp_path / "a.txt"),
        }
        for verb, write in writes.items():
            with pytest.raises(LedgerError, match="opened to be read only") as caught:
                write()
            assert str(home) in str(caught.value), verb
        assert reader.import_from(lines.path).added == 0  # nothing in it is new
    after = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before


def test_there_is_nothing_to_read_where_nobody_wrote(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"nothing is kept in .*none yet, .* nothing to read"):
        open_agent(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()
    with Agent.open(ScriptedLLM(str), home=tmp_path / "bare", memories=[]):
        pass
    with pytest.raises(StoreError, match="it is not there; `palimpsest doctor --fix`"):
        open_agent(tmp_path / "bare", read_only=True)


if __name__ == "__main__":
    talk_until_killed(Path(sys.argv[1]))
