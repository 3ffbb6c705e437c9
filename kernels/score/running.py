"""Triton's half of a selection: packed keys, the best of them so far, and the splits' best joined.

The keys are those of `packed`. Knows nothing of what is scored: `cosine` selects with it too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configs import RESIDENT, Config
from .packed import unpack

NOTHING = tl.constexpr(-0x7F800001 << 32)
"""The key of a score of -inf that no index has."""


@triton.jit
def packed(score, index):
    """int64 keys of float32 scores and of indices that broadcast against them; NaN is -inf."""
    score = tl.where(score == score, score, float("-inf"))
    score = tl.where(score == 0.0, 0.0, score)  # -0.0 becomes 0.0
    bits = score.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (index.to(tl.int64) ^ 0xFFFFFFFF)


@triton.jit
def improved(best, keys, K: tl.constexpr):
    """The best K, ascending along the last axis, with others [..., BN] taken in.

    An ascending row against a descending one: the greater of each pair are the K best of all, and
    first rise, then fall, so that one bitonic merge sorts them.
    """
    return tl.bitonic_merge(tl.maximum(best, tl.topk(keys, K)))


@triton.jit
def _join(keys, ids, scores, most, k: tl.constexpr, K: tl.constexpr, SIZE: tl.constexpr):
    """Grid [rows]: the k best of a row's `most` keys, unpacked and in order."""
    row = tl.program_id(0).to(tl.int64)
    each = tl.arange(0, SIZE)
    found = tl.load(keys + row * most + each, mask=each < most, other=NOTHING)
    best = tl.topk(found, K)
    ordered = (best >> 32).to(tl.int32)
    score = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    index = (best ^ 0xFFFFFFFF).to(tl.int32)
    place = tl.arange(0, K)
    at = row * k + place
    tl.store(ids + at, tl.where(score == float("-inf"), -1, index), mask=place < k)
    tl.store(scores + at, score, mask=place < k)


def padded(k: int) -> int:
    """A power of two; at least 2, as Triton 3.6 fails to compile a top-1."""
    return max(2, int(triton.next_power_of_2(k)))


def parts_of(units: int, tiles: int, width: int, processors: int, most: int) -> int:
    """Into how many splits each unit's tiles are cut: the smallest power of two by which the
    device is full, while no split goes without a tile and `most` keys are not exceeded by theirs,
    `width` of each."""
    parts = 1
    while (
        units * parts < RESIDENT * processors and parts * 2 <= tiles and parts * 2 * width <= most
    ):
        parts *= 2
    return parts


def joined(keys: Tensor, k: int, few: bool) -> tuple[Tensor, Tensor]:
    """ids int32 and scores float32 [rows, k] of the best of each row's keys [rows, most]; few are
    what splits kept, and else they are all keys."""
    rows, most = keys.shape
    if not few:
        scores, ids = unpack(keys.topk(k, dim=1).values)
        return ids, scores
    ids = torch.empty(rows, k, dtype=torch.int32, device=keys.device)
    scores = torch.empty(rows, k, dtype=torch.float32, device=keys.device)
    size = triton.next_power_of_2(most)
    options = Config(warps=4 if size <= 2048 else 8).options
    _join[(rows,)](keys, ids, scores, most, k=k, K=padded(k), SIZE=size, **options)
    return ids, scores
