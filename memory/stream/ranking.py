"""Which items a message brings to mind, and how similar things are that have nothing in common.

Knows nothing of budgets, prompts or where items are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from .items import Item

if TYPE_CHECKING:
    from ..vectors import Vectors

CALIBRATED_FROM = 8
"""Items below which the spread of their cosines says nothing."""

CERTAIN = 0.5
"""No level of chance is above this. In a stream about one thing all pairs are related and look like
chance; better to open a gate in vain than to keep it shut on what was asked for."""


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
        cosines: by key, of those keys that were found ("message", "raw", "summary").
        relevance: the best of its keys, in [0, 1].
        score: what it is ranked by.
        bm25: the best of its keys; None if it shares no word with the message.
    """

    item: Item
    cosines: Mapping[str, float]
    relevance: float
    score: float
    bm25: float | None = None

    @property
    def cosine(self) -> float:
        """The best of its keys."""
        return max(self.cosines.values(), default=0.0)

    def explain(self) -> dict[str, Any]:
        """Ids and numbers."""
        return {
            "item": self.item.id,
            "score": round(self.score, 4),
            "cosine": round(self.cosine, 4),
            "bm25": None if self.bm25 is None else round(self.bm25, 4),
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


def chance_level(vectors: Vectors, count: int, chance: float) -> float | None:
    """The cosine that the best of `count` unrelated items exceeds with probability `chance`.

    Most pairs of items in a stream have nothing to do with each other, so the bulk of their cosines
    is what being unrelated looks like under this embedder and on these topics. The median and the
    median absolute deviation describe that bulk and ignore the related pairs in its upper tail;
    a normal with these two gives the cosine of which `chance / count` lies above (Bonferroni).

    Args:
        vectors: a sample of the items, [M, D], rows of length 1.
        count: items that the message is compared with, >= 1.

    Returns:
        None with fewer than 8 in the sample: too few to tell.
    """
    if len(vectors) < CALIBRATED_FROM:
        return None
    cosines = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    middle = float(np.median(cosines))
    spread = 1.4826 * float(np.median(np.abs(cosines - middle)))
    tail = NormalDist().inv_cdf(1 - min(chance / max(count, 1), 0.5))
    return min(middle + tail * spread, CERTAIN)
