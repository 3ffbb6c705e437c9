"""Which items a message brings to mind, in what order.

Knows nothing of budgets, prompts or where items are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .items import Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What an item's rank is made of; see `rank`.

    Args:
        w_rel, w_rec, w_imp: weights of relevance, recency and importance, each in [0, 1].
        rho: recency halves every ln 2 / -ln rho turns; 0.99 is 69 turns.
        w_trust: share of the score that an item of no trust loses.
    """

    w_rel: float = 1.0
    w_rec: float = 0.0
    w_imp: float = 0.0
    rho: float = 0.99
    w_trust: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An item that a search found.

    Args:
        scores: by key, the probability that it bears on the message, of those keys that were found
            ("message", "reply", "raw", "summary").
        score: what it is ranked by.
        signals: what speaks for the best of its keys, by how much.
    """

    item: Item
    scores: Mapping[str, float]
    score: float
    signals: Mapping[str, float]

    @property
    def relevance(self) -> float:
        """The best of its keys."""
        return max(self.scores.values())

    def explain(self) -> dict[str, Any]:
        """Ids and numbers."""
        return {
            "item": self.item.id,
            "score": round(self.score, 4),
            "relevance": round(self.relevance, 4),
            "signals": dict(self.signals),
        }


def rank(item: Item, relevance: float, weights: Weights, age: Callable[[Item], int]) -> float:
    """An item's rank: `(w_rel * relevance + w_rec * rho^age + w_imp * importance) * trust'`.

    SCM (arXiv 2304.13343, section 2.3) adds recency and relevance without saying how recency is
    computed, and its code leaves it out; so do our defaults, as the turn that is needed is rarely
    a recent one. `trust' = 1 - w_trust * (1 - trust)`: of two items of equal relevance the one that
    the user stated wins. Importance is `meta["importance"]` of the head, 0 if it is not given.

    Args:
        age: turns since the item, >= 0; asked only where `w_rec` counts.
    """
    recency = weights.rho ** age(item) if weights.w_rec else 0.0
    importance = float(item.head.meta.get("importance", 0.0))
    total = weights.w_rel * relevance + weights.w_rec * recency + weights.w_imp * importance
    return total * (1 - weights.w_trust * (1 - item.trust))


def best(candidates: Iterable[Candidate], k: int, floor: float = 0.0) -> list[Candidate]:
    """The k best, best first, equal scores by id; without those below `floor` of the best's."""
    ranked = sorted(candidates, key=lambda c: (-c.score, c.item.id))[:k]
    return [c for c in ranked if c.score >= floor * ranked[0].score]
