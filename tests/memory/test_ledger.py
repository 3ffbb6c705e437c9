from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.errors import (
    ChainBroken,
    ConfigError,
    InputError,
    LedgerError,
    RecordNotFound,
)
from palimpsest.memory.ledger import Ledger
from palimpsest.memory.record import Record, RecordId, Scope, new_id
from sqlalchemy import event

from ..servers import Servers, sqlite_only

MARIA = Scope(user="maria")
MONDAY = replace(MARIA, session="monday")


@pytest.fixture
def ledger(servers: Servers, tmp_path: Path) -> Iterator[Ledger]:
    with servers.ledger(tmp_path / "ledger.db") as opened:
        yield opened


def said(text: str, scope: Scope = MONDAY, **fields: Any) -> Record:
    return Record(text=text, scope=scope, **fields)


def answer(text: str, to: Record, scope: Scope | None = None, **fields: Any) -> Record:
    return Record(
        text=text,
        scope=scope or to.scope,
        role="assistant",
        source="assistant",
        parents=(to.id,),
        **fields,
    )


def texts(records: list[Record]) -> list[str]:
    return [record.text for record in records]


def shown(ledger: Ledger, scope: Scope, limit: int | None = None) -> list[tuple[str, str | None]]:
    turns = ledger.turns(scope, limit)
    return [(turn.user.text, turn.reply.text if turn.reply else None) for turn in turns]


def test_a_record_comes_back_as_it_was_given(ledger: Ledger) -> None:
    source = said("where it began")
    record = Record(
        text="Ünïcode, 👩‍🚀, مرحبا\nand a tab\t<|im_start|>",
        scope=MONDAY,
        kind="fact",
        role="tool",
        source="document",
        created=datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=-7))),
        valid_from=datetime(1999, 12, 31, tzinfo=UTC),
        valid_to=datetime(2999, 1, 1, tzinfo=UTC),
        trust=0.1 + 0.2,
        parents=(source.id,),
        meta={"page": 3, "path": ["a", None], "score": 1e-9},
    )
    ledger.append([source, record], screened=False)
    found = ledger.get(record.id, MARIA)
    assert found == record
    assert found.created.tzinfo is UTC
    ledger.verify_chain()


def test_a_record_is_still_there_after_reopening(tmp_path: Path) -> None:
    record = said("I climb")
    with Ledger.open(tmp_path / "ledger.db") as first:
        first.append([record])
        head = first.head()
    first.close()
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as second:
        assert second.get(record.id, MONDAY) == record
        assert second.head() == head


def test_appending_the_same_record_again_changes_nothing(ledger: Ledger) -> None:
    record = said("I climb", meta={"b": (1, 2), "a": {}})
    assert ledger.append([record, record]) == 1
    head = ledger.head()
    assert ledger.append([record]) == 0
    assert ledger.append([]) == 0
    assert ledger.head() == head


def test_the_same_id_with_another_content_is_refused_and_nothing_of_the_batch_is_kept(
    ledger: Ledger,
) -> None:
    record = said("I climb")
    ledger.append([record])
    for changed in (replace(record, text="I ski"), replace(record, trust=0.2)):
        with pytest.raises(LedgerError, match=record.id):
            ledger.append([said("another"), changed])
    assert texts(ledger.records(MARIA)) == ["I climb"]
    ledger.verify_chain()


def test_a_read_of_an_unknown_scope_finds_nothing(ledger: Ledger) -> None:
    record = said("I climb")
    ledger.append([record])
    nobody = Scope(tenant="nowhere", user="nobody", session="never")
    assert ledger.records(nobody) == []
    assert ledger.turns(nobody) == []
    assert ledger.sessions(nobody) == []
    assert ledger.find([record.id], nobody) == []
    assert ledger.traces.last(nobody) is None
    assert ledger.erase([record.id], nobody) == frozenset()
    with pytest.raises(RecordNotFound, match=record.id):
        ledger.get(record.id, nobody)
    with pytest.raises(RecordNotFound):
        ledger.history(record.id, nobody)


def test_an_unknown_session_is_reported_with_the_known_ones(ledger: Ledger) -> None:
    ledger.append([said("a"), said("b", replace(MARIA, session="tuesday"))])
    ledger.require_session(MONDAY)
    with pytest.raises(RecordNotFound, match=r"'sunday'.*'monday', 'tuesday'"):
        ledger.require_session(replace(MARIA, session="sunday"))
    with pytest.raises(RecordNotFound, match="none yet"):
        ledger.require_session(Scope(user="ben", session="monday"))


def test_records_are_filtered_paged_and_ordered(ledger: Ledger) -> None:
    tuesday = replace(MARIA, session="tuesday")
    batch = [said("one"), said("two", kind="fact"), said("three", tuesday), said("four", MARIA)]
    ledger.append(batch)
    ledger.append([said("2nd", tuesday, kind="correction", supersedes=batch[1].id)])
    assert texts(ledger.records(MARIA)) == ["one", "two", "three", "four", "2nd"]
    assert texts(ledger.records(MARIA, newest_first=True, limit=2)) == ["2nd", "four"]
    assert texts(ledger.records(MONDAY)) == ["one", "two"]
    assert texts(ledger.records(MARIA, kinds=("fact", "correction"))) == ["two", "2nd"]
    assert texts(ledger.records(MARIA, kinds=("fact", "correction"), current_only=True)) == ["2nd"]
    assert ledger.records(MARIA, kinds=()) == []
    page = ledger.records(MARIA, after=batch[0].id, limit=2)
    assert texts(page) == ["two", "three"]
    assert texts(ledger.records(MARIA, after=batch[2].id, newest_first=True)) == ["two", "one"]
    ledger.erase([page[-1].id], MARIA)
    assert texts(ledger.records(MARIA, after=page[-1].id)) == ["four", "2nd"]
    with pytest.raises(RecordNotFound, match="never"):
        ledger.records(MARIA, after=new_id())
    with pytest.raises(InputError, match="mesage"):
        ledger.records(MARIA, kinds=["mesage"])  # type: ignore[list-item]


def test_a_filter_that_is_not_listed_is_refused(ledger: Ledger) -> None:
    with pytest.raises(TypeError, match="tenant"):
        ledger.records(MARIA, tenant="other")  # type: ignore[call-arg]


def test_a_correction_ends_what_it_supersedes_and_the_old_one_stays_in_history(
    ledger: Ledger,
) -> None:
    old = said("I live in Paris", kind="fact")
    new = said("I live in Lyon", MARIA, kind="correction", supersedes=old.id)
    newest = said("I live in Nice", kind="correction", supersedes=new.id)
    ledger.append([old])
    ledger.append([new, newest])
    assert ledger.get(old.id, MONDAY).valid_to == new.valid_from
    assert texts(ledger.records(MARIA, current_only=True)) == ["I live in Nice"]
    for record in (old, new, newest):
        chain = ledger.history(record.id, MARIA)
        assert texts(chain) == ["I live in Paris", "I live in Lyon", "I live in Nice"]
    with pytest.raises(LedgerError, match=f"already superseded by {new.id}"):
        ledger.append([said("I live in Brest", kind="correction", supersedes=old.id)])


def test_erasing_a_correction_makes_the_old_record_hold_again(ledger: Ledger) -> None:
    stated = datetime(2030, 1, 1, tzinfo=UTC)
    old = said("I live in Paris", kind="fact", valid_to=stated)
    new = said("I live in Lyon", kind="correction", supersedes=old.id)
    ledger.append([old, new])
    assert ledger.erase([new.id, new_id()], MONDAY) == {new.id}
    assert ledger.get(old.id, MONDAY) == old
    ledger.verify_chain()


def test_erasing_the_middle_of_a_chain_never_brings_an_outdated_record_back(
    ledger: Ledger,
) -> None:
    chain = [said("Paris", kind="fact")]
    for place in ("Lyon", "Nice", "Brest"):
        chain.append(said(place, kind="correction", supersedes=chain[-1].id))
    ledger.append(chain)
    ledger.erase([chain[1].id, chain[2].id], MARIA)
    assert texts(ledger.records(MARIA, current_only=True)) == ["Brest"]
    assert texts(ledger.history(chain[0].id, MARIA)) == ["Paris", "Brest"]
    assert ledger.get(chain[0].id, MARIA).valid_to == chain[3].valid_from
    ledger.erase([chain[0].id], MARIA)
    assert ledger.get(chain[3].id, MARIA).supersedes is None
    ledger.verify_chain()


def test_a_record_may_only_refer_to_what_its_own_scope_holds(ledger: Ledger) -> None:
    record = said("I climb")
    ledger.append([record])
    stranger = Scope(user="ben", session="monday")
    for fields in ({"parents": (record.id,)}, {"supersedes": record.id}):
        with pytest.raises(RecordNotFound, match=record.id):
            ledger.append([said("mine", stranger, **fields)])
    with pytest.raises(RecordNotFound):
        ledger.append([said("of nothing", parents=(new_id(),))])
    assert ledger.sessions(stranger) == []
    assert ledger.get(record.id, MARIA).current


def test_what_was_made_from_a_record_is_found_through_all_generations(ledger: Ledger) -> None:
    message = said("m")
    reply = answer("r", message)
    summary = said("s", kind="summary", parents=(message.id, reply.id))
    digest = said("d", kind="summary", parents=(summary.id,))
    other = said("other")
    ledger.append([message, reply, summary, digest, other])
    assert ledger.children([message.id]) == {reply.id, summary.id, digest.id}
    assert ledger.children([summary.id]) == {digest.id}
    assert ledger.children([other.id, new_id()]) == frozenset()
    ledger.erase([reply.id], MARIA)
    assert ledger.get(summary.id, MARIA).parents == (message.id,)


def test_turns_pair_messages_with_their_current_replies(ledger: Ledger) -> None:
    first, second, third = said("1"), said("2"), said("3")
    draft = answer("draft", second)
    ledger.append([first, answer("one", first), second, draft, said("a fact", kind="fact")])
    ledger.append([said("tool says", role="tool", source="tool", parents=(second.id,)), third])
    ledger.append([answer("two", second, supersedes=draft.id)])
    ledger.append([said("both", kind="summary", role="assistant", parents=(first.id, second.id))])
    assert shown(ledger, MONDAY) == [("1", "one"), ("2", "two"), ("3", None)]
    assert shown(ledger, MONDAY, 2) == [("2", "two"), ("3", None)]
    assert shown(ledger, MONDAY, 0) == []
    with pytest.raises(InputError, match="session"):
        ledger.turns(MARIA)


def test_a_corrected_reply_is_no_longer_shown(ledger: Ledger) -> None:
    message = said("who am I?")
    reply = answer("Ben", message)
    fix = said("No, Maria", MARIA, kind="correction", supersedes=reply.id)
    ledger.append([message, reply])
    copy = ledger.fork(MONDAY, "copy")
    ledger.append([fix])
    assert shown(ledger, MONDAY) == shown(ledger, copy) == [("who am I?", None)]


def test_a_fork_reads_its_origin_up_to_the_fork_and_then_itself(ledger: Ledger) -> None:
    one, two = said("1"), said("2")
    first = answer("one", one)
    ledger.append([one, first, two, answer("two", two)])
    early = ledger.fork(MONDAY, "early", first.id)
    late = ledger.fork(MONDAY, "late")
    three, other = said("3"), said("other", early)
    ledger.append([three, other, answer("else", other)])
    twig = ledger.fork(early, "twig", one.id)
    ledger.append([said("leaf", twig)])
    assert shown(ledger, MONDAY) == [("1", "one"), ("2", "two"), ("3", None)]
    assert shown(ledger, early) == [("1", "one"), ("other", "else")]
    assert shown(ledger, early, 1) == [("other", "else")]
    assert shown(ledger, late) == [("1", "one"), ("2", "two")]
    assert shown(ledger, twig) == [("1", None), ("leaf", None)]
    infos = {info.id: info for info in ledger.sessions(MARIA)}
    assert {name: info.turns for name, info in infos.items()} == {
        "monday": 3,
        "early": 2,
        "late": 2,
        "twig": 2,
    }
    assert infos["early"].forked_from == "monday" and infos["monday"].forked_from is None
    assert infos["monday"].last == three.created
    with pytest.raises(LedgerError, match="exists"):
        ledger.fork(MONDAY, "early")
    with pytest.raises(RecordNotFound, match=three.id):
        ledger.fork(early, "wrong", three.id)
    with pytest.raises(RecordNotFound, match="sunday"):
        ledger.fork(replace(MARIA, session="sunday"), "new")


def test_answering_again_in_one_branch_leaves_the_other_as_it_was(ledger: Ledger) -> None:
    message = said("hello")
    reply = answer("hi", message)
    ledger.append([message, reply])
    branch = ledger.fork(MONDAY, "branch", reply.id)
    ledger.append([answer("servus", message, branch, supersedes=reply.id)])
    assert shown(ledger, branch) == [("hello", "servus")]
    assert shown(ledger, MONDAY) == [("hello", "hi")]
    ledger.append([answer("hey", message, supersedes=reply.id)])
    assert shown(ledger, branch) == [("hello", "servus")]
    assert shown(ledger, MONDAY) == [("hello", "hey")]


def test_a_session_is_listed_renamed_and_gone_with_its_last_record(ledger: Ledger) -> None:
    record = said("1")
    ledger.append([record, said("2", replace(MARIA, session="tuesday"))])
    ledger.rename(MONDAY, "On climbing")
    [monday] = ledger.sessions(MONDAY)
    assert (monday.title, monday.turns, monday.created) == ("On climbing", 1, record.created)
    assert [info.id for info in ledger.sessions(MARIA)] == ["tuesday", "monday"]
    ledger.erase([record.id], MARIA)
    assert [info.id for info in ledger.sessions(MARIA)] == ["tuesday"]
    with pytest.raises(RecordNotFound):
        ledger.rename(MONDAY, "gone")


def test_erasing_is_bound_to_the_scope_and_takes_edges_and_traces_along(ledger: Ledger) -> None:
    message = said("m")
    reply = answer("r", message)
    ledger.append([message, reply])
    trace = new_id()
    ledger.traces.put(trace, MONDAY, reply.id, {"records": [message.id], "ms": 1.5})
    assert ledger.erase([reply.id], replace(MARIA, session="tuesday")) == frozenset()
    assert ledger.traces.get(reply.id, MARIA) == ledger.traces.get(trace, MONDAY)
    assert ledger.erase([reply.id], MONDAY) == {reply.id}
    assert ledger.stats() == {
        "records": 1,
        "sessions": 1,
        "events": 3,
        "traces": 0,
        "artefacts": 0,
    }
    assert ledger.children([message.id]) == frozenset()


def test_a_trace_is_found_by_its_id_its_reply_or_as_the_last_one(ledger: Ledger) -> None:
    message = said("m")
    reply = answer("r", message)
    ledger.append([message, reply])
    assert ledger.traces.last(MARIA) is None
    first, second = new_id(), new_id()
    ledger.traces.put(first, MONDAY, reply.id, {"n": 1})
    ledger.traces.put(second, MONDAY, None, {"n": 2})
    assert ledger.traces.get(first, MARIA) == ledger.traces.get(reply.id, MONDAY) == {"n": 1}
    assert ledger.traces.last(MONDAY) == {"n": 2}
    with pytest.raises(RecordNotFound):
        ledger.traces.get(first, Scope(user="ben"))
    with pytest.raises(InputError, match="JSON"):
        ledger.traces.put(new_id(), MONDAY, None, {"n": object()})


@pytest.mark.parametrize(
    "fields",
    [
        {"created": datetime(2024, 1, 1)},
        {"meta": {"x": object()}},
        {"meta": {"x": float("nan")}},
        {"meta": {1: "a", "b": 2}},
    ],
)
def test_what_cannot_be_kept_as_it_is_is_refused(ledger: Ledger, fields: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ledger.append([said("x", **fields)])
    assert ledger.records(MARIA) == []


# Scopes: whatever is asked for, nothing of another scope is seen or changed.

names = st.sampled_from(["a", "b"])
scopes = st.builds(Scope, names, names, names, st.one_of(st.none(), names))


@settings(max_examples=25, deadline=None)
@given(written=st.lists(scopes, min_size=1, max_size=8), asker=scopes)
def test_no_read_or_erasure_reaches_beyond_its_scope(
    servers: Servers, written: list[Scope], asker: Scope
) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        servers.ledger(Path(folder) / "ledger.db") as ledger,
    ):
        batch = [said(str(index), scope) for index, scope in enumerate(written)]
        ledger.append(batch)
        for record in batch:
            ledger.traces.put(new_id(), record.scope, record.id, {"of": record.id})
        mine = [record for record in batch if asker.covers(record.scope)]
        ids = [record.id for record in batch]
        assert ledger.find(ids, asker) == ledger.records(asker) == mine
        assert ledger.records(asker, newest_first=True) == mine[::-1]
        assert ledger.records(asker, kinds=["message"], current_only=True, limit=99) == mine
        after = [record for record in batch[1:] if record in mine]
        assert ledger.records(asker, after=batch[0].id) == after
        named = {record.scope.session for record in mine if record.scope.session}
        assert {info.id for info in ledger.sessions(asker)} == named
        assert (ledger.traces.last(asker) or {}).get("of") == (mine[-1].id if mine else None)
        for record in batch:
            covered = asker.covers(record.scope)
            for read in (ledger.get, ledger.history, ledger.traces.get):
                with no_raise() if covered else pytest.raises(RecordNotFound):
                    read(record.id, asker)
        if asker.session:
            assert [turn.user for turn in ledger.turns(asker)] == mine
        assert ledger.erase(ids, asker) == {record.id for record in mine}
        others = {record.scope for record in batch if record not in mine}
        left = {record.id for scope in others for record in ledger.records(scope)}
        assert left == {record.id for record in batch if record not in mine}


@contextmanager
def no_raise() -> Iterator[None]:
    yield


# A model: any sequence of appends, supersessions and erasures, against plain lists.

steps = st.lists(st.tuples(st.sampled_from(["append", "supersede", "erase"]), st.integers(0, 9)))


@settings(max_examples=25, deadline=None)
@given(script=steps)
def test_any_history_of_writes_ends_in_the_state_of_a_simple_model(
    servers: Servers,
    script: list[tuple[str, int]],
) -> None:
    model: dict[RecordId, Record] = {}  # in ledger order, with `supersedes` as it stands
    with (
        tempfile.TemporaryDirectory() as folder,
        servers.ledger(Path(folder) / "ledger.db") as ledger,
    ):
        for verb, pick in script:
            heirs = {record.supersedes for record in model.values()}
            heads = [id for id in model if id not in heirs]
            if verb == "erase" and model:
                gone = list(model.values())[pick % len(model)]
                assert ledger.erase([gone.id], MARIA) == {gone.id}
                del model[gone.id]
                for id, record in model.items():
                    if record.supersedes == gone.id:
                        model[id] = replace(record, supersedes=gone.supersedes)
            else:
                old = heads[pick % len(heads)] if verb == "supersede" and heads else None
                record = said(f"{verb} {pick}", kind="fact", supersedes=old)
                ledger.append([record])
                model[record.id] = record
        ends = {r.supersedes: r.valid_from for r in model.values() if r.supersedes}
        expected = [replace(r, valid_to=ends.get(r.id)) for r in model.values()]
        assert ledger.records(MARIA) == expected
        assert ledger.records(MARIA, current_only=True) == [r for r in expected if r.current]
        ledger.verify_chain()
        if model:
            assert ledger.append(model.values()) == 0


# The chain.


def test_events_tell_what_happened_without_a_word_of_text(ledger: Ledger) -> None:
    secret = "xylophone-4711"
    old = said(secret, meta={"note": secret})
    new = said("other", kind="correction", supersedes=old.id)
    ledger.append([old, new])
    ledger.erase([new.id], MARIA)
    events = ledger.events()
    assert [(event.kind, event.subject) for event in events] == [
        ("append", old.id),
        ("append", new.id),
        ("supersede", old.id),
        ("erase", new.id),
        ("revise", old.id),
    ]
    assert [event.seq for event in events] == [1, 2, 3, 4, 5]
    assert events[0].prev == "0" * 64 and ledger.head() == events[-1].hash
    assert [event.seq for event in ledger.events(after=2, limit=2)] == [3, 4]
    assert secret not in json.dumps([dict(event.payload) for event in events])
    assert old.content_hash not in json.dumps([dict(event.payload) for event in events])


TAMPER: dict[str, tuple[str, str]] = {
    "a text": ("UPDATE records SET text = 'changed' WHERE seq = 3", "event 3"),
    "trust": ("UPDATE records SET trust = 0.9 WHERE seq = 2", "event 2"),
    "an owner": ("UPDATE records SET user = 'ben', session = NULL WHERE seq = 4", "event 4"),
    "an end": ("UPDATE records SET valid_to = created WHERE seq = 2", "event 2"),
    "meta": ("UPDATE records SET meta = '{\"a\": 1}' WHERE seq = 2", "event 2"),
    "text and hash": ("UPDATE records SET text = 'x', commitment = 'x' WHERE seq = 2", "event 2"),
    "a record gone": ("DELETE FROM records WHERE seq = 3", "event 3"),
    "a record from nowhere": (
        "INSERT INTO records SELECT 'x', 99, tenant, user, agent, session, kind, role, source,"
        " text, created, valid_from, valid_to, trust, content_hash, salt, commitment, NULL, NULL,"
        " meta FROM records WHERE seq = 1",
        "after event 5",
    ),
    "an event's subject": ("UPDATE events SET subject = 'x' WHERE seq = 2", "event 2"),
    "an event's time": ("UPDATE events SET at = '2020-01-01 00:00:00' WHERE seq = 3", "event 3"),
    "an event's payload": ("UPDATE events SET payload = '{}' WHERE seq = 4", "event 4"),
    "an event gone": ("DELETE FROM events WHERE seq = 2", "event 2"),
    "the first event gone": ("DELETE FROM events WHERE seq = 1", "event 1"),
    "the last event gone": ("DELETE FROM events WHERE seq = 5", "event 5"),
    "events exchanged": ("UPDATE events SET seq = 7 - seq WHERE seq IN (3, 4)", "event 3"),
}


@sqlite_only
@pytest.mark.parametrize("what", TAMPER)
def test_tampering_is_found_and_the_first_bad_event_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "ledger.db"
    statement, place = TAMPER[what]
    with Ledger.open(path) as ledger:
        batch = [said(f"text {index}") for index in range(5)]
        ledger.append(batch)
        ledger.verify_chain()
        with sqlite3.connect(path) as raw:
            if "exchanged" in what:
                raw.execute("UPDATE events SET seq = -seq WHERE seq IN (3, 4)")
                statement = "UPDATE events SET seq = 7 + seq WHERE seq < 0"
            assert raw.execute(statement).rowcount > 0
        raw.close()
        with pytest.raises(ChainBroken, match=rf"\b{place}\b"):
            ledger.verify_chain()


@sqlite_only
def test_an_event_that_was_rewritten_with_a_fitting_hash_breaks_the_next_link(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as ledger:
        ledger.append([said(f"text {index}") for index in range(3)])
        forged = replace(ledger.events()[1], at=datetime(2020, 1, 1, tzinfo=UTC))
        with sqlite3.connect(path) as raw:
            raw.execute(
                "UPDATE events SET at = '2020-01-01 00:00:00', hash = ? WHERE seq = 2",
                [forged.expected_hash()],
            )
        raw.close()
        with pytest.raises(ChainBroken, match="event 3"):
            ledger.verify_chain()


@sqlite_only
def test_an_erased_text_is_in_no_byte_of_the_files_and_cannot_be_confirmed_by_guessing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    secret = "the vault code is 7391 " * 400
    with Ledger.open(path) as ledger:
        keep, gone = said("keep"), said(secret, meta={"hint": "vault-7391"})
        ledger.append([keep, gone])
        with sqlite3.connect(path) as raw:
            [(salt, content_hash)] = raw.execute(
                "SELECT salt, content_hash FROM records WHERE id = ?", [gone.id]
            )
        raw.close()
        on_disk = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        assert all(needle.encode() in on_disk for needle in ("vault code", salt, content_hash))
        ledger.erase([gone.id], MARIA)
        ledger.purge()
        on_disk = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        for needle in ("vault code", "vault-7391", salt, content_hash):
            assert needle.encode() not in on_disk
        assert b"keep" in on_disk
        ledger.verify_chain()


@sqlite_only
def test_a_purge_that_a_reader_holds_up_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    monkeypatch.setitem(palimpsest_pragmas(), "busy_timeout", 50)
    with Ledger.open(path) as ledger:
        record = said("x")
        ledger.append([record])
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM records").fetchall()
        ledger.erase([record.id], MARIA)
        with pytest.raises(LedgerError, match="reader"):
            ledger.purge()
        reader.close()
        ledger.purge()


def palimpsest_pragmas() -> dict[str, Any]:
    from palimpsest.memory import database

    return database.PRAGMAS


# Threads, faults and crashes.


def test_threads_write_and_read_at_once_without_losing_anything(ledger: Ledger) -> None:
    def work(number: int) -> list[Record]:
        scope = Scope(user=f"user {number}", session="s")
        mine = [said(f"{number}.{index}", scope) for index in range(12)]
        for record in mine:
            ledger.append([record])
            assert ledger.get(record.id, scope) == record
        return mine

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(work, range(8)))
    for number, mine in enumerate(done):
        assert ledger.records(Scope(user=f"user {number}")) == mine
    assert ledger.last_seq() == 8 * 12
    ledger.verify_chain()


def test_two_ledgers_on_one_database_keep_one_chain(servers: Servers, tmp_path: Path) -> None:
    with servers.ledger(tmp_path / "ledger.db") as first:
        second = Ledger.open(servers.place(tmp_path / "ledger.db"))
        with ThreadPoolExecutor(2) as pool:
            for future in [
                pool.submit(ledger.append, [said(f"{index}")])
                for index in range(20)
                for ledger in (first, second)
            ]:
                future.result()
        assert len(first.records(MARIA)) == len(second.records(MARIA)) == 40
        first.verify_chain()
        second.close()


@sqlite_only
def test_the_pragmas_that_durability_and_erasure_rest_on_are_set(ledger: Ledger) -> None:
    with ledger._database.read() as session:
        values = {
            name: session.connection().exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "secure_delete", "foreign_keys")
        }
    assert values == {
        "journal_mode": "wal",
        "synchronous": 2,
        "secure_delete": 1,
        "foreign_keys": 1,
    }


def test_no_error_repeats_a_text(ledger: Ledger) -> None:
    engine = ledger._database._engine
    trap = Trap()
    event.listen(engine, "before_cursor_execute", trap)
    with pytest.raises(LedgerError) as caught:
        ledger.append([said("a very private matter")])
    error: BaseException | None = caught.value
    while error is not None:
        assert "private" not in str(error)
        error = error.__cause__


class Trap:
    """Makes the insertion of records fail in the database itself."""

    def __call__(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO records"):
            cursor.execute("DROP TABLE parents")
            cursor.execute("DROP TABLE lineage")
            cursor.execute("DROP TABLE traces")
            cursor.execute("DROP TABLE records")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"this is no database at all, " * 100, "NOTADB"),
        (b"SQLite format 3\0" + b"\xff" * 5000, "SQLITE_"),
    ],
)
def test_a_file_that_is_no_ledger_is_reported_and_left_alone(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=rf"(?s){path}.*{reason}.*restore"):
        Ledger.open(path)
    assert path.read_bytes() == content


def test_a_damaged_page_is_reported_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as ledger:
        ledger.append([said("x" * 3000) for _ in range(20)])
        ledger.purge()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xa5" * (size - 8192))
    with pytest.raises(LedgerError, match=r"(?s)SQLITE_(CORRUPT|NOTADB).*restore"):  # noqa: SIM117
        with Ledger.open(path) as ledger:
            ledger.verify_chain()


def test_a_full_disk_keeps_nothing_of_the_write_and_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as ledger:
        ledger.append([said("before")])
        with ledger._database.read() as session:
            pages = session.connection().exec_driver_sql("PRAGMA page_count").scalar_one()
        limit = limited(pages + 2)
        engine = ledger._database._engine
        event.listen(engine, "begin", limit)
        with pytest.raises(LedgerError, match=rf"{path}.*full.*free some space"):
            ledger.append([said("y" * 100_000), said("z")])
        assert texts(ledger.records(MARIA)) == ["before"]
        event.remove(engine, "begin", limit)
        event.listen(engine, "begin", limited(1_000_000))
        ledger.append([said("after")])
        assert texts(ledger.records(MARIA)) == ["before", "after"]
        ledger.verify_chain()


def limited(pages: int) -> Callable[[Any], None]:
    def set_limit(connection: Any) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    return set_limit


def test_a_folder_that_cannot_be_written_to_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LedgerError, match="choose a folder"):
        Ledger.open(tmp_path / "file" / "ledger.db")


@contextmanager
def read_only_folder() -> Iterator[Path]:
    """A folder with a ledger in it that this process may not write to, even when run by root."""
    folder = Path(tempfile.mkdtemp())
    with Ledger.open(folder / "ledger.db") as ledger:
        ledger.append([said("x")])
    for file in folder.iterdir():
        file.chmod(0o444)
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(user)
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="POSIX permissions")
def test_a_read_only_ledger_is_reported_with_the_remedy() -> None:
    with read_only_folder() as folder:
        with pytest.raises(LedgerError, match=rf"{folder}.*(writable|may write)"):
            Ledger.open(folder / "ledger.db")
        with pytest.raises(LedgerError, match="may write"):
            Ledger.open(folder / "new.db")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite://", "file"),
        ("mysql://localhost/x", "scheme 'mysql'"),
        ("post gres://me:hunter2@x", "cannot be read"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        Ledger.open(url)
    assert "hunter2" not in str(caught.value)
