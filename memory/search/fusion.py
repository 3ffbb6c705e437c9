"""From signals to one probability: a logistic regression, fitted elsewhere and kept here.

A convex combination of scores keeps what ranks throw away (Bruch et al. 2022, "An Analysis of
Fusion Functions for Hybrid Retrieval", section 4). Knows nothing of texts or tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import nlargest

import numpy as np
from numpy.typing import NDArray

from .base import SIGNALS

WEIGHTS: Mapping[str, float] = {
    "bm25": 5.36,
    "bm25 window": 0.275,
    "bm25 session": 0.238,
    "quote": 4.0,
    "cosine": 0.14,
    "maxsim": 0.27,
    "maxsim window": 0.139,
    "speaker": 1.27,
    "time": 0.627,
    "question": -0.343,
    "length": 0.065,
}
"""`palimpsest bench fit --full`: LongMemEval, XQuAD and TimeQA, each counting the same. That of
`quote` is set by hand, as questions hardly ever quote: enough to be shown for a whole sentence."""

BIAS = -7.05


def fuse(
    table: NDArray[np.float32], weights: Mapping[str, float] = WEIGHTS, bias: float = BIAS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Signals [N, S] -> the probabilities [N], and what each signal adds to the log odds [N, S]."""
    shares = table.astype(np.float64) * [weights[name] for name in SIGNALS]
    return 1 / (1 + np.exp(-(shares.sum(axis=1) + bias))), shares


def either(probabilities: Sequence[float]) -> float:
    """The probability of one or both of the two most probable of independent events."""
    missed = 1.0
    for probability in nlargest(2, probabilities):
        missed *= 1 - probability
    return 1 - missed


def shares_of(row: NDArray[np.float64]) -> dict[str, float]:
    """Signal -> its share, without those that say nothing, and the bias, which every candidate has:
    together they are the log odds."""
    shares = {name: round(float(x), 3) for name, x in zip(SIGNALS, row, strict=True) if x}
    return {"bias": BIAS} | shares
