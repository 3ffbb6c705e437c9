"""The paper's controller, driven by the embedded model itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

import pytest
from palimpsest.llm.local import LocalLLM
from palimpsest.memory.base import Cue, StoreContext
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.record import Record, Scope, Turn
from palimpsest.memory.registry import open_memory
from palimpsest.memory.stream.items import sides
from palimpsest.memory.stream.memory import StreamMemory

pytestmark = pytest.mark.model
SCOPE = Scope(session="monday")
TOLD = (
    ("My sister Ingrid sails.", "Sailing is a fine sport. It takes wind, water and patience. "),
    ("I keep my cello in Porto.", "Porto is a city in Portugal. Its river is the Douro. "),
    ("I am allergic to peanuts.", "I will remember that. Peanuts are in many sauces. "),
)


@pytest.fixture
def stream(smollm2: LocalLLM, tmp_path: Path) -> Iterator[StreamMemory]:
    context = StoreContext(folder=tmp_path, llm=smollm2, embedder=HashingEmbedder)
    store = open_memory(
        "scm:gate=llm,judge=llm,judge_above=0,budget=70,flash_raw=30,summary_tokens=24,summarise_above=64",
        context,
    )
    assert isinstance(store, StreamMemory)
    yield store
    store.close()


def turns() -> list[Turn]:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    told = []
    for number, (heard, said) in enumerate(TOLD):
        at = start + timedelta(minutes=number)
        asked = Record(text=heard, scope=SCOPE, created=at)
        reply = Record(
            text=(said * 3).strip(),
            scope=SCOPE,
            created=at + timedelta(seconds=1),
            role="assistant",
            source="assistant",
            parents=(asked.id,),
        )
        told.append(Turn(asked, reply))
    return told


def test_the_models_own_controller_ends_within_the_budget(
    stream: StreamMemory, smollm2: LocalLLM
) -> None:
    told = turns()
    stream.write([part for turn in told for part in (turn.user, turn.reply) if part])
    cue = Cue(
        message="Where do I keep my cello?",
        scope=SCOPE,
        recent=tuple(told[-1:]),
        budget=500,
        now=datetime(2026, 1, 2, tzinfo=UTC),
    )
    given = stream.recall(cue)
    assert given == stream.recall(cue)
    gate = given.explain["gate"]
    assert gate["mode"] == "llm" and gate["open"] == (gate["value"] >= 0)
    texts = [note.text for note in given.notes] + [str(m.content) for m in given.turns]
    assert sum(map(smollm2.count_tokens, texts)) <= 70


def test_over_budget_the_model_judges_every_item_but_the_most_similar(
    stream: StreamMemory, smollm2: LocalLLM
) -> None:
    stream.write([part for turn in turns() for part in (turn.user, turn.reply) if part])
    now = datetime(2026, 1, 2, tzinfo=UTC)
    candidates = stream._activate(Cue(message="cello", scope=SCOPE, budget=1, now=now), ())
    placed, rounds = stream._place("Where do I keep my cello?", candidates, 70)
    assert rounds >= 1 and len(placed) == 3
    assert sum(item.piece.tokens for item in placed) <= 70
    assert placed[0].form == "raw"


def test_the_model_summarises_between_turns(stream: StreamMemory, smollm2: LocalLLM) -> None:
    told = turns()[0]
    assert told.reply is not None
    stream.write([told.user, told.reply])
    [summary] = stream.derive(Event())
    assert sides(summary.text) is not None
    assert smollm2.count_tokens(summary.text) < smollm2.count_tokens(told.reply.text)
    stream.write([summary])
    assert list(stream.derive(Event())) == []
