"""Tests of the projection. Run as a program, it is the process that the SIGKILL test kills."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.llm.places import Prompt
from palimpsest.memory.base import Artefact, Cue, Erasure, Memory
from palimpsest.memory.ledger import Ledger
from palimpsest.memory.projection import attend, catch_up, check, rebuild, repair
from palimpsest.memory.record import Record, RecordId, Scope, content_hash

SCOPE = Scope(session="s")
KILLS = int(os.environ.get("PALIMPSEST_TEST_KILLS", "20"))


class DictStore(Memory):
    """Facts by id, in a JSON file if it has a folder. `crash_at` stops it in the n-th call."""

    place = "prompt"

    def __init__(self, name: str, context: Any = None, config: Any = None) -> None:
        self.name = name
        self.calls: list[tuple[str, list[str]]] = []
        self.crash_at = 0
        self._file: Path | None = Path(context) / "facts.json" if context else None
        self._facts: dict[str, list[Any]] = {}
        if self._file and self._file.exists():
            self._facts = json.loads(self._file.read_text())

    def write(self, records: Sequence[Record]) -> list[Artefact]:
        self._note("write", [record.id for record in records])
        facts = [record for record in records if record.kind in ("fact", "correction")]
        for record in facts:
            end = record.valid_to and record.valid_to.isoformat()
            content = [content_hash(record.text), end, record.supersedes, list(record.parents)]
            self._facts[record.id] = content
        self._keep()
        return [Artefact(record.id, f"fact-{record.id}") for record in facts]

    def recall(self, cue: Cue) -> Prompt:
        return Prompt(memory=self.name)

    def forget(self, ids: Collection[RecordId]) -> Erasure:
        self._note("forget", list(ids))
        erased = frozenset(id for id in ids if self._facts.pop(id, None) is not None)
        self._keep()
        return Erasure(store=self.name, erased=erased, unknown=frozenset(ids) - erased)

    def clear(self) -> None:
        self._facts = {}
        self._keep()

    def held(self) -> frozenset[RecordId]:
        return frozenset(RecordId(id) for id in self._facts)

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self._facts, sort_keys=True).encode()).hexdigest()

    def save(self, path: Path) -> None:
        (path / "facts.json").write_text(json.dumps(self._facts))

    def load(self, path: Path) -> None:
        self._facts = json.loads((path / "facts.json").read_text())

    def _note(self, call: str, ids: list[str]) -> None:
        self.calls.append((call, ids))
        if len(self.calls) == self.crash_at:
            raise PowerCut

    def _keep(self) -> None:
        if self._file:
            draft = self._file.with_suffix(".new")
            draft.write_text(json.dumps(self._facts))
            draft.replace(self._file)


class PowerCut(Exception):
    pass


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.db") as opened:
        yield opened


def fact(text: str, **fields: Any) -> Record:
    return Record(text=text, scope=SCOPE, kind="fact", **fields)


def fresh_digest(ledger: Ledger) -> str:
    """What a store holds that is made from the ledger as it is now."""
    store = DictStore("fresh")
    rebuild(ledger, store)
    return store.digest()


def test_a_store_follows_what_is_appended_and_the_lineage_says_what_it_holds(
    ledger: Ledger,
) -> None:
    one, chat, two = fact("1"), Record(text="hi", scope=Scope(tenant="other")), fact("2")
    store = DictStore("facts")
    ledger.append([one, chat])
    assert catch_up(ledger, store) == 2
    ledger.append([two])
    assert catch_up(ledger, store) == 1
    assert catch_up(ledger, store) == 0
    assert store.calls == [("write", [one.id, chat.id]), ("write", [two.id])]
    assert ledger.cursor("facts") == 3
    assert ledger.lineage([one.id, chat.id, two.id]) == {
        "facts": [Artefact(id, f"fact-{id}") for id in sorted([one.id, two.id])]
    }
    assert check(ledger, store).agrees


def test_a_supersession_sends_the_old_record_again_with_its_end(ledger: Ledger) -> None:
    old = fact("Paris")
    new = fact("Lyon", supersedes=old.id)
    store = DictStore("facts")
    ledger.append([old])
    catch_up(ledger, store)
    before = store.digest()
    ledger.append([new])
    catch_up(ledger, store)
    assert store.calls[-1] == ("write", [new.id, old.id])
    assert store._facts[old.id][1] is not None
    ledger.erase([new.id], SCOPE)
    catch_up(ledger, store)
    assert store.calls[-2:] == [("forget", [new.id]), ("write", [old.id])]
    assert store.digest() == before


def test_a_record_erased_before_the_store_saw_it_is_never_sent(ledger: Ledger) -> None:
    gone, kept = fact("gone"), fact("kept")
    ledger.append([gone, kept])
    ledger.erase([gone.id], SCOPE)
    store = DictStore("facts")
    assert catch_up(ledger, store) == 3
    assert store.calls == [("write", [kept.id]), ("forget", [gone.id])]


def test_batches_bound_what_a_store_is_sent_at_once(ledger: Ledger) -> None:
    ledger.append([fact(str(number)) for number in range(25)])
    store = DictStore("facts")
    assert catch_up(ledger, store, batch=10) == 25
    assert [len(ids) for _, ids in store.calls] == [10, 10, 5]


def test_a_crash_in_the_middle_is_mended_by_following_again(ledger: Ledger) -> None:
    for number in range(6):
        old, other = fact(f"{number}"), fact("other")
        ledger.append([old, other, fact("newer", supersedes=old.id)])
        ledger.erase([other.id], SCOPE)
    expected = fresh_digest(ledger)
    store = DictStore("facts")
    crashes = 0
    while True:
        store.calls, store.crash_at = [], crashes + 1
        try:
            catch_up(ledger, store, batch=4)
            break
        except PowerCut:
            crashes += 1
    assert crashes > 3
    assert store.digest() == expected
    assert check(ledger, store).agrees


def test_a_store_that_lost_its_folder_is_found_and_made_anew(
    ledger: Ledger, tmp_path: Path
) -> None:
    kept, gone = fact("kept"), fact("gone")
    ledger.append([kept, gone])
    ledger.erase([gone.id], SCOPE)
    (tmp_path / "store").mkdir()
    store = DictStore("facts", tmp_path / "store")
    catch_up(ledger, store)
    before = store.digest()
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").mkdir()
    store = DictStore("facts", tmp_path / "store")
    report = check(ledger, store)
    assert report.missing == {kept.id}
    assert (report.surplus, report.behind) == (frozenset(), 0)
    assert not report.agrees
    assert repair(ledger, store) == report
    assert check(ledger, store).agrees
    assert store.digest() == before


def test_a_store_that_lost_everything_is_made_anew_when_it_is_attended_to(ledger: Ledger) -> None:
    kept, gone = fact("kept"), fact("gone")
    ledger.append([kept, gone])
    ledger.erase([gone.id], SCOPE)
    store = DictStore("facts")
    attend(ledger, store)
    before = store.digest()
    lost = DictStore("facts")
    assert attend(ledger, lost) == 3
    assert lost.digest() == before and check(ledger, lost).agrees
    assert attend(ledger, lost) == 0


def test_a_store_that_holds_nothing_because_it_should_is_not_made_anew(ledger: Ledger) -> None:
    record = fact("1")
    ledger.append([record, Record(text="hi", scope=SCOPE)])
    store = DictStore("facts")
    attend(ledger, store)
    ledger.erase([record.id], SCOPE)
    assert attend(ledger, store) == 1
    assert store.empty() and attend(ledger, store) == 0


def test_a_store_that_holds_what_it_should_not_is_made_anew(ledger: Ledger) -> None:
    stray = fact("from nowhere")
    ledger.append([fact("1")])
    store = DictStore("facts")
    catch_up(ledger, store)
    store.write([stray])
    report = repair(ledger, store)
    assert report.surplus == {stray.id}
    assert stray.id not in store.held()


def test_a_store_that_is_only_behind_is_not_made_anew(ledger: Ledger) -> None:
    store = DictStore("facts")
    ledger.append([fact("1")])
    catch_up(ledger, store)
    ledger.append([fact("2")])
    store.clear = None  # type: ignore[assignment,method-assign]
    assert repair(ledger, store).behind == 1
    assert check(ledger, store).agrees


def test_two_stores_follow_independently(ledger: Ledger) -> None:
    first, second = DictStore("first"), DictStore("second")
    record = fact("1")
    ledger.append([record])
    catch_up(ledger, first)
    assert ledger.cursor("second") == 0
    assert check(ledger, second).behind == 1
    catch_up(ledger, second)
    assert set(ledger.lineage([record.id])) == {"first", "second"}
    ledger.reset("first")
    assert set(ledger.lineage([record.id])) == {"second"}


def test_an_erasure_between_a_stores_write_and_its_note_leaves_no_lineage(
    ledger: Ledger,
) -> None:
    record = fact("1")
    ledger.append([record])

    class Raced(DictStore):
        def write(self, records: Sequence[Record]) -> list[Artefact]:
            edges = super().write(records)
            ledger.erase([record.id], SCOPE)
            return edges

    store = Raced("facts")
    catch_up(ledger, store)
    assert ledger.held("facts") == store.held() == frozenset()
    assert check(ledger, store).agrees


steps = st.lists(
    st.tuples(
        st.sampled_from(["append", "child", "supersede", "erase", "follow"]), st.integers(0, 9)
    ),
    max_size=25,
)


@settings(max_examples=20, deadline=None)
@given(script=steps, batch=st.integers(1, 7))
def test_a_store_that_followed_every_step_equals_one_made_anew(
    script: list[tuple[str, int]], batch: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, Ledger.open(Path(folder) / "l.db") as ledger:
        store = DictStore("facts")
        for verb, pick in script:
            there = ledger.records(SCOPE)
            chosen = there[pick % len(there)] if there else None
            if verb == "follow":
                catch_up(ledger, store, batch)
            elif verb == "erase" and chosen:
                ledger.erase([chosen.id, there[0].id], SCOPE)
            elif verb == "child" and chosen:
                ledger.append([fact(verb, parents=(chosen.id,))])
            else:
                ends = verb == "supersede" and chosen and chosen.current
                old = chosen.id if ends and chosen else None
                ledger.append([fact(verb, supersedes=old)])
        catch_up(ledger, store, batch)
        assert check(ledger, store).agrees
        assert store.digest() == fresh_digest(ledger)


def live_until_killed(folder: Path) -> None:
    """Append, erase and follow; print what is done, after it is done."""
    print("born", os.getpid(), flush=True)
    ledger = Ledger.open(folder / "ledger.db")
    store = DictStore("facts", folder)
    repair(ledger, store)
    last: RecordId | None = None
    while True:
        batch = [fact(f"word {number} " * 50) for number in range(3)]
        batch += [fact("better", supersedes=last)] if last else []
        ledger.append(batch)
        print("+", *(record.id for record in batch), flush=True)
        catch_up(ledger, store)
        erased = ledger.erase([batch[1].id], SCOPE)
        print("-", *erased, flush=True)
        catch_up(ledger, store)
        last = batch[0].id


def live_again_and_again(folder: Path) -> None:
    """One life for each line of input, in a child, so that warming up is paid for once."""
    with Ledger.open(folder / "ledger.db") as ledger:
        repair(ledger, DictStore("facts", folder))
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            live_until_killed(folder)
        os.waitpid(child, 0)
        print("dead", flush=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX processes")
def test_a_process_killed_at_random_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    kept, erased = set[str](), set[str]()
    chance = random.Random(7)
    command = [sys.executable, __file__, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        for _ in range(KILLS):
            print("live", file=process.stdin, flush=True)
            born, pid = process.stdout.readline().split()
            assert born == "born"
            time.sleep(chance.uniform(0.0, 0.3))
            os.kill(int(pid), signal.SIGKILL)
            # A line that the kill cut in two runs into the next one: it was never acknowledged.
            lines = iter(process.stdout.readline, "")
            for line in takewhile(lambda line: not line.endswith("dead\n"), lines):
                (kept if line.startswith("+") else erased).update(line.split()[1:])
            with Ledger.open(tmp_path / "ledger.db") as ledger:
                ledger.verify_chain()
                there = {record.id for record in ledger.records(SCOPE)}
                undone = {event.subject for event in ledger.events() if event.kind == "erase"}
                assert kept - undone <= there  # what was acknowledged and not erased is there
                assert erased <= undone and not undone & there
                store = DictStore("facts", tmp_path)
                repair(ledger, store)
                assert check(ledger, store).agrees
                assert store.held() == there
                assert store.digest() == fresh_digest(ledger)
        process.stdin.close()
    assert len(kept) > KILLS and erased


def test_a_long_erasure_and_a_long_rebuild_go_through_in_pieces(ledger: Ledger) -> None:
    parent = fact("parent")
    many = [replace(fact("x"), parents=(parent.id,)) for _ in range(1200)]
    ledger.append([parent, *many])
    assert len(ledger.children([parent.id])) == 1200
    assert len(ledger.erase([record.id for record in many[:1100]], SCOPE)) == 1100
    store = DictStore("facts")
    assert rebuild(ledger, store) == ledger.last_seq() == 1201 + 1100
    assert store.held() == {parent.id, *(record.id for record in many[1100:])}
    ledger.verify_chain()


if __name__ == "__main__":
    live_again_and_again(Path(sys.argv[1]))
