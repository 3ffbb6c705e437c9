"""What a recall can be narrowed to, and answers from the past."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import BaseMessage
from palimpsest.agent.agent import Agent
from palimpsest.errors import ConfigError
from palimpsest.llm.scripted import ScriptedLLM
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.record import Record, RecordId, Scope, new_id

MAY = datetime(2026, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def polite(messages: Sequence[BaseMessage]) -> str:
    return "Good to know."


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with Agent.open(
        ScriptedLLM(polite),
        home=tmp_path,
        memories=["scm:gate=always,floor=0"],
        embedder=HashingEmbedder(),
    ) as opened:
        yield opened


def fact(text: str, day: int, **values: Any) -> Record:
    scope = Scope(session=values.pop("session", "main"))
    return Record(text=text, scope=scope, kind="fact", created=MAY + day * DAY, **values)


def texts(agent: Agent, query: str = "Where does Ana live?", **narrowed: Any) -> list[str]:
    return [note.text for note in agent.recall(query, **narrowed).notes]


@pytest.fixture
def moved(agent: Agent) -> Agent:
    """Ana lives in Oslo from the first of May, in Porto from the eleventh, then in Ghent."""
    oslo = fact("Ana lives in Oslo", 0)
    porto = fact("Ana lives in Porto", 10, supersedes=oslo.id)
    ghent = fact("Ana lives in Ghent", 20, supersedes=porto.id)
    agent.append([oslo, porto, ghent])
    return agent


@pytest.mark.parametrize(
    ("day", "city"),
    [(-1, None), (0, "Oslo"), (9.9, "Oslo"), (10, "Porto"), (19, "Porto"), (20, "Ghent")],
)
def test_recall_as_of_a_day_answers_by_what_held_then(
    moved: Agent, day: float, city: str | None
) -> None:
    wanted = [f"Ana lives in {city}"] if city else []
    assert texts(moved, as_of=MAY + day * DAY) == wanted


def test_without_a_time_only_the_newest_statement_counts(moved: Agent) -> None:
    assert texts(moved) == ["Ana lives in Ghent"]


def test_forgetting_a_correction_forgets_its_past_too(moved: Agent) -> None:
    moved.forget(query="Ghent")
    for time in (None, MAY, MAY + 15 * DAY):
        assert texts(moved, as_of=time) == []


def test_an_answer_that_went_by_what_was_wrong_is_part_of_the_past(agent: Agent) -> None:
    oslo = fact("Ana lives in Oslo", 0)
    asked = Record(text="Where does Ana live?", scope=Scope(session="a"), created=MAY + DAY)
    answer = Record(
        text="She lives in Oslo.",
        scope=Scope(session="a"),
        role="assistant",
        source="assistant",
        created=MAY + DAY + timedelta(seconds=1),
        parents=(asked.id, oslo.id),
    )
    agent.append([oslo, asked, answer])
    agent.append([fact("Ana lives in Porto", 10, supersedes=oslo.id)])
    assert not any("Oslo" in text for text in texts(agent, "Ana Oslo"))
    then = texts(agent, "Ana Oslo", as_of=MAY + 2 * DAY)
    assert any("She lives in Oslo." in text for text in then)


@pytest.fixture
def mixed(agent: Agent) -> Agent:
    agent.append(
        [
            fact("Ana keeps bees", 0, session="monday"),
            fact("Ana sells honey", 1, session="tuesday"),
            fact("Ana has nine hives", 2, source="document", session="tuesday"),
            Record(
                text="Ana is at the fair", scope=Scope(session="tuesday"), created=MAY + 3 * DAY
            ),
        ]
    )
    return agent


@pytest.mark.parametrize(
    ("narrowed", "count"),
    [
        ({}, 4),
        ({"where": {"session": "monday"}}, 1),
        ({"where": {"session": ["monday", "tuesday"]}}, 4),
        ({"where": {"kind": "fact"}}, 3),
        ({"where": {"source": "document"}}, 1),
        ({"where": {"kind": "fact", "session": "tuesday"}, "since": MAY + 2 * DAY}, 1),
        ({"since": MAY + DAY, "until": MAY + 3 * DAY}, 2),
        ({"k": 2}, 2),
    ],
)
def test_a_recall_is_narrowed_by_session_kind_source_and_time(
    mixed: Agent, narrowed: dict[str, Any], count: int
) -> None:
    assert len(texts(mixed, "Tell all of Ana", **narrowed)) == count


def test_what_cannot_narrow_is_refused(mixed: Agent) -> None:
    with pytest.raises(ConfigError, match=r"where has key 'tenant'; it may have \['form'"):
        mixed.recall("Ana", where={"tenant": "other"})
    with pytest.raises(ConfigError, match=r"as_of=2026-05-01 00:00:00 has no time zone"):
        mixed.recall("Ana", as_of=datetime(2026, 5, 1))
    with pytest.raises(ConfigError, match=r"role='bogus' must be one of .*'tool'"):
        mixed.recall("Ana", where={"role": ["user", "bogus"]})
    with pytest.raises(ConfigError, match="k=0 must be at least 1"):
        mixed.recall("Ana", k=0)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(gaps=st.lists(st.integers(1, 5), min_size=1, max_size=6), day=st.integers(0, 32))
def test_at_any_time_one_version_held_and_that_one_is_recalled(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[int], day: int
) -> None:
    with Agent.open(
        ScriptedLLM(polite),
        home=tmp_path_factory.mktemp("home"),
        memories=["scm:gate=always"],
        embedder=HashingEmbedder(),
    ) as agent:
        ids: list[RecordId] = [new_id() for _ in gaps]
        starts = [sum(gaps[:n]) for n in range(len(gaps))]
        for n, (id, start) in enumerate(zip(ids, starts, strict=True)):
            before = ids[n - 1] if n else None
            agent.append([fact(f"The code is {n}", start, id=id, supersedes=before)])
        holding = max(n for n, start in enumerate(starts) if start <= day)
        assert texts(agent, "the code", as_of=MAY + day * DAY) == [f"The code is {holding}"]
