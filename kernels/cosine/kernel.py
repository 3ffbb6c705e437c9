"""`cosine_topk` in Triton: scores never reach memory, only the best of each split do.

One program scores tiles of rows against 16 queries at a time, each of which keeps its own best.
int8 rows become bfloat16, which holds them exactly and costs no conversion instruction; the
queries are then rounded to bfloat16, which is off by less than the rows' own rounding.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..base import Nearest
from ..configs import Config, choose, device_of
from ..score.running import NOTHING, improved, joined, packed, padded, parts_of

FUSED = 32
"""Largest k that a program keeps in registers, for each of its 16 queries. For a larger one every
key goes to memory, 8 bytes a score, and torch selects."""

MOST_KEYS = 8192
"""Keys of all splits that the second stage holds at once."""

AT_ONCE = 1 << 26
"""Such keys that may lie in memory at once; queries wait for others where there would be more."""

QUERIES = 16
"""The fewest rows of a product; with more of them, their best do not fit the registers."""

CHANNELS = 64
"""Channels of a row that are read in one step."""


@triton.jit
def _cosine(
    queries,
    rows,
    scales,
    out,
    b,
    n,
    D: tl.constexpr,
    M: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    K: tl.constexpr,
    MATHS: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Grid [splits, B / M]: the K best packed keys of a split, ascending, into [B, splits, K]; or,
    if KEEP is not set, all keys into [B, N]."""
    split, splits = tl.program_id(0), tl.num_programs(0)
    query = tl.program_id(1) * M + tl.arange(0, M)
    asked = query < b
    channel = tl.arange(0, BD)
    part = tl.cdiv(tl.cdiv(n, BN), splits) * BN
    stop = tl.minimum(split * part + part, n)
    best = tl.full([M, K], NOTHING, tl.int64)
    for start in range(split * part, stop, BN):
        row = start + tl.arange(0, BN)
        inside = row < stop
        at = row.to(tl.int64)[:, None] * D + channel[None, :]
        score = tl.zeros([M, BN], tl.float32)
        for low in range(0, D, BD):
            here = channel < D - low
            operand = tl.load(
                queries + query[:, None] * D + low + channel[None, :],
                mask=asked[:, None] & here[None, :],
                other=0.0,
            )
            stored = tl.load(rows + at + low, mask=inside[:, None] & here[None, :], other=0)
            score = tl.dot(
                operand.to(MATHS), tl.trans(stored.to(MATHS)), score, input_precision="ieee"
            )
        if scales is not None:
            score = score * tl.load(scales + row, mask=inside, other=0.0)[None, :]
        keys = packed(score, row[None, :])
        keys = tl.where(asked[:, None] & inside[None, :], keys, NOTHING)
        if KEEP:
            if tl.max((tl.max(keys, 1) > tl.min(best, 1)).to(tl.int32), 0) > 0:
                best = improved(best, keys, K)
        else:
            at_key = query.to(tl.int64)[:, None] * n + row[None, :]
            tl.store(out + at_key, keys, mask=asked[:, None] & inside[None, :])
    if KEEP:
        at_best = (query.to(tl.int64) * splits + split)[:, None] * K + tl.arange(0, K)[None, :]
        tl.store(out + at_best, best, mask=asked[:, None])


def run(
    queries: Tensor,
    rows: Tensor,
    k: int,
    *,
    scales: Tensor | None,
    config: Config | None = None,
    maths: tl.dtype | None = None,
) -> Nearest:
    """Arguments as `ops.cosine_topk`; config and type of the products are chosen if not given."""
    (b, d), n = queries.shape, len(rows)
    gpu, processors = device_of(rows)
    shape = {"N": n, "D": d, "bytes": rows.element_size()}
    config = config or choose("cosine", gpu, shape)
    keep, tiles = padded(k) <= min(FUSED, config.tile), triton.cdiv(n, config.tile)
    together = b if keep else max(1, AT_ONCE // n)
    found = []
    for some in queries.split(together):
        asked, width = len(some), padded(k) if keep else 1
        units = triton.cdiv(asked, QUERIES)
        most = MOST_KEYS if keep else tiles
        splits = config.splits or parts_of(units, tiles, width, processors, most)
        splits = min(splits, most // width)
        size = (asked, splits * width if keep else n)
        keys = torch.empty(size, dtype=torch.int64, device=rows.device)
        _cosine[(splits, units)](
            some,
            rows,
            scales,
            keys,
            asked,
            n,
            D=d,
            M=QUERIES,
            BN=config.tile,
            BD=CHANNELS,
            K=width,
            MATHS=maths or _maths(rows.dtype),
            KEEP=keep,
            **config.options,
        )
        found.append(joined(keys, k, keep))
    ids, scores = (
        torch.cat(each) if len(found) > 1 else each[0] for each in zip(*found, strict=True)
    )
    return Nearest(ids, scores)


def _maths(stored: torch.dtype) -> tl.dtype:
    return {torch.float16: tl.float16, torch.float32: tl.float32, torch.int8: tl.bfloat16}[stored]
