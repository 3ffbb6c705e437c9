"""`score_blocks` in Triton: scores never reach memory, only the best of each split do.

One program scores a tile of summaries at a time against the query rows that share a selection.
Letters as in `base`; M rows of a tile, BN summaries of it, DP channels, padded to a power of two.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..base import Reduce, Selected, Share, Summaries
from ..configs import Config, choose, device_of
from .running import NOTHING, improved, joined, packed, padded, parts_of

FUSED = 64
"""Largest k that a program keeps in registers. For a larger one every key goes to memory, 8 bytes
a score, and torch selects."""

MOST_KEYS = 4096
"""Keys of all splits that the second stage holds at once."""


@triton.jit
def _query(
    q,
    sequence,
    first,
    HQ: tl.constexpr,
    ROWS: tl.constexpr,
    M: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
):
    """Query rows [M, DP] from the first one on; 0 beyond ROWS and D."""
    row, channel = tl.arange(0, M), tl.arange(0, DP)
    at = (sequence * HQ + first + row)[:, None] * D + channel[None, :]
    inside = (row < ROWS)[:, None] & (channel < D)[None, :]
    return tl.load(q + at, mask=inside, other=0.0)


@triton.jit
def _scores(
    rows,
    data,
    number,
    inside,
    head,
    H: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BN: tl.constexpr,
    BOUNDS: tl.constexpr,
):
    """Scores [M, BN] float32 of rows [M, DP] against the summaries of some blocks; -inf for NaN."""
    channel = tl.arange(0, DP)
    at = (number.to(tl.int64) * H + head)[:, None] * (R * D) + channel[None, :]
    mask = inside[:, None] & (channel < D)[None, :]
    score = tl.zeros([rows.shape[0], BN], tl.float32)
    if BOUNDS:
        # max(q * high, q * low) is q+ * high + q- * low; a NaN stays in both
        zero = tl.zeros_like(rows)
        above, below = tl.where(rows < 0, zero, rows), tl.where(rows > 0, zero, rows)
        high = tl.load(data + at, mask=mask, other=0.0)
        low = tl.load(data + at + D, mask=mask, other=0.0)
        score = tl.dot(above, tl.trans(high), score, input_precision="ieee")
        score = tl.dot(below, tl.trans(low), score, input_precision="ieee")
    else:
        for each in range(R):
            summary = tl.load(data + at + each * D, mask=mask, other=0.0)
            score = tl.dot(rows, tl.trans(summary), score, input_precision="ieee")
    return tl.where(score == score, score, float("-inf"))


@triton.jit
def _above(table, unit, place, stop, size, FACTOR: tl.constexpr):
    """The coarse rows that some places belong to, -1 where there is none."""
    at = unit * (size // FACTOR) + place // FACTOR
    return tl.load(table + at, mask=place < stop, other=-1)


@triton.jit
def _total(
    q,
    data,
    total,
    n,
    HQ: tl.constexpr,
    H: tl.constexpr,
    ROWS: tl.constexpr,
    M: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BN: tl.constexpr,
    BOUNDS: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Grid [H, splits, B]: the logarithm of the sum of exponentials of each query head's scores
    over a split's blocks, into [splits, B, HQ]."""
    head, split, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    if not SHARED:
        data += sequence * n * (H * R * D)
    part = tl.cdiv(tl.cdiv(n, BN), tl.num_programs(1)) * BN
    stop = tl.minimum(split * part + part, n)
    rows = _query(q, sequence, head * ROWS, HQ, ROWS, M, D, DP)
    top = tl.full([M], float("-inf"), tl.float32)
    mass = tl.zeros([M], tl.float32)
    for start in range(split * part, stop, BN):
        number = start + tl.arange(0, BN)
        inside = number < stop
        score = _scores(rows, data, number, inside, head, H, R, D, DP, BN, BOUNDS)
        score = tl.where(inside[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        # where nothing was seen yet, -inf - -inf must not become NaN
        base = tl.where(higher == float("-inf"), 0.0, higher)
        mass = mass * tl.exp(top - base) + tl.sum(tl.exp(score - base[:, None]), 1)
        top = higher
    row = tl.arange(0, M)
    at = (split * tl.num_programs(2) + sequence) * HQ + head * ROWS + row
    seen = mass > 0.0
    lse = tl.where(seen, top + tl.log(tl.where(seen, mass, 1.0)), float("-inf"))
    tl.store(total + at, lse, mask=row < ROWS)


@triton.jit
def _shared(
    q,
    rows,
    data,
    total,
    number,
    inside,
    sequence,
    first_row,
    HQ: tl.constexpr,
    H: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    M: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BN: tl.constexpr,
    BOUNDS: tl.constexpr,
    REDUCE: tl.constexpr,
):
    """Scores [BN] of some blocks for those who share a selection: `rows` of one KV head; or ROWS of
    each of HEADS, which are read as they are needed."""
    row = tl.arange(0, M)
    real = (row < ROWS)[:, None]
    top = tl.full([BN], float("-inf"), tl.float32)
    score = tl.zeros([BN], tl.float32)
    for each in range(HEADS):
        if HEADS > 1:
            first_row = each * ROWS
            rows = _query(q, sequence, first_row, HQ, ROWS, M, D, DP)
        head = first_row // (HQ // H)
        scored = _scores(rows, data, number, inside, head, H, R, D, DP, BN, BOUNDS)
        top = tl.maximum(top, tl.max(tl.where(real, scored, float("-inf")), 0))
        if REDUCE == "mean":
            score += tl.sum(tl.where(real, scored, 0.0), 0) / (ROWS * HEADS)
        if REDUCE == "softmax":
            at = sequence * HQ + first_row + row
            lse = tl.load(total + at, mask=row < ROWS, other=0.0)
            lse = tl.where(lse == float("-inf"), 0.0, lse)
            score += tl.sum(tl.where(real, tl.exp(scored - lse[:, None]), 0.0), 0)
    if REDUCE == "max":
        score = top
    # what no row can score weighs nothing, and must not be selected for that
    return tl.where(top == float("-inf"), top, score)


@triton.jit
def _score(
    q,
    data,
    candidates,
    table,
    total,
    out,
    n,
    size,
    HQ: tl.constexpr,
    H: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    M: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BN: tl.constexpr,
    K: tl.constexpr,
    BOUNDS: tl.constexpr,
    SHARED: tl.constexpr,
    REDUCE: tl.constexpr,
    FACTOR: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Grid [HS, splits, B]: the K best packed keys of a split, ascending, into [B, HS, splits, K];
    or, if KEEP is not set, all keys into [B, HS, size].

    Reads `size` places: block n stands at place n; or, if there is a FACTOR, the blocks of the
    coarse rows `table` [B, HS, size / FACTOR], of which -1 is none. A selection is shared by HEADS
    KV heads, times ROWS query heads of each.
    """
    group, split, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    unit = sequence * tl.num_programs(0) + group
    if not SHARED:
        data += sequence * n * (H * R * D)
    low, high = 0, n
    if candidates is not None:
        low = tl.maximum(tl.load(candidates + sequence * 2), 0)
        high = tl.minimum(tl.load(candidates + sequence * 2 + 1), n)
    begin, end = 0, size
    if KEEP and not FACTOR:
        begin, end = low, tl.maximum(low, high)  # what is excluded is not read
    part = tl.cdiv(tl.cdiv(end - begin, BN), tl.num_programs(1)) * BN
    first = begin + split * part
    stop = tl.minimum(first + part, end)

    first_row = group * ROWS
    rows = _query(q, sequence, first_row, HQ, ROWS, M, D, DP)
    if FACTOR:
        later = _above(table, unit, first + tl.arange(0, BN), stop, size, FACTOR)
    out += (unit * tl.num_programs(1) + split) * K if KEEP else unit * size
    best = tl.full([K], NOTHING, tl.int64)
    for start in range(first, stop, BN):
        place = start + tl.arange(0, BN)
        number, inside = place, place < stop
        if FACTOR:
            above = later
            # a load that other loads wait for costs them a stage, unless it is a step ahead
            later = _above(table, unit, place + BN, stop, size, FACTOR)
            number = above * FACTOR + place % FACTOR
            inside = inside & (above >= 0)
        if FACTOR or not KEEP:  # else no place is outside
            inside = inside & (number >= low) & (number < high)
        score = _shared(
            q,
            rows,
            data,
            total,
            number,
            inside,
            sequence,
            first_row,
            HQ,
            H,
            ROWS,
            HEADS,
            M,
            R,
            D,
            DP,
            BN,
            BOUNDS,
            REDUCE,
        )
        keys = tl.where(inside, packed(score, number), NOTHING)
        if KEEP:
            # most tiles of a long split have nothing better, and a sort costs more than a tile
            if tl.max(keys, 0) > tl.min(best, 0):
                best = improved(best, keys, K)
        else:
            tl.store(out + place, keys, mask=place < stop)
    if KEEP:
        tl.store(out + tl.arange(0, K), best)


class _How(NamedTuple):
    share: Share
    reduce: Reduce
    config: Config | None

    def sized(self, summaries: Summaries) -> tuple[Config, int]:
        """The configuration, and how many processors there are."""
        gpu, processors = device_of(summaries.data)
        _, n, h, r, d = summaries.data.shape
        shape = {"N": n, "H": h, "R": r, "D": d, "bytes": summaries.data.element_size()}
        return self.config or choose("score", gpu, shape), processors


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
    config: Config | None = None,
) -> Selected:
    """Arguments as `ops.score_blocks`; the config is chosen, if none is given."""
    how = _How(share, reduce, config)
    if coarse is None:
        return _best(q, summaries, k, candidates, how)
    factor = coarse.span // summaries.span
    outward = None
    if candidates is not None:
        outward = torch.stack([candidates[:, 0] // factor, -(-candidates[:, 1] // factor)], dim=1)
    above = _best(q, coarse, expand, outward, how)
    return _best(q, summaries, k, candidates, how, above.ids, factor)


def _best(
    q: Tensor,
    summaries: Summaries,
    k: int,
    candidates: Tensor | None,
    how: _How,
    table: Tensor | None = None,
    factor: int = 0,
) -> Selected:
    """The k best of all blocks, or of those of the coarse rows in `table` [B, HS, E]."""
    (b, hq, _), (_, n, h, _, _) = q.shape, summaries.data.shape
    config, processors = how.sized(summaries)
    groups = {"sequence": 1, "kv_head": h, "query_head": hq}[how.share]
    size = n if table is None else table.shape[2] * factor
    tiles, keep = triton.cdiv(size, config.tile), padded(k) <= min(FUSED, config.tile)
    most = MOST_KEYS if keep else tiles
    width = padded(k) if keep else 1
    splits = config.splits or parts_of(b * groups, tiles, width, processors, most)
    splits = min(splits, most // width)
    shape = (b * groups, splits * width if keep else size)
    keys = torch.empty(shape, dtype=torch.int64, device=q.device)
    total = _totals(q, summaries, how) if how.reduce == "softmax" else None
    _score[(groups, splits, b)](
        q,
        summaries.data,
        candidates,
        table,
        total,
        keys,
        n,
        size,
        HEADS=h if how.share == "sequence" else 1,
        K=width,
        REDUCE=how.reduce,
        FACTOR=factor,
        KEEP=keep,
        **_shapes(q, summaries, 1 if how.share == "query_head" else hq // h, config),
    )
    ids, scores = joined(keys, k, keep)
    return Selected(ids.view(b, groups, k), scores.view(b, groups, k))


def _totals(q: Tensor, summaries: Summaries, how: _How) -> Tensor:
    """The logarithm of the sum of exponentials of each query head's scores, [B, Hq] float32."""
    (b, hq, _), (_, n, h, _, _) = q.shape, summaries.data.shape
    config, processors = how.sized(summaries)
    tiles = triton.cdiv(n, config.tile)
    splits = config.splits or parts_of(b * h, tiles, 1, processors, MOST_KEYS)
    total = torch.empty(splits, b, hq, dtype=torch.float32, device=q.device)
    _total[(h, splits, b)](q, summaries.data, total, n, **_shapes(q, summaries, hq // h, config))
    return total.logsumexp(dim=0)


def _shapes(q: Tensor, summaries: Summaries, rows: int, config: Config) -> dict[str, Any]:
    """What both kernels are compiled for."""
    bs, _, h, r, d = summaries.data.shape
    return {
        "HQ": q.shape[1],
        "H": h,
        "ROWS": rows,
        "M": max(16, triton.next_power_of_2(rows)),
        "R": r,
        "D": d,
        "DP": triton.next_power_of_2(d),
        "BN": config.tile,
        "BOUNDS": summaries.kind == "bounds",
        "SHARED": bs == 1,
        **config.options,
    }
