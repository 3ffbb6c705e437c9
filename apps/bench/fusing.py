"""What speaks for each candidate of each question, and weights fitted to it.

A logistic regression with a ridge, by Newton's method (Hastie, Tibshirani & Friedman 2009, section
4.4.1): convex, so that it has one answer. Knows nothing of how signals come about.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...memory.record import Scope
from ...memory.search.base import SIGNALS
from ...memory.search.index import HybridIndex
from .corpora import Corpus
from .metrics import ndcg_at, recall_at

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Judged:
    """One question, its N candidates [N], what speaks for each [N, S], and which are evidence."""

    corpus: str
    kind: str
    evidence: frozenset[str]
    ids: Sequence[str]
    values: Floats
    right: NDArray[np.bool_]

    def ranked(self, weights: Floats) -> list[str]:
        """The candidates' ids by the weighted sum of their signals, best first."""
        return [self.ids[n] for n in np.argsort(-(self.values @ weights), kind="stable")]


@dataclass(frozen=True, slots=True)
class Fit:
    """Weights [S] in the order of `SIGNALS`, and the bias."""

    weights: Floats
    bias: float

    def named(self) -> dict[str, float]:
        """Signal -> weight."""
        return {name: float(w) for name, w in zip(SIGNALS, self.weights, strict=True)}

    def probabilities(self, of: Judged) -> Floats:
        """[N], of the N candidates."""
        found: Floats = 1 / (1 + np.exp(-(of.values @ self.weights + self.bias)))
        return found


def fill(index: HybridIndex, corpus: Corpus) -> None:
    """Put what was said into an index, under the corpus's name as user."""
    index.add(each.entry(corpus.name) for each in corpus.said)


def judge(index: HybridIndex, corpora: Iterable[Corpus]) -> Iterator[Judged]:
    """Every question with its candidates; the corpora must be in the index."""
    for corpus in corpora:
        skip = len(corpus.name) + 1
        for question in corpus.questions:
            found = index.signals(question.text, Scope(user=corpus.name), at=question.asked)
            ids = [id[skip:] for id in found.ids]
            yield Judged(
                corpus=corpus.name,
                kind=question.kind,
                evidence=question.evidence,
                ids=ids,
                values=found.values.astype(np.float64),
                right=np.array([id in question.evidence for id in ids], bool),
            )


def fit(sets: Sequence[Sequence[Judged]], ridge: float) -> Fit:
    """Weights under which evidence is most probable. Every set counts the same, and in it every
    question.

    Args:
        ridge: what a weight of 1 on a signal in standard deviations costs, beside the mean
            log-loss of a question.
    """
    values = np.concatenate([one.values for judged in sets for one in judged])
    right = np.concatenate([one.right for judged in sets for one in judged])
    share = np.concatenate(
        [np.full(len(one.ids), 1 / len(judged) / len(sets)) for judged in sets for one in judged]
    )
    middle = np.average(values, axis=0, weights=share)
    spread = np.sqrt(np.average((values - middle) ** 2, axis=0, weights=share)) + 1e-9
    features = np.column_stack([np.ones(len(values)), (values - middle) / spread])
    cost = np.array([0.0, *[2 * ridge] * len(SIGNALS)])
    at = np.zeros(features.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(features @ at, -30, 30)))
        slope = features.T @ (share * (p - right)) + cost * at
        curve = (features.T * (share * p * (1 - p))) @ features + np.diag(cost + 1e-12)
        step = np.linalg.solve(curve, slope)
        at -= step * min(1.0, 2.0 / (float(np.abs(step).max()) + 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    weights = at[1:] / spread
    return Fit(weights, float(at[0] - middle @ weights))


def quality(judged: Sequence[Judged], weights: Floats) -> Mapping[str, float]:
    """Mean recall@10 and NDCG@10."""
    ranked = [(one.ranked(weights), one.evidence) for one in judged]
    return {
        "recall@10": float(np.mean([recall_at(10, ids, gold) for ids, gold in ranked])),
        "NDCG@10": float(np.mean([ndcg_at(10, ids, gold) for ids, gold in ranked])),
    }
