"""What `merge_partials` computes, in any precision."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_partials(o: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """o [R, ..., D] and lse [R, ...], base 2, of R disjoint partitions as one softmax."""
    top = lse.amax(dim=0)
    top = torch.where(torch.isneginf(top), torch.zeros_like(top), top)
    weights = torch.exp2(lse - top)
    total = weights.sum(dim=0)
    # 0 * NaN is NaN: a partition that saw nothing must not count, whatever stands in its o
    parts = torch.where(weights[..., None] > 0, o * weights[..., None], torch.zeros_like(o))
    out = parts.sum(dim=0) / torch.where(total > 0, total, torch.ones_like(total))[..., None]
    return out, top + torch.log2(total)
