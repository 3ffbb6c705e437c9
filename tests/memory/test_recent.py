"""The plain memory of the last turns: the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from palimpsest.errors import ConfigError
from palimpsest.llm.scripted import ScriptedLLM
from palimpsest.memory.base import Cue, StoreContext
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.recent import RecentTurns
from palimpsest.memory.record import Record, Scope, Turn, now

SCOPE = Scope(session="monday")


def turn(heard: str, said: str | None) -> Turn:
    asked = Record(text=heard, scope=SCOPE)
    if said is None:
        return Turn(asked)
    reply = Record(
        text=said, scope=SCOPE, role="assistant", source="assistant", parents=(asked.id,)
    )
    return Turn(asked, reply)


def opened(folder: Path, **options: object) -> RecentTurns:
    llm = ScriptedLLM(lambda messages: "")
    context = StoreContext(folder=folder, llm=llm, embedder=HashingEmbedder)
    return RecentTurns.open("recent", context, options)


def recall(folder: Path, recent: Sequence[Turn], budget: int, **options: object) -> list[str]:
    memory = opened(folder, **options)
    given = memory.recall(
        Cue(message="And now?", scope=SCOPE, recent=tuple(recent), budget=budget, now=now())
    )
    texts = [str(message.content) for message in given.turns]
    assert [message.type for message in given.turns] == ["human", "ai"] * (len(texts) // 2)
    spoken = [p for t in recent if t.reply for p in (t.user, t.reply)]
    assert given.records == tuple(p.id for p in spoken[len(spoken) - len(texts) :])
    return texts


FOUR = [turn(f"question {i}", f"answer {i}") for i in range(4)]


def test_the_last_turns_come_in_order(tmp_path: Path) -> None:
    assert recall(tmp_path, FOUR, 100, turns=2) == [
        "question 2",
        "answer 2",
        "question 3",
        "answer 3",
    ]


@pytest.mark.parametrize("turns", [None, 4, 100])
def test_none_or_many_turns_are_the_whole_session(tmp_path: Path, turns: int | None) -> None:
    assert len(recall(tmp_path, FOUR, 100, turns=turns)) == 8


def test_no_turns_are_none(tmp_path: Path) -> None:
    assert recall(tmp_path, FOUR, 100, turns=0) == []


def test_the_oldest_are_left_out_when_the_budget_is_small(tmp_path: Path) -> None:
    assert recall(tmp_path, FOUR, 9, turns=None) == [
        "question 2",
        "answer 2",
        "question 3",
        "answer 3",
    ]


def test_the_latest_turn_is_cut_rather_than_lost(tmp_path: Path) -> None:
    long = turn("why " * 50, "because " * 50)
    heard, said = recall(tmp_path, [*FOUR, long], 20)
    assert 0 < len(heard.split()) <= 10 and 0 < len(said.split()) <= 10


def test_a_short_side_leaves_its_room_to_the_long_one(tmp_path: Path) -> None:
    heard, said = recall(tmp_path, [turn("why?", "because " * 50)], 20)
    assert heard == "why?" and len(said.split()) > 15


def test_a_turn_without_a_reply_is_left_out(tmp_path: Path) -> None:
    assert recall(tmp_path, [*FOUR, turn("cut short", None)], 100, turns=2) == [
        "question 3",
        "answer 3",
    ]


def test_it_asks_for_as_many_turns_as_it_shows(tmp_path: Path) -> None:
    assert opened(tmp_path, turns=3).capabilities.recent_turns == 3
    assert opened(tmp_path, turns=None).capabilities.recent_turns > 10**6


def test_a_negative_number_of_turns_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="turns=-1 must be 0 or more"):
        opened(tmp_path, turns=-1)
