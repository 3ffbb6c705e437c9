"""`cosine_topk` in bounded memory: some rows at a time, and the best so far as packed keys."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import Nearest
from ..score.packed import pack, unpack

_AT_ONCE = 1 << 22
"""Elements of the rows, and of their scores, that are held in float32 at the same time."""


def run(
    queries: Tensor, rows: Tensor, k: int, *, scales: Tensor | None, step: int | None = None
) -> Nearest:
    """Arguments as `ops.cosine_topk`; `step` is how many rows are scored at a time."""
    (b, d), n = queries.shape, len(rows)
    step = step or max(16, _AT_ONCE // max(b, d))
    given = queries.float()
    best = torch.empty(b, 0, dtype=torch.int64, device=rows.device)
    for start in range(0, n, step):
        part = slice(start, start + step)
        scores = given @ rows[part].float().T
        if scales is not None:
            scores = scores * scales[part]
        keys = pack(scores, torch.arange(start, start + scores.shape[1], device=rows.device))
        best = torch.cat([best, keys], dim=1)
        best = best.topk(min(k, best.shape[1]), dim=1).values
    found, number = unpack(best)
    return Nearest(number, found)
