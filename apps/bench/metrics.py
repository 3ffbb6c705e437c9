"""What is measured, as the field writes it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random
from statistics import quantiles

from ...errors import ConfigError


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of `n` measurements, and their quartiles."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median and quartiles; a single value is all three."""
        if not values:
            raise ConfigError("values=[] must hold at least one measurement")
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, middle, high = quantiles(values, method="inclusive")
        return cls(middle, low, high, len(values))

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g}–{self.high:.4g})"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `n` questions, and what 95 of 100 samples of as many would give: a percentile
    bootstrap (Efron & Tibshirani 1993, section 13.3)."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float], rng: Random, samples: int = 1000) -> Estimate:
        """The mean of these values and its interval."""
        if not values:
            raise ConfigError("values=[] must hold at least one measurement")
        count = len(values)
        means = sorted(sum(rng.choices(values, k=count)) / count for _ in range(samples))
        low, high = percentile(means, 2.5), percentile(means, 97.5)
        return cls(sum(values) / count, low, high, count)

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.2f}–{self.high:.2f}]"


def percentile(values: Sequence[float], percent: float) -> float:
    """By linear interpolation between the closest ranks."""
    ranked = sorted(values)
    place = (len(ranked) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (ranked[above] - ranked[below]) * (place - below)


def recall_at(k: int, found: Sequence[str], relevant: Collection[str]) -> float:
    """Share of the relevant items among the first `k` found."""
    return len(set(found[:k]) & set(relevant)) / len(relevant)


def all_at(k: int, found: Sequence[str], relevant: Collection[str]) -> float:
    """1 if all relevant items are among the first `k` found, else 0."""
    return float(set(relevant) <= set(found[:k]))


def ndcg_at(k: int, found: Sequence[str], relevant: Collection[str]) -> float:
    """Normalised discounted cumulative gain with binary relevance (Järvelin & Kekäläinen 2002)."""
    gain = sum(1 / math.log2(at + 2) for at, item in enumerate(found[:k]) if item in relevant)
    ideal = sum(1 / math.log2(at + 2) for at in range(min(k, len(relevant))))
    return gain / ideal


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Area under the ROC curve: P(a positive scores above a negative), ties counting half."""
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    return sum(pairs) / len(pairs)


def contains(text: str, keyword: str) -> bool:
    """Whether a reply contains the keyword of the right answer, in any case."""
    return keyword.casefold() in text.casefold()
