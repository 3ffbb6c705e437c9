"""What `compact` computes, in any precision."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import Compacted, Pairing
from ..rotary import rotate


def compact(
    keys: Tensor,
    values: Tensor,
    keep: Tensor,
    *,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    pairing: Pairing = "half",
    dtype: torch.dtype = torch.float64,
) -> Compacted:
    """Arguments as `ops.compact`; rotated, and returned, in `dtype`."""
    h, n, d = keys.shape
    at = keep.long().expand(h, -1)[..., None].expand(-1, -1, d)
    k, v = keys.to(dtype).gather(1, at), values.to(dtype).gather(1, at)
    if cos is not None and sin is not None:
        k = rotate(k, cos.to(dtype), sin.to(dtype), pairing)
    moved = torch.full((len(keep), n), -1, dtype=torch.int32, device=keys.device)
    order = torch.arange(keep.shape[1], dtype=torch.int32, device=keys.device)
    moved.scatter_(1, keep.long(), order.expand(len(keep), -1))
    return Compacted(k, v, moved)
