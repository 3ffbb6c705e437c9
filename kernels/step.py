"""The whole step by which a token reads a memory: score blocks, select, gather, attend.

One softmax over three kinds of block: sinks at the beginning, a window at the end, and of what lies
between the k that the query most probably needs. All of them lie in one pool, so that one kernel
reads them all. Nothing waits for the device and no shape depends on data: on CUDA the step can be
captured in a graph. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..errors import ConfigError
from .base import (
    Attended,
    Backend,
    Bank,
    Pairing,
    Reduce,
    Rotation,
    Share,
    Summaries,
    check,
    one_of,
)
from .ops import gather_decode, merge_partials, score_blocks
from .rotary import rotate

KeysAre = Literal["rotated", "raw", "relative"]


@dataclass(frozen=True, slots=True)
class Memory:
    """What B sequences may read, in blocks of P tokens.

    Args:
        bank: the pool of all blocks.
        summaries: of each sequence's blocks, in their order [B or 1, N, H, r, D].
        blocks: int32 [B], how many each sequence has; the last may be short (`bank.lengths`).
        table: int32 [B, N], the pool's id of each sequence's n-th block; None: n itself.
        coarse: summaries of neighbouring blocks together; see `score_blocks`.
    """

    bank: Bank
    summaries: Summaries
    blocks: Tensor
    table: Tensor | None = None
    coarse: Summaries | None = None


@dataclass(frozen=True, slots=True)
class Positions:
    """How keys stand in the bank, and how a query meets them. Query i of sequence b stands at
    `query[b]`, and block n's first key at n * P.

    Args:
        keys: `rotated` for good; `raw`, and rotated as they are read; `relative`, each rotated by
            its place in its block, so that the query is rotated by its distance from the block.
        cos, sin: float32 [M, D / 2], row m is position or distance m; see `rotary.table`.
        query: int32 [B], needed if `relative`; then q is given raw.
    """

    keys: KeysAre = "rotated"
    cos: Tensor | None = None
    sin: Tensor | None = None
    query: Tensor | None = None
    pairing: Pairing = "half"


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of one softmax: a bank, what is read of it, and with what (see `gather_decode`)."""

    bank: Bank
    ids: Tensor
    q: Tensor
    options: dict[str, Any] = field(default_factory=dict)


class Step(NamedTuple):
    """What was read: out [B, Hq, D] and lse [B, Hq] as `Attended`, of which blocks, in each
    sequence's own numbers int32 [B, HS, S] with S = sinks + k + window and -1 for none, and the
    mass of each key [B, HS, S, P] if it was asked for."""

    out: Tensor
    lse: Tensor
    blocks: Tensor
    mass: Tensor | None = None


def retrieval_attention(
    q: Tensor,
    memory: Memory,
    k: int,
    *,
    sinks: int = 1,
    window: int = 4,
    share: Share = "kv_head",
    reduce: Reduce = "max",
    score_q: Tensor | None = None,
    positions: Positions | None = None,
    scale: float | None = None,
    expand: int = 64,
    mass: bool = False,
    backend: Backend | None = None,
) -> Step:
    """Attention of each sequence's next token to sinks, window and the k most likely blocks.

    Args:
        q: [B, Hq, D]; rotated, but raw where keys are `relative`.
        sinks, window: blocks at the beginning and at the end that are always read.
        score_q: what blocks are scored with, if not q: summaries of raw keys want a raw query.
        share, reduce, expand: see `score_blocks`.
        scale, mass: see `gather_decode`.

    Raises:
        ConfigError: an argument breaks a rule; see `gather_decode` and `score_blocks`.
    """
    if sinks < 0 or window < 0:
        raise ConfigError(f"sinks={sinks} and window={window} must not be negative")
    b = len(q)
    check("blocks", memory.blocks, (b,), (torch.int32,), q.device)
    least = memory.blocks.clamp(max=sinks)
    most = torch.maximum(memory.blocks - window, least)
    selected = score_blocks(
        q if score_q is None else score_q,
        memory.summaries,
        k,
        share=share,
        reduce=reduce,
        candidates=torch.stack([least, most], dim=1),
        coarse=memory.coarse,
        expand=expand,
        backend=backend,
    )
    blocks = _with_ends(selected.ids, memory.blocks, sinks, window)
    query, rotation = _placed(q, blocks, memory.bank, positions or Positions())
    read = gather_decode(
        query,
        memory.bank,
        _in_pool(blocks, memory),
        scale=scale,
        rotation=rotation,
        mass=mass,
        backend=backend,
    )
    return Step(read.out, read.lse, blocks, read.mass)


def read(segments: Sequence[Segment], *, backend: Backend | None = None) -> Attended:
    """Several banks as one softmax, each read with its own query and options: banks that differ in
    format, dtype or positions. A key must be in one of them only.

    Raises:
        ConfigError: there is no segment, or one breaks a rule of `gather_decode`.
    """
    if not segments:
        raise ConfigError("segments=[] must have at least one")
    parts = [gather_decode(s.q, s.bank, s.ids, **s.options, backend=backend) for s in segments]
    out, lse = merge_partials(
        torch.stack([part.out for part in parts]),
        torch.stack([part.lse for part in parts]),
        backend=backend,
    )
    return Attended(out, lse)


def _with_ends(ids: Tensor, blocks: Tensor, sinks: int, window: int) -> Tensor:
    """[B, HS, sinks + k + window]: what was selected between what is always there."""
    b, groups, _ = ids.shape
    count = blocks[:, None]
    first = torch.arange(sinks, device=ids.device, dtype=torch.int32).expand(b, sinks)
    last = count - window + torch.arange(window, device=ids.device, dtype=torch.int32)
    first = torch.where(first < count, first, -1)
    last = torch.where(last >= count.clamp(max=sinks), last, -1)  # not a sink a second time
    ends = [each[:, None].expand(b, groups, each.shape[1]) for each in (first, last)]
    return torch.cat([ends[0], ids, ends[1]], dim=2).int()


def _in_pool(blocks: Tensor, memory: Memory) -> Tensor:
    table = memory.table
    if table is None:
        return blocks
    b, groups, s = blocks.shape
    check("table", table, (b, memory.summaries.data.shape[1]), (torch.int32,), blocks.device)
    found = table.gather(1, blocks.clamp(min=0).long().view(b, groups * s)).view(b, groups, s)
    return torch.where(blocks >= 0, found, -1)


def _placed(
    q: Tensor, blocks: Tensor, bank: Bank, positions: Positions
) -> tuple[Tensor, Rotation | None]:
    """The query as the kernel wants it, and how keys are to be rotated as they are read."""
    one_of("positions.keys", positions.keys, get_args(KeysAre))
    if positions.keys == "rotated":
        return q, None
    cos, sin = positions.cos, positions.sin
    if cos is None or sin is None:
        raise ConfigError(f"positions.keys={positions.keys!r} needs cos and sin; see rotary.table")
    base = blocks.clamp(min=0) * bank.block
    if positions.keys == "raw":
        return q, Rotation(cos, sin, base, pairing=positions.pairing)
    if positions.query is None:
        raise ConfigError("positions.keys='relative' needs query, the position of each query")
    check("positions.query", positions.query, (len(q),), (torch.int32,), q.device)
    distance = (positions.query[:, None, None] - base).clamp(0, len(cos) - 1)
    distance = distance.repeat_interleave(q.shape[1] // blocks.shape[1], dim=1).long()
    turned = rotate(q.float()[:, :, None], cos[distance], sin[distance], positions.pairing)
    return turned.to(q.dtype), None
