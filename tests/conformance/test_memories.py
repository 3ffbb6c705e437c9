"""What every memory holds to, whatever it is. A new one joins by a row in memories.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from palimpsest.llm.places import Prompt
from palimpsest.llm.scripted import ScriptedLLM
from palimpsest.memory.base import Cue, Memory
from palimpsest.memory.record import Record, RecordId, Scope, Turn

from ..servers import Servers
from .memories import ROWS, Row

START = datetime(2026, 1, 1, tzinfo=UTC)
MARIA = Scope(user="maria", session="monday")
OTHERS = (
    Scope(user="bob", session="monday"),
    Scope(user="maria", agent="other", session="monday"),
    Scope(user="maria", tenant="other", session="monday"),
)
count_tokens = ScriptedLLM(lambda messages: "").count_tokens

small = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Story:
    """Makes records as a ledger would hold them: every id after those it refers to."""

    def __init__(self, scope: Scope = MARIA) -> None:
        self.scope = scope
        self.records: list[Record] = []

    def tell(
        self,
        text: str,
        *,
        kind: str = "message",
        to: Sequence[RecordId] = (),
        supersedes: RecordId | None = None,
    ) -> RecordId:
        """Add a record: a message of the user, or a reply if it has parents."""
        number = len(self.records)
        mine = not to or kind == "correction"
        record = Record(
            id=RecordId(f"R{number:03}"),
            text=text,
            scope=self.scope,
            kind=kind,  # type: ignore[arg-type]
            role="user" if mine else "assistant",
            source="document" if kind == "document" else "user" if mine else "assistant",
            created=START + timedelta(seconds=number),
            parents=tuple(to),
            supersedes=supersedes,
        )
        self.records.append(record)
        return record.id

    def exchange(self, heard: str, said: str) -> tuple[RecordId, RecordId]:
        """A message and its reply."""
        asked = self.tell(heard)
        return asked, self.tell(said, to=[asked])


def a_week() -> Story:
    """Everything a ledger may hold: turns, facts, documents, corrections, second answers."""
    story = Story()
    hello, answer = story.exchange("I am Maria and I climb on weekends.", "Nice to meet you.")
    story.tell("Maria climbs; they greeted.", kind="summary", to=[hello, answer])
    food = story.tell("Maria eats no peanuts.", kind="fact")
    story.tell("The gym opens at nine. " * 20, kind="document")
    story.tell("Maria eats no nuts at all.", kind="correction", supersedes=food)
    asked, first = story.exchange("Where do I live?", "You live in Oslo.")
    second = story.tell("You live in Porto.", to=[asked])
    story.records[-1] = replace(story.records[-1], supersedes=first)
    story.tell("Asked where she lives: Porto.", kind="summary", to=[asked, second])
    story.exchange("My sister is Ingrid. " + "She sails. " * 60, "Sailing is fine. " * 60)
    return story


def cue(message: str, scope: Scope = MARIA, budget: int = 200, recent: Sequence[Turn] = ()) -> Cue:
    return Cue(message=message, scope=scope, recent=tuple(recent), budget=budget, now=START)


def turns(records: Sequence[Record]) -> list[Turn]:
    replies = {parent: r for r in records if r.role == "assistant" for parent in r.parents}
    return [Turn(r, replies.get(r.id)) for r in records if r.kind == "message" and r.role == "user"]


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    found: Row = request.param
    return found


@pytest.fixture
def memory(row: Row, servers: Servers, tmp_path: Path) -> Iterator[Memory]:
    store = row.open(tmp_path / "store", servers)
    yield store
    store.close()


@pytest.fixture
def another(row: Row, servers: Servers, tmp_path: Path) -> Iterator[Callable[[], Memory]]:
    """Opens further stores of the same row, each in a folder of its own."""
    opened: list[Memory] = []

    def open_one() -> Memory:
        opened.append(row.open(tmp_path / f"store-{len(opened)}", servers))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Any sequence of turns, facts, summaries, second answers and corrections."""
    story = Story()
    words = st.sampled_from(["climb", "Porto", "nuts", "sister", "sail", "gym", "teal", "cello"])
    text = st.lists(words, min_size=1, max_size=12).map(" ".join)
    for _ in range(draw(st.integers(2, 9))):
        old = [r for r in story.records if r.kind != "summary"]
        taken = {r.supersedes for r in story.records}
        free = [r for r in old if r.id not in taken]
        action = draw(st.sampled_from(["message", "reply", "fact", "document", "correct", "sum"]))
        asked = [r for r in old if r.kind == "message" and r.role == "user"]
        if action == "reply" and asked:
            story.tell(draw(text), to=[draw(st.sampled_from(asked)).id])
        elif action == "correct" and free:
            target = draw(st.sampled_from(free))
            story.tell(draw(text), kind="correction", supersedes=target.id)
        elif action == "sum" and old:
            of = st.sampled_from([r.id for r in story.records])
            chosen = draw(st.lists(of, min_size=1, max_size=3, unique=True))
            story.tell(draw(text), kind="summary", to=chosen)
        else:
            kind = action if action in ("message", "fact", "document") else "message"
            story.tell(draw(text), kind=kind)
    return story


@given(story=stories(), data=st.data())
@small
def test_forgetting_leaves_what_was_there_before(
    memory: Memory, story: Story, data: st.DataObject
) -> None:
    memory.clear()
    cut = data.draw(st.integers(0, len(story.records)), label="records before")
    before, after = story.records[:cut], story.records[cut:]
    memory.write(before)
    digest = memory.digest()
    memory.write(after)
    ids = {record.id for record in after}
    erasure = memory.forget(ids)
    assert memory.digest() == digest
    assert not memory.held() & ids
    assert ids <= erasure.erased | erasure.unknown
    assert not erasure.erased & erasure.unknown


@given(story=stories(), data=st.data())
@small
def test_forgetting_any_records_leaves_what_the_others_alone_would_make(
    memory: Memory, story: Story, data: st.DataObject
) -> None:
    chosen = data.draw(st.sets(st.sampled_from([r.id for r in story.records])), label="forgotten")
    rest = [record for record in story.records if record.id not in chosen]
    memory.rebuild(rest)
    digest, held = memory.digest(), memory.held()
    memory.rebuild(story.records)
    memory.forget(chosen)
    assert (memory.digest(), memory.held()) == (digest, held)


@given(story=stories(), data=st.data())
@small
def test_it_does_not_matter_how_a_write_is_split_or_repeated(
    memory: Memory, story: Story, data: st.DataObject
) -> None:
    memory.rebuild(story.records)
    digest = memory.digest()
    memory.clear()
    cuts = data.draw(st.lists(st.integers(0, len(story.records))).map(sorted), label="cuts")
    for start, end in itertools.pairwise([0, *cuts, len(story.records)]):
        memory.write(story.records[start:end])
    memory.write(story.records[len(story.records) // 2 :])
    assert memory.digest() == digest


@given(story=stories())
@small
def test_an_end_that_the_ledger_has_noted_changes_nothing(memory: Memory, story: Story) -> None:
    """Rebuilding sends superseded records with their end, the first writing sent them without."""
    memory.rebuild(story.records)
    digest = memory.digest()
    heirs = {record.supersedes: record for record in story.records}
    memory.rebuild(
        replace(r, valid_to=heirs[r.id].created) if r.id in heirs else r for r in story.records
    )
    assert memory.digest() == digest


@given(story=stories(), data=st.data())
@small
def test_forgetting_holds_after_a_purge_and_when_made_anew_from_what_the_ledger_has_left(
    memory: Memory, story: Story, data: st.DataObject
) -> None:
    chosen = data.draw(st.sets(st.sampled_from([r.id for r in story.records])), label="forgotten")
    rest = [record for record in story.records if record.id not in chosen]
    memory.rebuild(story.records)
    memory.forget(chosen)
    digest, held = memory.digest(), memory.held()
    memory.purge(rewrite=data.draw(st.booleans(), label="rewrite"))
    assert (memory.digest(), memory.held()) == (digest, held)
    memory.rebuild(rest)
    assert (memory.digest(), memory.held()) == (digest, held)


def test_no_mark_of_what_was_forgotten_is_left_in_the_files(
    row: Row, memory: Memory, tmp_path: Path
) -> None:
    """A text and the bytes that a store says stand for it: there before, and gone afterwards."""
    story = a_week()
    secret = story.tell("Ulrika breeds 47 axolotls beneath the staircase.", kind="fact")
    text = story.records[-1].text.encode()

    def there() -> list[bytes]:
        files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        return [mark for mark in (text, *marks) if any(mark in each for each in files)]

    memory.write(story.records)
    marks = list(memory.marks({secret}))
    assert set(marks) <= set(memory.marks())
    memory.purge()
    assert bool(there()) == (row.holds and row.on != "PostgreSQL")  # whose files it cannot know
    memory.forget({secret})
    memory.purge()
    standing = set(memory.marks())
    assert [mark for mark in there() if mark not in standing] == []


def test_a_superseded_record_is_recalled_again_once_its_heir_is_forgotten(
    row: Row, memory: Memory
) -> None:
    story = Story()
    old = story.tell("Maria keeps a cello in Porto.", kind="fact")
    new = story.tell("Maria keeps a cello in Oslo.", kind="correction", supersedes=old)
    memory.write(story.records[:1])
    memory.write([replace(story.records[0], valid_to=START), story.records[1]])
    asked = cue("Where is the cello of Maria?")
    assert set(memory.recall(asked).records) == ({new} if row.holds else set())
    memory.forget({new})
    assert set(memory.recall(asked).records) == ({old} if row.holds else set())


def test_ids_it_does_not_know_are_reported_and_change_nothing(memory: Memory) -> None:
    memory.write(a_week().records)
    digest = memory.digest()
    erasure = memory.forget({RecordId("nobody"), RecordId("nothing")})
    assert erasure.unknown == {"nobody", "nothing"} and not erasure.erased
    assert erasure.store == memory.name
    assert memory.digest() == digest


def test_forgetting_twice_is_forgetting_once(memory: Memory) -> None:
    story = a_week()
    memory.write(story.records)
    first = memory.forget({story.records[3].id})
    digest = memory.digest()
    second = memory.forget({story.records[3].id})
    assert memory.digest() == digest
    assert second.erased == frozenset() and second.unknown == first.erased | first.unknown


def test_edges_name_what_is_held_and_nothing_else(row: Row, memory: Memory) -> None:
    story = a_week()
    edges = memory.write(story.records)
    assert {edge.record for edge in edges} == memory.held()
    assert bool(edges) == row.holds
    assert memory.write(story.records) == edges


def test_different_contents_have_different_digests(row: Row, memory: Memory) -> None:
    digests = []
    for records in ([], a_week().records[:1], a_week().records):
        memory.rebuild(records)
        digests.append(memory.digest())
    assert len(set(digests)) == (3 if row.holds else 1)


def test_recall_changes_nothing_and_repeats_itself(memory: Memory) -> None:
    story = a_week()
    memory.write(story.records)
    digest = memory.digest()
    asked = cue("Where does Maria live, and what does she eat?", recent=turns(story.records))
    assert memory.recall(asked) == memory.recall(asked)
    assert memory.digest() == digest


def test_saving_and_loading_gives_the_same_memory(
    memory: Memory, another: Callable[[], Memory], tmp_path: Path
) -> None:
    story = a_week()
    memory.write(story.records)
    memory.save(tmp_path / "saved")
    copy = another()
    copy.write(Story(OTHERS[0]).records)
    copy.load(tmp_path / "saved")
    asked = cue("What does Maria eat?", recent=turns(story.records)[-1:])
    assert copy.digest() == memory.digest()
    assert copy.held() == memory.held()
    assert copy.recall(asked) == memory.recall(asked)
    copy.forget({story.records[0].id})
    memory.forget({story.records[0].id})
    assert copy.digest() == memory.digest()


def test_closing_and_opening_again_loses_nothing(
    row: Row, servers: Servers, tmp_path: Path
) -> None:
    store = row.open(tmp_path / "kept", servers)
    store.write(a_week().records)
    digest, given = store.digest(), store.recall(cue("What does Maria eat?"))
    store.close()
    store.close()
    store = row.open(tmp_path / "kept", servers)
    assert store.digest() == digest
    assert store.recall(cue("What does Maria eat?")) == given
    store.close()


@pytest.mark.parametrize("stranger", OTHERS, ids=("user", "agent", "tenant"))
def test_nothing_is_told_to_another_scope(memory: Memory, stranger: Scope) -> None:
    memory.write(a_week().records)
    contribution = memory.recall(cue("What does Maria eat, and where does she live?", stranger))
    assert contribution.records == ()


def test_other_sessions_of_the_same_user_are_remembered(row: Row, memory: Memory) -> None:
    memory.write(a_week().records)
    tuesday = replace(MARIA, session="tuesday")
    told = memory.recall(cue("What does Maria eat?", tuesday)).records
    assert bool(told) == (row.holds and row.across)


def test_an_empty_memory_gives_nothing(memory: Memory) -> None:
    given = memory.recall(cue("Anything?"))
    assert given.records == () and given.memory == memory.name
    assert memory.held() == frozenset()
    memory.forget(set())
    memory.rebuild([])


@pytest.mark.parametrize("budget", [0, 1, 3, 10, 40, 150, 2000])
def test_the_budget_is_never_exceeded(memory: Memory, budget: int) -> None:
    story = a_week()
    memory.write(story.records)
    for recent in ([], turns(story.records)[-1:], turns(story.records)):
        given = memory.recall(cue("Where does Ingrid sail?", budget=budget, recent=recent))
        if isinstance(given, Prompt):
            notes = sum(count_tokens(note.text) for note in given.notes)
            spoken = sum(count_tokens(str(message.content)) for message in given.turns)
            assert notes + spoken <= budget
            assert all(note.tokens == count_tokens(note.text) for note in given.notes)


def test_an_explanation_holds_no_text(memory: Memory) -> None:
    story = a_week()
    memory.write(story.records)
    explained = str(memory.recall(cue("Who sails?", recent=turns(story.records))).explain)
    assert not any(word in explained for word in ("Ingrid", "sail", "Porto", "peanuts"))


def test_what_it_derives_is_held_and_forgotten_like_the_rest(memory: Memory) -> None:
    story = a_week()
    memory.write(story.records)
    digest = memory.digest()
    derived = []
    for record in memory.derive(Event()):
        memory.write([record])
        derived.append(record)
    assert bool(derived) == memory.capabilities.derives
    assert {r.id for r in derived} <= memory.held()
    assert list(memory.derive(Event())) == []
    memory.forget({r.id for r in derived})
    assert memory.digest() == digest


def test_deriving_stops_when_told_to(memory: Memory) -> None:
    memory.write(a_week().records)
    cancel = Event()
    cancel.set()
    assert list(memory.derive(cancel)) == []
