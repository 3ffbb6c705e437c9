"""Sequences of known tokens in a memory, and dense float64 attention over any of their blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from palimpsest.kernels.base import Attended, Bank, Summaries
from palimpsest.kernels.step import Memory, Step
from torch import Tensor

from .cases import LIMITS, error, seeded, worst

HQ, H, D, P = 4, 2, 16, 16
NOWHERE = 1 << 20
"""In a table where a sequence has no block: reading it would fail."""


@dataclass(frozen=True)
class World:
    """Sequences of known tokens, [B, N, P, H, D] in float64, and the memory that holds them."""

    keys: Tensor
    values: Tensor
    valid: Tensor  # [B, N, P]
    counts: list[int]
    memory: Memory

    def scores(self, q: Tensor) -> Tensor:
        """q times each block's mean key, [B, Hq, N]."""
        mean = means(self.keys, self.valid)
        return torch.einsum("bhd,bnhd->bhn", q.double(), mean.repeat_interleave(HQ // H, dim=2))


def means(keys: Tensor, valid: Tensor) -> Tensor:
    """Of each block's valid keys, [B, N, H, D]."""
    total = torch.where(valid[..., None, None], keys, 0.0).sum(dim=2)
    return total / valid.sum(dim=2).clamp(min=1)[..., None, None]


def world(counts: list[int], last: int = P, seed: int = 0) -> World:
    """Sequences of so many blocks, the last of `last` tokens, mixed up in one pool."""
    b, n, rng = len(counts), max(1, *counts), seeded(seed)
    keys, values = (torch.randn(b, n, P, H, D, generator=rng) for _ in range(2))
    valid = torch.zeros(b, n, P, dtype=torch.bool)
    for row, count in zip(valid, counts, strict=True):
        row[:count] = True
        row[count - 1 : count, last:] = False
    place = torch.randperm(b * n, generator=rng).view(b, n)
    lengths = torch.zeros(b * n, dtype=torch.int32)
    lengths[place.flatten()] = valid.sum(2).flatten().int()
    pool = []
    for tokens in (keys, values):
        each = torch.empty(b * n, H, P, D)
        marked = torch.where(valid[..., None, None], tokens, torch.nan)
        each[place.flatten()] = marked.flatten(0, 1).transpose(1, 2)
        pool.append(each)
    there = torch.arange(n) < torch.tensor(counts)[:, None]
    # what no sequence has looks better than anything that it has
    mean = torch.where(there[..., None, None], means(keys, valid), 1e3)
    memory = Memory(
        Bank(pool[0], pool[1], lengths),
        Summaries(mean[:, :, :, None].contiguous()),
        torch.tensor(counts, dtype=torch.int32),
        torch.where(there, place, NOWHERE).int(),
    )
    return World(keys.double(), values.double(), valid, counts, memory)


def dense(
    world: World, q: Tensor, blocks: Tensor, keys: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """out and lse (base 2) over every token of these blocks [B, HS, S], in float64."""
    n = world.keys.shape[1]
    member = (blocks[..., None] == torch.arange(n)).any(dim=2)
    seen = member.repeat_interleave(HQ // member.shape[1], 1)[..., None] & world.valid[:, None]
    k = (world.keys if keys is None else keys).repeat_interleave(HQ // H, dim=3)
    v = world.values.repeat_interleave(HQ // H, dim=3)
    logits = torch.einsum("bhd,bnphd->bhnp", q.double(), k) / math.sqrt(D)
    logits = logits.masked_fill(~seen, -math.inf).flatten(2)
    weights = logits.softmax(dim=-1).nan_to_num(nan=0.0)
    out = torch.einsum("bht,bthd->bhd", weights, v.flatten(1, 2))
    return out, torch.logsumexp(logits, dim=-1) / math.log(2)


def assert_reads(step: Step | Attended, truth: tuple[Tensor, Tensor]) -> None:
    limit = LIMITS[torch.float32]
    assert error(step.out, truth[0]) <= limit.out
    assert worst(step.lse, truth[1]) <= limit.lse


def query(b: int, seed: int = 9) -> Tensor:
    return torch.randn(b, HQ, D, generator=seeded(seed))
