"""`attend` in torch: its fused attention where that tells the log-sum-exp, else in parts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Attended, Seen
from .reference import attend

MOST_LOGITS = 1 << 24
"""Of all query heads that are in memory at a time."""

LOG2E = math.log2(math.e)


def run(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    seen: Seen | None,
    scale: float,
    mass: bool,
) -> Attended:
    """Arguments as `ops.attend`, which has checked them."""
    if mass or q.device.type != "cpu":
        return _in_parts(q, keys, values, seen, scale, mass)
    return _fused(q, keys, values, seen, scale)


def _fused(q: Tensor, keys: Tensor, values: Tensor, seen: Seen | None, scale: float) -> Attended:
    """With the operator behind torch's own attention on a CPU, which keeps the log-sum-exp."""
    b, hq, t, d = q.shape
    # one token's query heads are read as so many tokens of one head: keys are then read once
    rows = q.reshape(b, keys.shape[1], -1, d) if t == 1 else q
    mask = None if seen is None else seen.added
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        rows, keys, values, 0.0, False, attn_mask=mask, scale=scale
    )
    lse = lse.reshape(b, hq, t) * LOG2E
    if seen is not None and seen.blind is not None:  # there it says 0, as of one key
        lse = lse.masked_fill(seen.blind, -math.inf)
    return Attended(out.reshape(b, hq, t, d).float(), lse)


def _in_parts(
    q: Tensor, keys: Tensor, values: Tensor, seen: Seen | None, scale: float, mass: bool
) -> Attended:
    """A few tokens at a time, so that memory stays bounded."""
    b, hq, t, _ = q.shape
    rows = max(1, MOST_LOGITS // (b * hq * keys.shape[2]))
    visible = None if seen is None else torch.isfinite(seen.added[:, 0])
    parts = [
        attend(
            q[:, :, part],
            keys,
            values,
            seen=None if visible is None else visible[:, part],
            scale=scale,
            mass=mass,
            dtype=torch.float32,
        )
        for part in (slice(start, start + rows) for start in range(0, t, rows))
    ]
    column = sum((part.mass for part in parts if part.mass is not None), torch.zeros(()))
    return Attended(
        torch.cat([part.out for part in parts], dim=2),
        torch.cat([part.lse for part in parts], dim=2),
        column if mass else None,
    )
