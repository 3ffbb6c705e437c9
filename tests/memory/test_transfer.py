"""Out of one ledger and into another: exactly, in part, and never by halves."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.errors import ChainBroken, InputError, LedgerError, PalimpsestError
from palimpsest.memory.ledger import Ledger
from palimpsest.memory.merging import Taken
from palimpsest.memory.record import Record, Scope, new_id

from ..servers import Servers

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MARIA = Scope(user="maria", session="monday")
JONAS = Scope(user="jonas", session="monday")
WHOLE = None


@pytest.fixture
def source(servers: Servers, tmp_path: Path) -> Iterator[Ledger]:
    with servers.ledger(tmp_path / "source.db") as ledger:
        yield ledger


@pytest.fixture
def target(servers: Servers, tmp_path: Path) -> Iterator[Ledger]:
    with servers.ledger(tmp_path / "target.db") as ledger:
        yield ledger


def lines(ledger: Ledger, scope: Scope | None = WHOLE) -> list[bytes]:
    return list(ledger.transfer.lines(scope))


def fact(text: str, scope: Scope = MARIA, **fields: Any) -> Record:
    return Record(text=text, scope=scope, kind="fact", **fields)


def a_life(ledger: Ledger) -> list[Record]:
    """Two users, a correction, a fork, a reply with grounds, a trace and something erased."""
    old, gone = fact("lives in Paris", meta={"x": [1.5, None, "ü\u2028"]}), fact("a secret")
    new = fact("lives in Lyon", supersedes=old.id)
    asked = Record(text="Where?", scope=replace(MARIA, session="tuesday"))
    reply = Record(
        text="Lyon", scope=asked.scope, role="assistant", source="assistant", parents=(asked.id,)
    )
    reply = replace(reply, parents=(asked.id, new.id))
    other = fact("skis", JONAS, valid_to=NOON, trust=0.25)
    ledger.append([old, gone, other])
    ledger.append([new])
    ledger.fork(MARIA, "branch", at=old.id)
    ledger.append([fact("in the branch", replace(MARIA, session="branch")), asked, reply])
    ledger.rename(MARIA, "A Monday")
    ledger.traces.put(new_id(), asked.scope, reply.id, {"notes": [new.id]})
    ledger.erase([gone.id], MARIA)
    return [old, new, other, asked, reply]


def test_a_whole_ledger_goes_over_byte_for_byte_and_its_chain_holds(
    source: Ledger, target: Ledger
) -> None:
    a_life(source)
    exported = lines(source)
    taken = target.transfer.take(exported)
    assert taken.exact and taken.added == 6 and taken.head == source.head()
    assert lines(target) == exported
    target.verify_chain()
    everything = Scope(user="maria")
    assert target.records(everything) == source.records(everything)
    assert target.sessions(everything) == source.sessions(everything)
    assert target.traces.last(everything) == source.traces.last(everything)


def test_a_ledger_that_was_taken_in_can_be_written_on(source: Ledger, target: Ledger) -> None:
    old, new, *_ = a_life(source)
    target.transfer.take(lines(source))
    target.append([fact("lives in Nice", supersedes=new.id)])
    assert [each.text for each in target.history(old.id, MARIA)][-1] == "lives in Nice"
    target.verify_chain()


@pytest.mark.parametrize("session", [None, "monday", "tuesday", "branch"])
def test_a_part_goes_over_byte_for_byte_and_nothing_else_with_it(
    source: Ledger, target: Ledger, session: str | None
) -> None:
    a_life(source)
    scope = replace(MARIA, session=session)
    exported = lines(source, scope)
    taken = target.transfer.take(exported)
    assert not taken.exact
    assert lines(target, scope) == exported
    assert not target.records(Scope(user="jonas"))
    if session:
        assert not any(name in b"".join(exported) for name in (b"skis", b"secret"))
        assert [each.id for each in target.sessions(scope.across_sessions())] == [session]
    target.verify_chain()


def test_what_was_corrected_from_outside_of_the_part_stays_corrected(
    source: Ledger, target: Ledger
) -> None:
    old = fact("lives in Paris")
    new = fact("lives in Lyon", replace(MARIA, session="later"), supersedes=old.id)
    source.append([old, new])
    target.transfer.take(lines(source, MARIA))
    [record] = target.records(MARIA)
    assert record.valid_to == new.valid_from and not record.current


def test_a_fork_reads_the_same_turns_in_the_other_ledger(source: Ledger, target: Ledger) -> None:
    first, second = (Record(text=text, scope=MARIA) for text in ("one", "two"))
    source.append([fact("noise", JONAS), first, second])
    branch = source.fork(MARIA, "branch", at=first.id)
    source.append([Record(text="three", scope=branch)])
    target.append([fact("was here before", JONAS), fact("and this", MARIA)])
    target.transfer.take(lines(source, Scope(user="maria")))
    said = [turn.user.text for turn in target.turns(branch)]
    assert said == [turn.user.text for turn in source.turns(branch)] == ["one", "three"]


def test_taking_in_twice_adds_nothing(source: Ledger, target: Ledger) -> None:
    a_life(source)
    target.append([fact("was here before")])
    first = target.transfer.take(lines(source))
    before = lines(target)
    second = target.transfer.take(lines(source))
    assert not first.exact and first.added == 6
    assert second == Taken(
        exact=False, added=0, known=6, forgotten=0, sessions=0, traces=0, head=first.head
    )
    assert lines(target) == before


def test_an_id_that_stands_for_something_else_here_stops_all_of_it(
    source: Ledger, target: Ledger
) -> None:
    mine = fact("what stands here")
    source.append([fact(f"new {n}") for n in range(600)])
    source.append([replace(mine, text="what stands there")])
    target.append([mine])
    before = lines(target)
    with pytest.raises(LedgerError, match=mine.id):
        target.transfer.take(lines(source))
    assert lines(target) == before


def test_what_was_forgotten_here_does_not_come_back(source: Ledger, target: Ledger) -> None:
    old, gone = fact("kept"), fact("forgotten")
    child = fact("made from both", parents=(old.id, gone.id))
    source.append([old, gone, child])
    target.transfer.take(lines(source))
    target.erase([gone.id], MARIA)
    later = fact("later", parents=(gone.id,))
    source.append([later])
    taken = target.transfer.take(lines(source))
    assert (taken.forgotten, taken.added) == (1, 1)
    assert {each.text for each in target.records(MARIA)} == {"kept", "made from both", "later"}
    target.verify_chain()


def test_a_record_may_come_again_after_it_was_erased(target: Ledger) -> None:
    record = fact("on, off, on")
    target.append([record])
    target.erase([record.id], MARIA)
    target.append([fact(f"between {n}") for n in range(600)])
    target.append([record])
    target.verify_chain()
    target.erase([record.id], MARIA)
    target.verify_chain()


Damage = Callable[[list[bytes]], list[bytes]]

DAMAGES: dict[str, Damage] = {
    "cut short": lambda whole: whole[:-1],
    "cut in a line": lambda whole: [*whole[:3], whole[3][: len(whole[3]) // 2]],
    "a line gone": lambda whole: whole[:3] + whole[4:],
    "a line twice": lambda whole: [*whole[:3], whole[2], *whole[3:]],
    "a text changed": lambda whole: [line.replace(b"Paris", b"Parma") for line in whole],
    "nothing": lambda whole: [],
    "another file": lambda whole: [b'{"results": []}\n'],
    "not JSON": lambda whole: [b"# A heading\n"],
    "a newer format": lambda whole: [whole[0].replace(b'"format":1', b'"format":2'), *whole[1:]],
    "an unknown row": lambda whole: [whole[0], b'{"is":"vector"}\n', *whole[1:]],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_export_is_refused_and_nothing_of_it_is_kept(
    source: Ledger, target: Ledger, damage: Damage
) -> None:
    a_life(source)
    empty = lines(target)
    with pytest.raises(InputError):
        target.transfer.take(damage(lines(source)))
    assert lines(target) == empty


def resealed(whole: list[bytes]) -> list[bytes]:
    """With an end that vouches for the lines as they are now."""
    import hashlib

    end = json.loads(whole[-1]) | {"sha256": hashlib.sha256(b"".join(whole[:-1])).hexdigest()}
    return [*whole[:-1], json.dumps(end).encode()]


def test_an_export_that_was_tampered_with_on_purpose_breaks_its_chain(
    source: Ledger, target: Ledger
) -> None:
    a_life(source)
    forged = resealed([line.replace(b"Paris", b"Parma") for line in lines(source)])
    empty = lines(target)
    with pytest.raises(ChainBroken):
        target.transfer.take(forged)
    assert lines(target) == empty


def test_a_row_that_is_no_row_is_named_by_its_line(source: Ledger, target: Ledger) -> None:
    a_life(source)
    odd = resealed([line.replace(b'"created":"2', b'"created":"x') for line in lines(source)])
    with pytest.raises(InputError, match="line 2"):
        target.transfer.take(odd)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
steps = st.lists(
    st.tuples(
        st.sampled_from(["say", "child", "correct", "fork", "erase", "trace"]),
        st.integers(0, 9),
        st.sampled_from([MARIA, JONAS, replace(MARIA, session="tuesday"), Scope(user="maria")]),
        texts.filter(lambda text: bool(text.strip())),
        st.dictionaries(st.text(max_size=5), values, max_size=2),
    ),
    max_size=14,
)


def live(ledger: Ledger, script: list[tuple[str, int, Scope, str, dict[str, Any]]]) -> None:
    for number, (verb, pick, scope, text, meta) in enumerate(script):
        family = scope.across_sessions()
        there = ledger.records(family)
        chosen = there[pick % len(there)] if there else None
        made = fact(text, scope, created=NOON + timedelta(seconds=pick), meta=meta)
        if verb == "erase" and chosen:
            ledger.erase([chosen.id], family)
        elif verb == "trace":
            ledger.traces.put(new_id(), scope, chosen.id if chosen else None, {"n": number})
        elif verb == "fork" and chosen and chosen.scope.session:
            ledger.fork(chosen.scope, f"fork {number}", at=chosen.id)
        elif verb == "child" and chosen:
            ledger.append([replace(made, parents=(chosen.id,))])
        elif verb == "correct" and chosen and chosen.current:
            ledger.append([replace(made, supersedes=chosen.id)])
        else:
            ledger.append([made])


@settings(max_examples=15, deadline=None)
@given(script=steps, mixed=steps)
def test_whatever_happened_goes_over_and_merges(servers: Servers, script: Any, mixed: Any) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        servers.ledger(Path(folder) / "a.db") as source,
        servers.ledger(Path(folder) / "b.db") as copy,
        servers.ledger(Path(folder) / "c.db") as part,
        servers.ledger(Path(folder) / "d.db") as merged,
    ):
        live(source, script)
        copy.transfer.take(lines(source))
        assert lines(copy) == lines(source)
        copy.verify_chain()
        family = Scope(user="maria")
        part.transfer.take(lines(source, family))
        assert lines(part, family) == lines(source, family)
        part.verify_chain()
        live(merged, mixed)
        before = {record.id for record in merged.records(family)}
        try:
            merged.transfer.take(lines(source))
        except PalimpsestError:
            assert {record.id for record in merged.records(family)} == before
        else:
            there = {record.id for record in merged.records(family)}
            assert there == before | {record.id for record in source.records(family)}
        merged.verify_chain()
