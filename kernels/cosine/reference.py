"""What `cosine_topk` computes, in any precision: every score at once, then a sort."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import Nearest


def cosine_topk(
    queries: Tensor,
    rows: Tensor,
    k: int,
    *,
    scales: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Nearest:
    """Arguments as `ops.cosine_topk`."""
    scores = queries.to(dtype) @ rows.to(dtype).T
    if scales is not None:
        scores = scores * scales.to(dtype)
    scores = torch.where(scores.isnan(), -torch.inf, scores)
    best, found = scores.sort(dim=-1, descending=True, stable=True)
    best, found = best[:, :k], found[:, :k].int()
    return Nearest(found.masked_fill(torch.isneginf(best), -1), best)
