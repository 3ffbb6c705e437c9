"""From a score to how far a gate opens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

REACH = 3.0
"""Temperatures from the threshold to the floor, and to the ceiling."""

ZETA, OFFSET = 10.0, 2.0
"""Of the mixture's sigmoid, as the official code has them."""


def soft(scores: Tensor, numbers: Mapping[str, float]) -> Tensor:
    """sigmoid((s - threshold) / temperature), exactly 0 below a floor and exactly 1 above a
    ceiling."""
    steps = (scores - numbers["threshold"]) / numbers["temperature"]
    weights = steps.sigmoid()
    return weights.masked_fill(steps <= -REACH, 0.0).masked_fill(steps >= REACH, 1.0)


def mixture(scores: Tensor, numbers: Mapping[str, float]) -> Tensor:
    """sigmoid(zeta p - 2), p = 1 - |G(s) - G(2 x0 - s)| (Gao et al. 2025, arXiv 2407.10223,
    equations 12 and 13). G is the even mixture of two Gaussians, around the means of prompts that
    were seen and that were not, x0 the middle of both. The weight falls on either side of x0, and
    to .119, never to 0."""
    seen, own = numbers["seen_mean"], numbers["own_mean"]
    spread = max(numbers["own_spread"], 1e-6)

    def below(points: Tensor) -> Tensor:
        parts = torch.stack([(points - mean) / spread for mean in (seen, own)])
        shares: Tensor = torch.special.ndtr(parts)
        return shares.mean(0)

    likely = 1 - (below(scores) - below(seen + own - scores)).abs()
    weights: Tensor = (ZETA * likely - OFFSET).sigmoid()
    return weights
