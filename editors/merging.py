"""Several changes of one matrix made into one: TIES, and what it is compared with.

Each takes deltas from one base, [K, D_out, D_in], and gives one. Weights are equal, so the paper's
lambdas cancel or are 1/K (WISE, equation 8 and ablation; Yadav et al. 2023; Yu et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Merge = Callable[[Tensor, float], Tensor]
"""(deltas [K, D_out, D_in], density) -> delta [D_out, D_in]."""


def linear(deltas: Tensor, density: float) -> Tensor:
    """The mean."""
    return deltas.mean(0)


def sign(deltas: Tensor, density: float) -> Tensor:
    """The mean of the entries that agree with the sign of the sum."""
    return _agreeing(deltas)


def ties(deltas: Tensor, density: float) -> Tensor:
    """Trim each delta to the share `density` of its entries that are largest, elect a sign for each
    entry, and take the mean of those that agree with it."""
    return _agreeing(torch.stack([_largest(delta, density) for delta in deltas]))


def dare(deltas: Tensor, density: float) -> Tensor:
    """Drop entries at random and scale up what is left by 1/density; then the mean."""
    return _dropped(deltas, density).mean(0)


def dare_ties(deltas: Tensor, density: float) -> Tensor:
    """Drop entries at random as `dare` does; then elect signs as `ties` does."""
    return _agreeing(_dropped(deltas, density))


def slerp(deltas: Tensor, density: float) -> Tensor:
    """Along the great circle between each delta and the mean so far; the lengths are averaged."""
    merged = deltas[0]
    for count, delta in enumerate(deltas[1:], start=2):
        merged = _between(merged, delta, 1 / count)
    return merged


MERGES: dict[str, Merge] = {
    "dare": dare,
    "dare_ties": dare_ties,
    "linear": linear,
    "sign": sign,
    "slerp": slerp,
    "ties": ties,
}


def _agreeing(deltas: Tensor) -> Tensor:
    """Mean of the entries that have the sign of their sum; a sum of 0 counts as positive, and an
    entry of 0 agrees with nothing."""
    elected = torch.where(deltas.sum(0) < 0, -1.0, 1.0)
    agree = deltas.sign() == elected
    return (deltas * agree).sum(0) / agree.sum(0).clamp(min=1)


def _largest(delta: Tensor, density: float) -> Tensor:
    kept = max(1, int(density * delta.numel()))
    least = delta.abs().flatten().kthvalue(delta.numel() - kept + 1).values
    return torch.where(delta.abs() >= least, delta, torch.zeros_like(delta))


def _dropped(deltas: Tensor, density: float) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    kept = torch.rand(deltas.shape, generator=draw) < density
    return deltas * kept.to(deltas.device) / density


def _between(one: Tensor, other: Tensor, share: float) -> Tensor:
    lengths = one.norm(), other.norm()
    if min(lengths) == 0:
        return (1 - share) * one + share * other
    a, b = one / lengths[0], other / lengths[1]
    angle = torch.arccos((a * b).sum().clamp(-1, 1))
    if angle < 1e-6:
        direction = a
    else:
        direction = (
            torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b
        ) / angle.sin()
    between: Tensor = direction * ((1 - share) * lengths[0] + share * lengths[1])
    return between
