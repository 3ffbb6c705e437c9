"""What `attend` computes, in any precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Attended


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    seen: Tensor | None = None,
    scale: float | None = None,
    mass: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Attended:
    """Arguments as `ops.attend`, `seen` bool [B or 1, T, S]; computed, and returned, in `dtype`."""
    b, hq, t, d = q.shape
    h = keys.shape[1]
    scale = 1 / math.sqrt(d) if scale is None else scale
    rows = q.to(dtype).view(b, h, hq // h, t, d)
    logits = rows @ keys.to(dtype)[:, :, None].mT * scale
    if seen is not None:
        logits = logits.masked_fill(~seen[:, None, None], -math.inf)
    lse = logits.logsumexp(-1)
    shift = lse.masked_fill(torch.isneginf(lse), 0.0)
    weights = (logits - shift[..., None]).exp()
    out = (weights @ values.to(dtype)[:, :, None]).view(b, hq, t, d)
    return Attended(
        out, lse.view(b, hq, t) * math.log2(math.e), weights.sum((2, 3)) if mass else None
    )
