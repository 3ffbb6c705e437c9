"""`gather_decode` on a CPU: float32, and only a part of the selection gathered at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor

from ..base import Attended, Bank, Rotation
from ..rotary import rotate
from .formats import dequantized

MOST_BYTES = 32 << 20
"""Of keys, and as much again of values, that are gathered at a time."""

LOG2E = math.log2(math.e)


def run(
    q: Tensor,
    bank: Bank,
    ids: Tensor,
    *,
    scale: float,
    bias: Tensor | None = None,
    log_weight: Tensor | None = None,
    rotation: Rotation | None = None,
    splits: int | None = None,
    mass: bool = False,
) -> Attended:
    """Arguments as `ops.gather_decode`, which has checked them; `splits` changes nothing here."""
    b, hq, d, (_, groups, s) = q.shape[0], q.shape[1], q.shape[-1], ids.shape
    streams = max(groups, bank.heads)
    work = _Work(
        q.view(b * streams, hq // streams, -1, d),
        bank,
        ids,
        streams,
        scale * LOG2E,
        bias,
        log_weight,
        rotation,
    )
    out = torch.empty(b * streams, hq // streams, d, device=q.device)
    lse = torch.empty(b * streams, hq // streams, device=q.device)
    column = torch.zeros(b, groups, s, bank.block, device=q.device) if mass else None
    for some in work.streams_at_a_time():
        out[some], lse[some] = _attend(work, some)
        if column is not None:
            _add_mass(work, some, lse[some], column)
    return Attended(out.view(b, hq, d), lse.view(b, hq), column)


@dataclass(frozen=True, slots=True)
class _Work:
    """A stream is what reads one KV head by one row of the selection, in one sequence: B times the
    larger of HS and H. Its query heads are neighbours."""

    q: Tensor  # [B * streams, rows, S or 1, D]
    bank: Bank
    ids: Tensor
    streams: int
    scale: float  # times log2(e)
    bias: Tensor | None
    log_weight: Tensor | None
    rotation: Rotation | None

    @property
    def block_bytes(self) -> int:
        """Of one block of one head, as float32."""
        return self.bank.block * self.bank.dim * 4

    def streams_at_a_time(self) -> Iterator[Tensor]:
        """Indices of streams that are worked on together, [X]."""
        together = max(1, MOST_BYTES // self.block_bytes)
        return iter(torch.split(torch.arange(len(self.q), device=self.q.device), together))

    def blocks_at_a_time(self, some: Tensor) -> Iterator[slice]:
        """Columns of the selection that are gathered together for these streams."""
        s = self.ids.shape[2]
        together = max(1, MOST_BYTES // (self.block_bytes * len(some)))
        return (slice(start, min(start + together, s)) for start in range(0, s, together))

    def place(self, some: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each stream, [X]: its sequence, its row of the selection, its KV head."""
        stream = some % self.streams
        group = stream * self.ids.shape[1] // self.streams
        return some // self.streams, group, stream * self.bank.heads // self.streams

    def gathered(self, some: Tensor, part: slice) -> tuple[Bank, Tensor]:
        """A bank [X, S, P, D] of nothing but the blocks of a part, in their format, and which of
        its tokens [X, S, P] there are."""
        sequence, group, head = self.place(some)
        ids = self.ids[sequence, group, part]
        bank, block = self.bank, ids.clamp(min=0).long()
        length = bank.lengths[block] if bank.lengths is not None else bank.block
        length = torch.where(ids >= 0, length, 0)
        there = torch.arange(bank.block, device=ids.device) < length[..., None]
        at = block * bank.heads + head[:, None]
        taken = replace(
            bank,
            keys=_taken(bank.keys, at),
            values=_taken(bank.values, at),
            lengths=None,
            key_scale=_taken(bank.key_scale, at),
            value_scale=_taken(bank.value_scale, at),
            key_zero=_taken(bank.key_zero, at),
            value_zero=_taken(bank.value_zero, at),
        )
        return taken, there

    def logits(self, some: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Base 2, [X, rows, S * P], and the values [X, S * P, D] that go with them."""
        gathered, there = self.gathered(some, part)
        keys, values = dequantized(gathered, torch.float32)
        if self.rotation is not None:
            keys = self._rotated(keys, some, part)
        q = self.q[some].float()
        if q.shape[2] > 1:
            logits = torch.einsum("xrsd,xspd->xrsp", q[:, :, part], keys).flatten(2)
        else:
            logits = q[:, :, 0] @ keys.flatten(1, 2).mT
        logits = (logits * self.scale).view(*logits.shape[:2], *there.shape[1:])
        sequence, group, head = self.place(some)
        if self.bias is not None:
            logits += (self.bias[sequence, group, part] * LOG2E)[:, None, :, None]
        if self.log_weight is not None:
            ids = self.ids[sequence, group, part].clamp(min=0).long()
            logits += (self.log_weight[ids, head[:, None]] * LOG2E)[:, None]
        logits = logits.masked_fill(~there[:, None], -math.inf).flatten(2)
        # 0 * NaN is NaN: what stands beyond a block's end must not count
        values = values.masked_fill_(~there[..., None], 0.0)
        return logits, values.flatten(1, 2)

    def _rotated(self, keys: Tensor, some: Tensor, part: slice) -> Tensor:
        assert self.rotation is not None
        sequence, group, _ = self.place(some)
        cos, sin, base = self.rotation.cos, self.rotation.sin, self.rotation.base
        base = base[sequence, group if base.shape[1] > 1 else torch.zeros_like(group), part].long()
        place = torch.arange(self.bank.block, device=keys.device)
        at = (base[..., None] + self.rotation.step * place).clamp(0, len(cos) - 1)
        return rotate(keys, cos[at].float(), sin[at].float(), self.rotation.pairing)


@overload
def _taken(pool: Tensor, at: Tensor) -> Tensor: ...
@overload
def _taken(pool: None, at: Tensor) -> None: ...
@overload
def _taken(pool: Tensor | None, at: Tensor) -> Tensor | None: ...
def _taken(pool: Tensor | None, at: Tensor) -> Tensor | None:
    """Of a pool [N, H, ...] the rows `at` [X, S], counted over N * H; several times quicker than
    indexing by two tensors."""
    if pool is None:
        return None
    return pool.flatten(0, 1).index_select(0, at.flatten()).view(*at.shape, *pool.shape[2:])


def _attend(work: _Work, some: Tensor) -> tuple[Tensor, Tensor]:
    """One pass over the selection, rescaling what was read so far whenever a logit is larger."""
    rows, d = work.q.shape[1], work.q.shape[3]
    top = torch.full((len(some), rows), -math.inf, device=some.device)
    total = torch.zeros_like(top)
    out = torch.zeros(len(some), rows, d, device=some.device)
    for part in work.blocks_at_a_time(some):
        logits, values = work.logits(some, part)
        higher = torch.maximum(top, logits.amax(dim=-1))
        shift = higher.masked_fill(torch.isneginf(higher), 0.0)
        weights = torch.exp2(logits - shift[..., None])
        before = torch.exp2(top - shift)
        total = total * before + weights.sum(dim=-1)
        out = out * before[..., None] + weights @ values
        top = higher
    seen = total > 0
    out = out / torch.where(seen, total, 1.0)[..., None]
    return out, torch.where(seen, top + torch.log2(total), -math.inf)


def _add_mass(work: _Work, some: Tensor, lse: Tensor, column: Tensor) -> None:
    """A second pass, now that each row's sum is known: what a weight is of the whole."""
    sequence, group, _ = work.place(some)
    shift = lse.masked_fill(torch.isneginf(lse), 0.0)
    for part in work.blocks_at_a_time(some):
        logits, _ = work.logits(some, part)
        weights = torch.exp2(logits - shift[..., None]).sum(dim=1)
        shares = weights.view(len(some), -1, work.bank.block)
        # streams of one sequence may share a row of the selection, and then add up
        column[:, :, part].index_put_((sequence, group), shares, accumulate=True)
