"""Centres of points on a sphere, found without a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from torch import Tensor

ROUNDS = 20


def centres(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Spherical k-means: unit centres [K, D], K at most `count`, and whose each point is [N].

    It starts at the point nearest to the mean, and then at whichever lies farthest from all
    centres so far, so equal points give equal centres.
    """
    units = normalize(points, dim=-1)
    chosen = [int((units @ units.mean(0)).argmax())]
    for _ in range(min(count, len(units)) - 1):
        chosen.append(int((units @ units[chosen].T).amax(1).argmin()))
    found = units[chosen]
    for _ in range(ROUNDS):
        owner = (units @ found.T).argmax(1)
        sums = torch.zeros_like(found).index_add_(0, owner, units)
        empty = sums.norm(dim=-1, keepdim=True) < 1e-6
        found = torch.where(empty, found, normalize(sums, dim=-1))
    return found, (units @ found.T).argmax(1)
