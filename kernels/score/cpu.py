"""`score_blocks` in bounded memory: some blocks at a time, and the best so far as packed keys."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..base import Reduce, Selected, Share, Summaries
from .packed import pack, unpack

_AT_ONCE = 1 << 22
"""Elements of the summaries that are held in float32 at the same time."""


def run(
    q: Tensor,
    summaries: Summaries,
    k: int,
    *,
    share: Share,
    reduce: Reduce,
    candidates: Tensor | None,
    coarse: Summaries | None,
    expand: int,
    step: int | None = None,
) -> Selected:
    """Arguments as `ops.score_blocks`; `step` is how many blocks are scored at a time."""
    if coarse is None:
        every = _dense(q, summaries, share, reduce, step)
        return _best(every, k, candidates)
    factor = coarse.span // summaries.span
    outward = None
    if candidates is not None:
        outward = torch.stack([candidates[:, 0] // factor, -(-candidates[:, 1] // factor)], dim=1)
    above = _best(_dense(q, coarse, share, reduce, step), expand, outward)
    some = _gathered(q, summaries, _members(above.ids, factor), share, reduce, step)
    return _best(some, k, candidates)


def _best(scored: Iterator[tuple[Tensor, Tensor]], k: int, candidates: Tensor | None) -> Selected:
    """The k best of pieces of scores [B, HS, C] and the blocks' numbers, which broadcast to them,
    -1 or below for no block."""
    best: Tensor | None = None
    for scores, number in scored:
        if candidates is not None:
            low, high = candidates[:, None, :1], candidates[:, None, 1:]
            scores = scores.masked_fill((number < low) | (number >= high), -torch.inf)
        number = number.expand(scores.shape)
        keys = pack(scores.masked_fill(number < 0, -torch.inf), number.clamp(min=0))
        best = keys if best is None else torch.cat([best, keys], dim=-1)
        best = best.topk(min(k, best.shape[-1]), dim=-1).values
    assert best is not None
    ids, found = unpack(best)[::-1]
    missing = k - ids.shape[-1]
    if missing:
        ids = torch.nn.functional.pad(ids, (0, missing), value=-1)
        found = torch.nn.functional.pad(found, (0, missing), value=-torch.inf)
    return Selected(ids, found)


def _members(above: Tensor, factor: int) -> Tensor:
    """Blocks [B, HS, E * factor] of the coarse rows [B, HS, E]; negative where there is none."""
    inside = torch.arange(factor, device=above.device)
    # -1 * factor + inside is negative for every member of a row that is not there
    return (above.long()[..., None] * factor + inside).flatten(-2)


def _dense(
    q: Tensor, summaries: Summaries, share: Share, reduce: Reduce, step: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    bs, n, h, r, d = summaries.data.shape
    step = step or max(16, _AT_ONCE // (bs * h * r * d))
    starts = range(0, n, step)
    total: Tensor | None = None
    if reduce == "softmax":
        total = torch.full(q.shape[:2], -torch.inf, device=q.device)
        for start in starts:
            rows = _row_scores(q, summaries, summaries.data[:, start : start + step])
            total = torch.logaddexp(total, rows.logsumexp(dim=-1))
    for start in starts:
        rows = _row_scores(q, summaries, summaries.data[:, start : start + step])
        number = torch.arange(start, start + rows.shape[-1], device=q.device)
        yield _shared(rows, _groups(share, q, h), reduce, total), number


def _gathered(
    q: Tensor,
    summaries: Summaries,
    members: Tensor,
    share: Share,
    reduce: Reduce,
    step: int | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    b, groups, size = members.shape
    bs, n, h, r, d = summaries.data.shape
    members = members.masked_fill(members >= n, -1)
    per_block = (h if groups == 1 else groups) * r * d
    step = step or max(16, _AT_ONCE // (b * per_block))
    sequence = torch.arange(b, device=q.device)[:, None, None] % bs
    heads = torch.arange(groups, device=q.device)[:, None] // max(1, groups // h)
    for start in range(0, size, step):
        some = members[..., start : start + step]
        at = some.clamp(min=0)
        if groups == 1:
            data = summaries.data[sequence[:, 0], at[:, 0]]  # [B, C, H, r, D]
        else:
            data = summaries.data[sequence, at, heads].transpose(1, 2)  # [B, C, HS, r, D]
        rows = _row_scores(q, summaries, data)
        yield _shared(rows, _groups(share, q, h), reduce, None), some


def _groups(share: Share, q: Tensor, kv_heads: int) -> int:
    return {"sequence": 1, "kv_head": kv_heads, "query_head": q.shape[1]}[share]


def _row_scores(q: Tensor, summaries: Summaries, data: Tensor) -> Tensor:
    """Scores [B, Hq, C] of every query head against summaries [B or 1, C, heads, r, D]; -inf for
    NaN."""
    b, hq, d = q.shape
    bs, c, heads = data.shape[:3]
    rows, data = q.float().view(b, heads, hq // heads, d), data.float()
    if summaries.kind == "bounds":
        rows = torch.cat([rows.clamp(min=0), rows.clamp(max=0)], dim=-1)
        data = data.flatten(3)
    else:  # of tokens scores add up, and so may the tokens themselves
        data = data[:, :, :, 0] if summaries.kind == "mean" else data.sum(dim=3)
    data = data.permute(0, 2, 3, 1)
    if bs == 1:  # all sequences' rows in one product, instead of a copy of the summaries for each
        rows = rows.transpose(0, 1).reshape(heads, -1, rows.shape[-1])
        scores = (rows @ data[0]).view(heads, b, -1, c).transpose(0, 1)
    else:
        scores = rows @ data
    return scores.reshape(b, hq, c).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _shared(rows: Tensor, groups: int, reduce: Reduce, total: Tensor | None) -> Tensor:
    """Scores [B, HS, C] of the groups, from those of the query heads [B, Hq, C]."""
    b, hq, c = rows.shape
    shared = rows.view(b, groups, hq // groups, c)
    best = shared.amax(dim=2)
    if reduce == "max":
        return best
    if reduce == "mean":
        return shared.mean(dim=2)
    assert total is not None
    total = total.masked_fill(torch.isneginf(total), 0.0)  # then every weight is exp(-inf) = 0
    weights = (shared - total.view(b, groups, -1, 1)).exp().sum(dim=2)
    return weights.masked_fill(torch.isneginf(best), -torch.inf)
