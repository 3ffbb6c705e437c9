"""The memory stream: what it recalls, in what form, and that it mends itself after a crash."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import BaseMessage
from palimpsest.errors import ConfigError, StoreError, UnknownName
from palimpsest.llm.places import Prompt
from palimpsest.llm.scripted import ScriptedLLM
from palimpsest.memory.base import Cue, StoreContext
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.record import Kind, Record, RecordId, Scope, Source, Turn
from palimpsest.memory.registry import open_memory
from palimpsest.memory.stream.memory import StreamMemory

from ..servers import POSTGRES, Servers, sqlite_only

START = datetime(2026, 1, 1, tzinfo=UTC)
MONDAY = Scope(session="monday")
TUESDAY = Scope(session="tuesday")
Open = Callable[..., StreamMemory]

FILLER = (
    "The kettle boils slowly.",
    "Trains to the north are late.",
    "A heron stood in the pond.",
    "Paint dries in two hours.",
    "The library shuts at six.",
    "Bread needs salt and water.",
    "Clouds came over the hill.",
    "Chess clubs meet in winter.",
    "My neighbour mends bicycles.",
    "Yellow leaves fill the gutter.",
)


@pytest.fixture
def open_stream(servers: Servers, tmp_path: Path) -> Iterator[Open]:
    opened: list[StreamMemory] = []

    def open_one(llm: ScriptedLLM | None = None, **options: Any) -> StreamMemory:
        context = StoreContext(
            folder=tmp_path,
            llm=llm or ScriptedLLM(lambda messages: "unused"),
            embedder=HashingEmbedder,
            database_url=servers.database(tmp_path) if POSTGRES else None,
        )
        store = open_memory("scm", context, options)
        assert isinstance(store, StreamMemory)
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.close()


_ticks = iter(range(10**6))


def record(text: str, scope: Scope = MONDAY, **fields: Any) -> Record:
    created = START + timedelta(seconds=next(_ticks))
    return Record(text=text, scope=scope, created=created, **fields)


def fact(text: str, source: Source = "user", kind: Kind = "fact", **fields: Any) -> Record:
    return record(text, source=source, kind=kind, **fields)


def exchange(heard: str, said: str, scope: Scope = MONDAY) -> Turn:
    asked = record(heard, scope)
    reply = record(said, scope, role="assistant", source="assistant", parents=(asked.id,))
    return Turn(asked, reply)


def both(*turns: Turn) -> list[Record]:
    return [part for turn in turns for part in (turn.user, turn.reply) if part]


def summary(turn: Turn, text: str) -> Record:
    ids = tuple(part.id for part in both(turn))
    return record(text, kind="summary", role="assistant", source="assistant", parents=ids)


def recall(
    store: StreamMemory, message: str, budget: int = 2000, recent: Sequence[Turn] = ()
) -> Prompt:
    return store.recall(
        Cue(message=message, scope=TUESDAY, recent=tuple(recent), budget=budget, now=START)
    )


def heads(given: Prompt) -> list[RecordId | str]:
    return [note.records[0] for note in given.notes]


def test_an_exchange_is_recalled_whole_with_who_said_what(open_stream: Open) -> None:
    store = open_stream()
    turn = exchange("My cello is from 1890.", "That is an old cello.")
    store.write(both(turn))
    [note] = recall(store, "How old is my cello?").notes
    assert note.text == "My cello is from 1890.\n  you answered: That is an old cello."
    assert note.records == tuple(part.id for part in both(turn))
    assert (note.source, note.form, note.when) == ("user", "raw", turn.user.created)


def test_a_reply_that_comes_later_completes_its_item(open_stream: Open) -> None:
    store = open_stream()
    turn = exchange("My cello is from 1890.", "That is an old cello.")
    store.write([turn.user])
    assert recall(store, "How old is my cello?").notes[0].text == turn.user.text
    store.write(both(turn)[1:])
    assert "That is an old cello." in recall(store, "How old is my cello?").notes[0].text


def test_a_second_answer_takes_the_place_of_the_first(open_stream: Open) -> None:
    store = open_stream()
    turn = exchange("Where is my cello?", "In Oslo.")
    assert turn.reply is not None
    again = dataclasses.replace(
        turn.reply, id=RecordId("Z" * 26), text="In Porto.", supersedes=turn.reply.id
    )
    store.write([*both(turn), again])
    [note] = recall(store, "Where is my cello now?").notes
    assert "Porto" in note.text and "Oslo" not in note.text
    assert note.records == (turn.user.id, again.id)


def test_a_corrected_fact_is_held_and_never_recalled(open_stream: Open) -> None:
    store = open_stream()
    old = fact("My cello is in Oslo.")
    new = fact("My cello is in Porto.", kind="correction", supersedes=old.id)
    store.write([old, new])
    assert heads(recall(store, "Where is my cello?")) == [new.id]
    assert {old.id, new.id} <= store.held()


def test_what_belongs_to_no_item_is_left_out(open_stream: Open) -> None:
    store = open_stream()
    orphan = record("Hello?", role="assistant", source="assistant")
    rule = record("You are helpful.", role="system")
    result = record("42", role="tool", source="tool")
    assert store.write([orphan, rule, result]) == []
    assert store.held() == frozenset()


def test_forgetting_a_message_takes_its_reply_and_its_summary_along(open_stream: Open) -> None:
    store = open_stream()
    turn = exchange("My cello is from 1890.", "That is an old cello.")
    short = summary(turn, "An old cello.")
    store.write([*both(turn), short])
    assert store.forget({turn.user.id}).erased == {r.id for r in [*both(turn), short]}
    assert recall(store, "the old cello").notes == ()


def test_forgetting_a_reply_leaves_the_message_and_says_that_the_item_changed(
    open_stream: Open,
) -> None:
    store = open_stream()
    turn = exchange("My cello is from 1890.", "That is an old cello.")
    assert turn.reply is not None
    store.write(both(turn))
    erasure = store.forget({turn.reply.id})
    assert erasure.erased == {turn.reply.id}
    assert erasure.rebuilt == (f"item:{turn.user.id}",)
    assert recall(store, "my cello").notes[0].text == turn.user.text


@sqlite_only
def test_the_text_of_what_is_forgotten_is_gone_from_the_streams_own_file(
    open_stream: Open, tmp_path: Path
) -> None:
    store = open_stream()
    told = fact("The word is marzipan.")
    store.write([told, fact("Something else.")])
    files = list((tmp_path / "scm").glob("stream.sqlite3*"))
    assert any(b"marzipan" in file.read_bytes() for file in files)
    store.forget({told.id})
    store.purge()
    assert not any(b"marzipan" in file.read_bytes() for file in files)


def test_the_previous_turn_is_there_as_messages_and_is_not_recalled_again(
    open_stream: Open,
) -> None:
    store = open_stream(gate="always")
    turns = [exchange(f"cello question {i}", f"cello answer {i}", TUESDAY) for i in range(4)]
    store.write(both(*turns))
    given = recall(store, "cello", recent=turns)
    assert [message.content for message in given.turns] == ["cello question 3", "cello answer 3"]
    assert set(heads(given)) == {turn.user.id for turn in turns[:3]}
    assert given.records[-2:] == tuple(part.id for part in both(turns[3]))


def test_a_previous_turn_that_was_cut_short_is_recalled_instead(open_stream: Open) -> None:
    store = open_stream(gate="always")
    told = record("My cello is in Porto.", TUESDAY)
    store.write([told])
    given = recall(store, "Where is my cello?", recent=[Turn(told)])
    assert given.turns == () and given.records == (told.id,)


def test_without_flash_memory_the_previous_turn_is_recalled_like_any_other(
    open_stream: Open,
) -> None:
    store = open_stream(flash_turns=0)
    turn = exchange("cello question", "cello answer", TUESDAY)
    store.write(both(turn))
    given = recall(store, "the cello", recent=[turn])
    assert given.turns == () and heads(given) == [turn.user.id]


def test_without_activation_there_is_only_the_previous_turn(open_stream: Open) -> None:
    store = open_stream(k=0)
    turns = [exchange(f"cello question {i}", f"cello answer {i}", TUESDAY) for i in range(3)]
    store.write(both(*turns))
    given = recall(store, "cello", recent=turns)
    assert len(given.turns) == 2 and given.notes == ()


def test_a_long_previous_turn_stands_as_its_summary(open_stream: Open) -> None:
    store = open_stream(flash_raw=20)
    turn = exchange("Tell me about cellos. " * 10, "Cellos are big. " * 10, TUESDAY)
    store.write([*both(turn), summary(turn, "User: Asked of cellos.\n\nAssistant: They are big.")])
    given = recall(store, "And violins?", recent=[turn])
    assert [m.content for m in given.turns] == ["Asked of cellos.", "They are big."]


def test_a_long_previous_turn_without_a_summary_is_cut(open_stream: Open) -> None:
    store = open_stream(flash_raw=20)
    turn = exchange("Tell me about cellos. " * 10, "Cellos are big. " * 10, TUESDAY)
    store.write(both(turn))
    given = recall(store, "And violins?", recent=[turn])
    assert [str(m.content)[:6] for m in given.turns] == ["Tell m", "Cellos"]
    assert given.explain["flash_tokens"] <= 20


def test_fewer_items_than_k_and_a_first_turn_are_fine(open_stream: Open) -> None:
    """The released code compares with nothing at its second turn, and guards it by a count."""
    store = open_stream(k=6, gate="always")
    turn = exchange("My cello is old.", "I see.", TUESDAY)
    store.write([turn.user])
    assert recall(store, "My cello is old.").notes == ()
    store.write(both(turn))
    assert recall(store, "And now?", recent=[turn]).notes == ()


def test_a_question_asked_before_and_never_answered_does_not_answer_itself(
    open_stream: Open,
) -> None:
    store = open_stream(gate="always")
    told = fact("My cello is old.")
    store.write([told, record("How old is my cello?")])
    assert heads(recall(store, "How old is my cello?")) == [told.id]


def test_k_items_at_most_are_recalled_best_first(open_stream: Open) -> None:
    store = open_stream(k=2, gate="always", floor=0)
    store.write([fact(text) for text in FILLER])
    given = recall(store, "When does the library shut?")
    assert len(given.notes) == 2
    assert given.notes[0].text == "The library shuts at six."
    assert given.notes[0].score > given.notes[1].score


def test_what_scores_far_below_the_best_is_left_out(open_stream: Open) -> None:
    store = open_stream(gate="always", floor=0.6)
    store.write([fact(text) for text in FILLER])
    (only,) = recall(store, "When does the library shut?").notes
    assert only.text == "The library shuts at six."


def test_a_document_does_not_outrank_what_the_user_said(open_stream: Open) -> None:
    store = open_stream(gate="always", k=1)
    told = fact("The code word is marzipan.")
    store.write([fact("The code word is marzipan!", source="document", kind="document"), told])
    [note] = recall(store, "What is the code word?").notes
    assert (note.records, note.source) == ((told.id,), "user")


def test_recency_can_decide_when_it_is_asked_to(open_stream: Open) -> None:
    facts = [fact(f"The gate opens at {hour}.") for hour in ("six", "ten")]
    newest = [fact(text) for text in FILLER]
    store = open_stream(gate="always", w_rec=0.9, w_rel=0.1, k=3)
    store.write([*facts, *newest])
    assert newest[-1].id in heads(recall(store, "When does the gate open?"))


def test_the_relevance_gate_opens_for_what_was_said_and_shuts_for_what_was_not(
    open_stream: Open,
) -> None:
    store = open_stream()
    store.write([fact(text) for text in FILLER])
    opened = recall(store, "When does the library shut?")
    shut = recall(store, "zyx wvut qponm")
    assert opened.explain["gate"]["open"] and opened.notes
    assert not shut.explain["gate"]["open"] and shut.notes == ()
    assert shut.explain["gate"]["value"] < shut.explain["gate"]["threshold"]
    assert {each["reason"] for each in shut.explain["candidates"]} == {"gate"}


def test_a_single_item_can_be_told_from_chance(open_stream: Open) -> None:
    store = open_stream()
    store.write([fact("My cello is old.")])
    assert recall(store, "How old is my cello?").explain["gate"]["open"]
    assert not recall(store, "zyx wvut qponm").explain["gate"]["open"]


@pytest.mark.parametrize("leaning", [-1.0, 1.0])
def test_the_llm_gate_asks_the_model(open_stream: Open, leaning: float) -> None:
    def score(messages: Sequence[BaseMessage], answer: str) -> float:
        return leaning if answer == "Yes" and "library" in str(messages[-1].content) else 0.0

    store = open_stream(ScriptedLLM(lambda messages: "", score=score), gate="llm")
    assert store.capabilities.needs == {"logprobs"}
    store.write([fact(text) for text in FILLER])
    given = recall(store, "When does the library shut?")
    assert bool(given.notes) == given.explain["gate"]["open"] == (leaning > 0)


def test_no_model_is_asked_by_default_nor_by_a_write(open_stream: Open) -> None:
    llm = ScriptedLLM(lambda messages: pytest.fail("asked"))
    store = open_stream(llm, budget=60)
    turns = [exchange(f"cello {text}" * 5, "word " * 30) for text in FILLER]
    store.write(both(*turns))
    recall(store, "cello", recent=turns[-1:])
    assert llm.prompts == [] and store.capabilities.needs == frozenset()


def test_over_budget_the_summary_of_the_less_similar_item_takes_its_place(
    open_stream: Open,
) -> None:
    store = open_stream(gate="always", floor=0, budget=40)
    close = exchange("My cello is from 1890, made in Cremona.", "old " * 20)
    far = exchange("My cello teacher is kind.", "good " * 20)
    store.write([*both(close, far), summary(far, "A kind teacher of the cello.")])
    given = recall(store, "Was my cello made in Cremona in 1890?")
    assert [note.form for note in given.notes] == ["raw", "summary"]
    assert given.notes[1].records[:2] == tuple(part.id for part in both(far))
    assert given.explain["rounds"] == 2


def test_the_ablation_without_a_controller_takes_no_summaries(open_stream: Open) -> None:
    store = open_stream(gate="always", budget=40, reorganise="truncate")
    turns = [exchange("My cello is old.", "old " * 20), exchange("My cello is new.", "new " * 20)]
    store.write([*both(*turns), summary(turns[0], "Old."), summary(turns[1], "New.")])
    assert [note.form for note in recall(store, "My cello").notes] == ["raw"]


def test_a_short_item_has_no_summary_and_stands_as_it_is(open_stream: Open) -> None:
    """The first released code stored the whole prompt for a summary in its place."""
    store = open_stream(budget=3, gate="always")
    store.write([fact("My cello is very old indeed.")])
    [note] = recall(store, "cello").notes
    assert note.text and "My cello is very old indeed.".startswith(note.text)
    assert note.form == "raw"


def test_a_whole_book_in_one_record_costs_no_more_than_its_start(open_stream: Open) -> None:
    llm = ScriptedLLM(lambda messages: "")
    measured: list[int] = []
    count = llm.count_tokens
    llm.count_tokens = lambda text: measured.append(len(text)) or count(text)  # type: ignore
    store = open_stream(llm, gate="always", budget=50)
    store.write([fact("The cello sang. " * 50_000, source="document", kind="document")])
    [note] = recall(store, "Who sang?").notes
    assert 0 < note.tokens <= 50 and max(measured) <= 32 * 50


def test_a_merged_summary_of_several_items_is_an_item_while_all_of_them_are_there(
    open_stream: Open,
) -> None:
    store = open_stream(gate="always", floor=0)
    parts = [fact(f"Part {i} of the tale.", source="document", kind="document") for i in range(2)]
    merged = record("A tale of a cello.", kind="summary", parents=tuple(p.id for p in parts))
    store.write([*parts, merged])
    assert merged.id in heads(recall(store, "A tale of a cello"))
    assert {n.form for n in recall(store, "A tale of a cello").notes} == {"raw", "summary"}
    assert merged.id in store.forget({parts[0].id}).erased


def test_records_and_their_entries_change_together_or_not_at_all(
    open_stream: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_stream()
    kept = fact(FILLER[0])
    store.write([kept])
    digest = store.digest()

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "_refresh", killed)
        with pytest.raises(KeyboardInterrupt):
            store.write([fact("My cello is old.")])
        with pytest.raises(KeyboardInterrupt):
            store.forget([kept.id])
    store.close()
    assert open_stream().digest() == digest


def test_another_choice_of_keys_makes_the_entries_anew(open_stream: Open) -> None:
    turn = exchange("My cello is old.", "I see.")
    store = open_stream()
    store.write(both(turn))
    assert store._index.ids() == {f"{turn.user.id}:message", f"{turn.user.id}:reply"}
    store.close()
    assert open_stream(keys="paper")._index.ids() == {f"{turn.user.id}:raw"}


@sqlite_only
def test_a_file_that_is_no_database_is_a_store_error(open_stream: Open, tmp_path: Path) -> None:
    (tmp_path / "scm").mkdir()
    (tmp_path / "scm" / "stream.sqlite3").write_bytes(b"not a database, but long enough" * 100)
    with pytest.raises(StoreError, match=r"store scm .*stream\.sqlite3: .*doctor --fix"):
        open_stream()


def records_cut(saved: Path) -> None:
    whole = (saved / "records.json").read_bytes()
    (saved / "records.json").write_bytes(whole[: len(whole) // 2])


def one_record_broken(saved: Path) -> None:
    described = json.loads((saved / "records.json").read_text())
    del described["records"][-1]["body"]["text"]
    (saved / "records.json").write_text(json.dumps(described))


def vectors_cut(saved: Path) -> None:
    file = saved / "index" / "vectors.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def an_index_from_elsewhere(saved: Path) -> None:
    shutil.rmtree(saved / "index")
    shutil.copytree(saved.with_name("other") / "index", saved / "index")


@pytest.mark.parametrize(
    "damage",
    [
        records_cut,
        one_record_broken,
        vectors_cut,
        an_index_from_elsewhere,
        lambda saved: (saved / "records.json").write_text('[{"item": 3}]'),
        lambda saved: (saved / "index" / "entries.json").unlink(),
    ],
)
def test_a_damaged_snapshot_is_a_store_error_and_leaves_what_was_there(
    open_stream: Open, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    store = open_stream()
    store.write([fact("My bicycle is red.")])
    store.save(tmp_path / "other")
    store.rebuild(fact(text) for text in FILLER)
    store.save(tmp_path / "saved")
    store.rebuild([fact("My cello is old.")])
    before = store.digest(), recall(store, "How old is my cello?")
    damage(tmp_path / "saved")
    with pytest.raises(StoreError, match="cannot be read"):
        store.load(tmp_path / "saved")
    assert (store.digest(), recall(store, "How old is my cello?")) == before
    store.close()
    assert open_stream().digest() == before[0]


def test_a_load_that_is_cut_short_leaves_what_was_there(
    open_stream: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_stream()
    store.write([fact(text) for text in FILLER])
    store.save(tmp_path / "saved")
    store.rebuild([fact("My cello is old.")])
    before = store.digest()

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "_refresh", killed)
        store.load(tmp_path / "saved")
    assert store.digest() == before
    assert "cello" in recall(store, "How old is my cello?").notes[0].text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "maybe"}, "gate='maybe' must be one of"),
        ({"judge": "jury"}, "judge='jury' must be one of"),
        ({"keys": "none"}, "keys='none' must be one of"),
        ({"reorganise": "never"}, "reorganise='never' must be one of"),
        ({"budget": 0}, "budget=0 must be at least 1"),
        ({"k": -1}, "k=-1 must not be negative"),
        ({"rho": 1.5}, r"rho=1.5 must be within \[0, 1\]"),
        ({"least": 1.5}, r"least=1.5 must be within \[0, 1\]"),
        ({"depth": 3}, "no option 'depth'"),
    ],
)
def test_a_setting_that_breaks_its_rule_is_an_error(
    open_stream: Open, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        open_stream(**options)
    assert not isinstance(error.value, UnknownName)
