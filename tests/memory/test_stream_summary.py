"""Turn summaries: made between turns, shorter than what they summarise, and never twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event

import pytest
from langchain_core.messages import BaseMessage
from palimpsest.llm.scripted import ScriptedLLM
from palimpsest.memory.base import StoreContext
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.record import Record, Scope
from palimpsest.memory.stream.config import StreamConfig
from palimpsest.memory.stream.items import sides
from palimpsest.memory.stream.memory import StreamMemory

SCOPE = Scope(user="maria", session="monday")
Open = Callable[[ScriptedLLM], StreamMemory]


@pytest.fixture
def open_stream(tmp_path: Path) -> Iterator[Open]:
    opened: list[StreamMemory] = []

    def open_one(llm: ScriptedLLM) -> StreamMemory:
        context = StoreContext(folder=tmp_path, llm=llm, embedder=HashingEmbedder)
        opened.append(StreamMemory("scm", context, StreamConfig()))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


def answering(reply: str) -> ScriptedLLM:
    return ScriptedLLM(lambda messages: reply)


def turn(heard: str, said: str) -> list[Record]:
    asked = Record(text=heard, scope=SCOPE)
    reply = Record(
        text=said, scope=SCOPE, role="assistant", source="assistant", parents=(asked.id,)
    )
    return [asked, reply]


LONG = turn("Tell me of cellos. " * 30, "They are large and low. " * 40)


def test_a_long_exchange_gets_a_sentence_for_each_side(open_stream: Open) -> None:
    llm = answering("User: Asked of cellos.\n\nAssistant: They are\nlarge.\n\nAnd low.")
    store = open_stream(llm)
    store.write(LONG)
    [record] = store.derive(Event())
    assert sides(record.text) == ("Asked of cellos.", "They are large. And low.")
    assert (record.kind, record.role, record.source) == ("summary", "assistant", "assistant")
    assert record.parents == tuple(part.id for part in LONG)
    assert (record.scope, record.meta) == (SCOPE, {"made": "model"})
    [[prompt]] = llm.prompts
    assert LONG[1].text.strip() in str(prompt.content)


def test_an_answer_in_one_paragraph_is_the_assistants_side(open_stream: Open) -> None:
    store = open_stream(answering("Cellos are large."))
    store.write(LONG)
    [record] = store.derive(Event())
    heard, said = sides(record.text) or ("", "")
    assert LONG[0].text.startswith(heard) and heard
    assert said == "Cellos are large."


def test_a_long_document_gets_one_text_and_no_more_trust_than_it_has(open_stream: Open) -> None:
    store = open_stream(answering("Of\n\ncellos."))
    store.write([Record(text="Of cellos. " * 200, scope=SCOPE, kind="document", source="document")])
    [record] = store.derive(Event())
    assert (record.text, record.trust) == ("Of cellos.", 0.3)


def test_short_items_are_left_as_they_are(open_stream: Open) -> None:
    llm = answering("unused")
    store = open_stream(llm)
    store.write(turn("My cello is old.", "I see."))
    assert list(store.derive(Event())) == [] and llm.prompts == []


def test_an_item_that_grows_is_looked_at_again(open_stream: Open) -> None:
    store = open_stream(answering("Short."))
    store.write(LONG[:1])
    assert list(store.derive(Event())) == []
    store.write(LONG[1:])
    assert len(list(store.derive(Event()))) == 1


def test_what_has_a_summary_is_not_summarised_again(open_stream: Open) -> None:
    llm = answering("Cellos.")
    store = open_stream(llm)
    store.write(LONG)
    store.write(list(store.derive(Event())))
    assert list(store.derive(Event())) == [] and len(llm.prompts) == 1


@pytest.mark.parametrize("reply", ["", " \n\n ", "=====\n====="])
def test_a_model_that_says_nothing_is_asked_once_and_an_excerpt_stands_in(
    open_stream: Open, reply: str
) -> None:
    llm = answering(reply)
    store = open_stream(llm)
    store.write(LONG)
    [record] = store.derive(Event())
    assert record.meta == {"made": "opening"}
    heard, said = sides(record.text) or ("", "")
    assert LONG[0].text.startswith(heard) and LONG[1].text.startswith(said)
    store.write([record])
    assert list(store.derive(Event())) == [] and len(llm.prompts) == 1


@pytest.mark.parametrize("words", [33, 50, 200, 3000])
def test_a_summary_is_shorter_than_its_item_however_much_the_model_says(
    tmp_path: Path, words: int
) -> None:
    def rambling(messages: Sequence[BaseMessage]) -> str:
        return "more " * 5000

    llm = ScriptedLLM(rambling)
    context = StoreContext(folder=tmp_path, llm=llm, embedder=HashingEmbedder)
    store = StreamMemory("scm", context, StreamConfig(summarise_above=0))
    store.write([*turn("why " * (words // 2), "so " * words), *turn("a " * words, "b")])
    for record in store.derive(Event()):
        item = store._item(record.parents[0])
        assert item is not None
        assert llm.count_tokens(record.text) < llm.count_tokens(item.raw)
    store.close()


def test_a_text_longer_than_the_window_is_summarised_by_its_start(open_stream: Open) -> None:
    llm = ScriptedLLM(lambda messages: "Of cellos.", context_window=600)
    store = open_stream(llm)
    store.write(turn("Tell me of cellos. " * 500, "They are large. " * 500))
    [record] = store.derive(Event())
    assert record.meta == {"made": "model"}


def test_cancelling_in_the_middle_of_a_summary_leaves_it_for_the_next_time(
    open_stream: Open,
) -> None:
    cancel = Event()

    def interrupted(messages: Sequence[BaseMessage]) -> str:
        if len(llm.prompts) == 1:
            cancel.set()
        return "Cellos are large."

    llm = ScriptedLLM(interrupted)
    store = open_stream(llm)
    store.write(LONG)
    assert list(store.derive(cancel)) == []
    cancel.clear()
    assert len(list(store.derive(cancel))) == 1
