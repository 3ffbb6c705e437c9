"""InfLLM's memory: blocks of raw keys in host memory, looked up by a few keys of each.

InfLLM, arXiv 2402.04617, section 3: what leaves the window is cut into blocks; a block stands in
the lookup for the mean of those keys that later queries wanted most (equation 2); the k blocks with
the highest score (equation 3) are read by all tokens of a pass, at one constant distance.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy as copy_of
from dataclasses import dataclass
from itertools import count
from typing import Literal

import torch
from torch import Tensor

from ....errors import ConfigError
from ....kernels.base import Attended, Bank, Summaries, seen
from ....kernels.ops import attend, gather_decode, score_blocks
from ..base import FarShape, Leaving
from .pool import Pool
from .slots import Slots

Heads = Literal["kv_head", "query_head"]
HOST = torch.device("cpu")

LONG = 64
"""Tokens of a pass from which on it is cheaper to lay its blocks side by side first: three times,
for 512 tokens that read 2,048 keys on a CPU."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """How blocks are made and found.

    Args:
        block: tokens of one.
        representatives: keys that stand for it, chosen for each of `heads`.
        k: blocks that a pass reads.
        heads: whether the query heads of a KV head choose together, or each alone.
        cached: blocks that are kept on the device; None: two passes' worth, and on a CPU none, as
            they are read where they lie.
    """

    block: int
    representatives: int
    k: int
    heads: Heads
    cached: int | None


class BlockMemory:
    """One layer's blocks, in the order of the text; block m of row b lies in row m * B + b.

    Valid keys come first in their block; a block of a row that has none is never selected.

    Raises:
        ConfigError: `cached` is too small for what one pass reads.
    """

    def __init__(self, shape: FarShape, lookup: Lookup) -> None:
        self.shape, self.lookup = shape, lookup
        needed = shape.rows * lookup.k
        if lookup.cached is not None and lookup.cached < needed:
            raise ConfigError(
                f"cached={lookup.cached} must be at least {needed}: each of {shape.rows} rows reads"
                f" k={lookup.k} blocks at once; give a larger cache or a smaller k"
            )
        self._keys, self._values, self._lengths = Pool(), Pool(), Pool()
        self._summaries = Pool()
        self._numbers: list[int] = []
        self._next = count()
        self._slots: Slots | None = None

    @property
    def blocks(self) -> int:
        """M, those of each row."""
        return len(self._summaries)

    @property
    def slots(self) -> Slots | None:
        """The blocks on the device; None where all are read in place."""
        return self._slots

    def add(self, leaving: Leaving) -> None:
        """Cut n tokens of each row into blocks; n is a multiple of a block.

        Raises:
            ConfigError: it is not.
        """
        n, block = leaving.keys.shape[2], self.lookup.block
        if n % block:
            raise ConfigError(
                f"{n} tokens leave the window, and block={block} does not divide them; make stride"
                " a multiple of block"
            )
        first = (~leaving.real).sort(dim=1, stable=True).indices  # what is no padding
        real = leaving.real.gather(1, first)
        at = first[:, None, :].expand(-1, leaving.wanted.shape[1], -1)
        wanted = leaving.wanted.gather(2, at)
        b, h, _, d = leaving.keys.shape
        keys, values = (
            x.gather(2, first[:, None, :, None].expand_as(x)).view(b, h, -1, block, d)
            for x in (leaving.keys, leaving.values)
        )
        wanted, real = wanted.view(b, -1, n // block, block), real.view(b, -1, block)
        self._summaries.append(_represented(keys, wanted, real, self.lookup))
        lengths = real.sum(dim=2, dtype=torch.int32)
        for pool, x in ((self._keys, keys), (self._values, values)):
            pool.append(x.permute(2, 0, 1, 3, 4).flatten(0, 1).to(HOST))
        self._lengths.append(lengths.T.flatten().to(HOST))
        self._number()

    def _number(self) -> None:
        while len(self._numbers) < len(self._lengths):
            self._numbers.append(next(self._next))

    def find(self, q: Tensor) -> Tensor:
        """Blocks int32 [B, S] that q [B, Hq, T, D] reads, in the order of the text; -1: none."""
        rows, k = len(q), self.lookup.k
        if self.blocks <= k:
            every = torch.arange(self.blocks, dtype=torch.int32, device=q.device)
            return every.expand(rows, -1)
        data = self._summaries.view().transpose(0, 1)[:, :, :, None].contiguous()
        mean = q.float().mean(dim=2)
        found = score_blocks(mean, Summaries(data), k, share="sequence", reduce="mean")
        return found.ids[:, 0].sort(dim=1).values

    def read(self, q: Tensor, scale: float | None) -> Attended | None:
        """See `Far`."""
        if not self.blocks:
            return None
        b, hq, t, d = q.shape
        ids = self.find(q)
        row = torch.arange(b, dtype=torch.int32, device=ids.device)[:, None]
        bank, at = self._on_device(torch.where(ids >= 0, ids * b + row, -1), q.device)
        if t >= LONG:
            return _read_gathered(q, bank, at.long(), scale)
        # a KV head's query heads stay neighbours when each is followed by its own other tokens
        folded = q.reshape(b, hq * t, d).contiguous()
        read = gather_decode(folded, bank, at[:, None].contiguous(), scale=scale)
        return Attended(read.out.view(b, hq, t, d), read.lse.view(b, hq, t))

    def _on_device(self, at: Tensor, device: torch.device) -> tuple[Bank, Tensor]:
        """A bank that holds the blocks `at` [B, S] of the pool, and where it holds them."""
        pool = Bank(self._keys.view(), self._values.view(), self._lengths.view())
        if self.lookup.cached is None and device == HOST:
            return pool, at
        if self._slots is None:
            room = self.lookup.cached or 2 * len(at) * self.lookup.k
            self._slots = Slots.empty(room, pool.keys, device)
        flat = at.flatten().tolist()
        rows = [row for row in flat if row >= 0]
        slots = self._slots.take([self._numbers[row] for row in rows], rows, pool)
        placed = iter(slots)
        moved = [next(placed) if row >= 0 else -1 for row in flat]
        return self._slots.bank, torch.tensor(moved, dtype=torch.int32, device=device).view_as(at)

    def fork(self) -> BlockMemory:
        """See `Far`; blocks are shared, and so are those on the device."""
        fork = copy_of(self)
        fork._keys, fork._values = self._keys.copy(), self._values.copy()
        fork._lengths, fork._summaries = self._lengths.copy(), self._summaries.copy()
        fork._numbers = self._numbers.copy()
        return fork

    def state(self) -> dict[str, Tensor]:
        """See `Far`."""
        return {name: pool.view() for name, pool in self._pools() if len(pool)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Far`."""
        fresh = BlockMemory(self.shape, self.lookup)
        for name, pool in fresh._pools():
            if name in state:
                pool.append(state[name].to(self.shape.device if name == "summaries" else HOST))
        fresh._number()
        self.__dict__.update(fresh.__dict__)

    def _pools(self) -> list[tuple[str, Pool]]:
        names = ("keys", "values", "lengths", "summaries")
        return [(name, getattr(self, f"_{name}")) for name in names]

    @property
    def nbytes(self) -> int:
        """See `Far`."""
        held = sum(pool.nbytes for _, pool in self._pools())
        return held + (0 if self._slots is None else self._slots.nbytes)

    def __len__(self) -> int:
        """See `Far`."""
        if not self.blocks:
            return 0
        return int(self._lengths.view().view(self.blocks, -1).sum(dim=0).max())


def _read_gathered(q: Tensor, bank: Bank, at: Tensor, scale: float | None) -> Attended:
    """As `gather_decode` of q [B, Hq, T, D] and blocks `at` [B, S], by a copy of these."""
    chosen = at.clamp(min=0)
    keys, values = (
        pool[chosen].transpose(1, 2).flatten(2, 3) for pool in (bank.keys, bank.values)
    )  # [B, H, S * P, D]
    assert bank.lengths is not None
    lengths = bank.lengths[chosen].masked_fill(at < 0, 0)
    there = torch.arange(bank.block, device=q.device) < lengths[..., None]
    there = there.flatten(1)[:, None].expand(-1, q.shape[2], -1)
    mask = None if bool(there.all()) else seen(there, q.dtype)
    return attend(q, keys, values, seen=mask, scale=scale)


def _represented(keys: Tensor, wanted: Tensor, real: Tensor, lookup: Lookup) -> Tensor:
    """float32 [M, B, heads, D], the mean of the keys of each block that were wanted most; NaN where
    there is none.

    Args:
        keys: [B, H, M, P, D].
        wanted: [B, Hq, M, P].
        real: bool [B, M, P].
    """
    group = wanted.shape[1] // keys.shape[1]
    if lookup.heads == "kv_head":
        wanted = wanted.view(len(wanted), -1, group, *wanted.shape[2:]).sum(dim=2)
    else:
        keys = keys.repeat_interleave(group, dim=1)
    wanted = wanted.masked_fill(~real[:, None], -torch.inf)
    best = wanted.topk(min(lookup.representatives, wanted.shape[-1]), dim=-1)
    chosen = keys.gather(3, best.indices[..., None].expand(*best.indices.shape, keys.shape[-1]))
    there = torch.isfinite(best.values)[..., None]
    total = chosen.float().masked_fill(~there, 0.0).sum(dim=3)
    return (total / there.sum(dim=3)).permute(2, 0, 1, 3)
