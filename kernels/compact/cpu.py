"""`compact` in bounded memory: one head at a time, in float32, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import Compacted, Pairing
from ..rotary import rotate


def run(
    keys: Tensor,
    values: Tensor,
    keep: Tensor,
    *,
    cos: Tensor | None,
    sin: Tensor | None,
    pairing: Pairing,
) -> Compacted:
    """Arguments as `ops.compact`."""
    (h, n, d), (shared, m) = keys.shape, keep.shape
    kept_keys, kept_values = (
        torch.empty(h, m, d, dtype=x.dtype, device=x.device) for x in (keys, values)
    )
    for head in range(h):
        at = keep[head % shared].long()
        torch.index_select(values[head], 0, at, out=kept_values[head])
        taken = keys[head, at]
        if cos is not None and sin is not None:
            angle = (cos, sin) if cos.dim() == 2 else (cos[head], sin[head])
            taken = rotate(taken.float(), *angle, pairing).to(keys.dtype)
        kept_keys[head] = taken
    order = torch.arange(m, dtype=torch.int32, device=keys.device)
    moved = torch.full((shared, n), -1, dtype=torch.int32, device=keys.device)
    moved.scatter_(1, keep.long(), order.expand(shared, -1))
    return Compacted(kept_keys, kept_values, moved)
