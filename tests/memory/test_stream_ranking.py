"""What an item's rank is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from palimpsest.memory.record import Record, Scope, Source
from palimpsest.memory.stream.items import Item, exchange, sides
from palimpsest.memory.stream.ranking import (
    Candidate,
    Weights,
    best,
    rank,
)


def item(source: Source = "user", **meta: Any) -> Item:
    return Item(Record(text="something", scope=Scope(), source=source, meta=meta))


def aged(turns: int) -> Callable[[Item], int]:
    return lambda item: turns


def never(item: Item) -> int:
    raise AssertionError("the age costs a query and counts for nothing here")


def test_by_default_relevance_alone_ranks() -> None:
    assert rank(item(importance=0.9), 0.5, Weights(), never) == 0.5


def test_recency_falls_by_a_power_of_rho_with_each_turn() -> None:
    """A well-known port wrote `^`, which is xor, and ranked the oldest turns first."""
    weights = Weights(w_rel=0.0, w_rec=1.0, rho=0.9)
    scores = [rank(item(), 0.0, weights, aged(turns)) for turns in (0, 1, 2, 10)]
    assert scores == pytest.approx([1.0, 0.9, 0.81, 0.9**10])


def test_importance_is_what_the_record_says() -> None:
    weights = Weights(w_imp=0.1)
    assert rank(item(importance=0.5), 0.5, weights, never) == pytest.approx(0.55)


@pytest.mark.parametrize("source", ["document", "tool", "assistant"])
def test_no_other_source_outranks_the_user_at_equal_relevance(source: Source) -> None:
    assert rank(item(source), 0.7, Weights(), never) < rank(item("user"), 0.7, Weights(), never)
    without = Weights(w_trust=0.0)
    assert rank(item(source), 0.7, without, never) == rank(item("user"), 0.7, without, never)


def test_an_exchange_is_trusted_as_its_least_trusted_side() -> None:
    heard = Record(text="I am Maria.", scope=Scope())
    said = Record(text="Hello.", scope=Scope(), role="assistant", source="assistant")
    assert Item(heard).source == "user"
    assert (Item(heard, said).source, Item(heard, said).trust) == ("assistant", 0.5)


def test_the_best_come_first_and_ties_are_settled_by_id() -> None:
    items = [item() for _ in range(4)]
    scores = [0.2, 0.7, 0.2, 0.5]
    candidates = [
        Candidate(item=i, scores={"raw": s}, score=s, signals={})
        for i, s in zip(items, scores, strict=True)
    ]
    expected = [items[1], items[3], min(items[0], items[2], key=lambda i: i.id)]
    assert [c.item for c in best(reversed(candidates), 3)] == expected
    assert len(best(candidates, 9)) == 4


def test_an_exchange_can_be_taken_apart_again() -> None:
    assert sides(exchange("I am Maria.", "Hello.\n\nMaria!")) == ("I am Maria.", "Hello.\n\nMaria!")
    assert sides("A summary of something else.") is None
