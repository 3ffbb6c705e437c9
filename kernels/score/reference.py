"""What `score_blocks` computes, in any precision: every score at once, then a sort."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Reduce, Selected, Share, Summaries


def block_scores(
    q: Tensor, summaries: Summaries, share: Share, reduce: Reduce, dtype: torch.dtype
) -> Tensor:
    """Scores [B, HS, N] of all blocks: of each query row, then reduced over those that share."""
    b, hq, _ = q.shape
    data = summaries.data.to(dtype)
    _, n, h, r, d = data.shape
    data = data.expand(b, n, h, r, d)
    rows = q.to(dtype).view(b, h, hq // h, d)
    if summaries.kind == "bounds":
        rows = torch.cat([rows.clamp(min=0), rows.clamp(max=0)], dim=-1)
        data = data.flatten(3)[:, :, :, None]
    scores = torch.einsum("bhgd,bnhrd->bhgn", rows, data).reshape(b, hq, n)
    scores = torch.nan_to_num(scores, nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    groups = {"sequence": 1, "kv_head": h, "query_head": hq}[share]
    shared = scores.view(b, groups, hq // groups, n)
    best = shared.amax(dim=2)
    if reduce == "max":
        return best
    if reduce == "mean":
        return shared.mean(dim=2)
    # a block that no query row can score weighs nothing, and must not be selected for that
    weights = shared.softmax(dim=-1).nan_to_num(nan=0.0).sum(dim=2)
    return weights.masked_fill(torch.isneginf(best), -math.inf)


def score_blocks(
    q: Tensor,
    summaries: Summaries,
    k: int,
    *,
    share: Share = "kv_head",
    reduce: Reduce = "max",
    candidates: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Selected:
    """Arguments as `ops.score_blocks`, on one level."""
    scores = block_scores(q, summaries, share, reduce, dtype)
    n = scores.shape[-1]
    if candidates is not None:
        number = torch.arange(n, device=q.device)
        inside = (number >= candidates[:, :1]) & (number < candidates[:, 1:])
        scores = scores.masked_fill(~inside[:, None], -math.inf)
    best, ids = scores.sort(dim=-1, descending=True, stable=True)
    best, ids = best[..., :k], ids[..., :k].int()
    return Selected(ids.masked_fill(torch.isneginf(best), -1), best)
