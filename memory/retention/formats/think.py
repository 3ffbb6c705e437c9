"""ThinK: channels of the keys that hardly matter to what is asked are left out.

Xu et al. 2024, arXiv 2407.21018 (ICLR 2025), section 3. The paper prunes rotated channels; ours are
raw, so what is left out is a *pair* that rotates together: its norm does not depend on the angle.
Values stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ....errors import ConfigError
from ....kernels.base import Pairing
from .packed import PackedStorage, Packing, Parts, Whole

Criterion = Literal["query", "key", "random"]
"""What a pair is worth: what recent queries make of it; its keys' norm alone; or nothing (the
controls of a bench)."""

WINDOW = 32
"""Queries that are looked at (the paper's observation window)."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """Keys without the pairs that matter least; these are read as zero.

    One choice for each KV head and row, made at the first packing from the queries of all query
    heads that read it, and never changed: tokens that are encoded again lose nothing more.

    Args:
        drop: share of the pairs that is left out.
        pairing, width: which channels rotate together, of the first `width` (see `pairs`).
        by: what a pair is worth.
        seed: of the random choice.
    """

    drop: float
    pairing: Pairing
    width: int
    by: Criterion
    seed: int
    window: int = WINDOW

    def shared(self, x: Tensor, q: Tensor | None) -> Parts:
        """mask bool [B, H, D], channels in use, as many for every head.

        A pair's worth is the product of the norms of its queries and its keys, over both channels
        and the query heads of a KV head; without queries, the norm of its keys.
        """
        heads, dim = x.shape[1], x.shape[3]
        pair = pairs(self.pairing, self.width, dim).to(x.device)
        worth = _energy(x, pair)
        if self.by == "query" and q is not None:
            asked = _energy(q, pair)
            worth = worth * asked.view(len(x), heads, -1, len(pair)).sum(dim=2)
        if self.by == "random":
            draw = torch.Generator().manual_seed(self.seed)
            worth = torch.rand(worth.shape, generator=draw).to(x.device)
        count = len(pair) - round(len(pair) * self.drop)
        kept = pair[worth.topk(count, dim=-1).indices].flatten(2)
        return {"mask": x.new_zeros(*x.shape[:2], dim).scatter(2, kept, 1).bool()}

    def encode(self, x: Tensor, shared: Parts) -> Parts:
        """channels [B, H, N, P, K] of the K that are in use."""
        mask = shared["mask"][:, :, None, None].expand(x.shape)
        return {"channels": x[mask].view(*x.shape[:4], -1)}

    def decode(self, parts: Parts, shared: Parts) -> Tensor:
        """See `Codec`; zero where nothing was kept."""
        stored, mask = parts["channels"], shared["mask"][:, :, None, None]
        whole = stored.new_zeros(*stored.shape[:4], mask.shape[-1])
        return whole.masked_scatter_(mask.expand(whole.shape), stored)


def pairs(pairing: Pairing, width: int, dim: int) -> Tensor:
    """int64 [D / 2, 2], channels that rotate together; those beyond `width`, which do not rotate,
    by neighbours."""
    rotated = torch.arange(width)
    half = rotated.view(2, -1).T if pairing == "half" else rotated.view(-1, 2)
    return torch.cat([half, torch.arange(width, dim).view(-1, 2)])


def _energy(x: Tensor, pair: Tensor) -> Tensor:
    """The squared norm of each pair over all tokens of x [B, H, S, D]: [B, H, D / 2]."""
    return x.square().sum(dim=2)[..., pair].sum(dim=-1)


@dataclass(frozen=True, slots=True)
class Think(Packing):
    """Keys without their least channels: those that mattered least when the first were packed.

    Args:
        drop: share of the key channels that is left out.
        by: what decides; others than "query" are controls.
        seed: of the random control.
    """

    name: ClassVar[str] = "think"
    residual: int = 32
    drop: float = 0.4
    by: Criterion = "query"
    seed: int = 0

    def __post_init__(self) -> None:
        Packing.__post_init__(self)
        if not 0 <= self.drop < 1:
            raise ConfigError(f"think: drop={self.drop} must be from 0 to below 1")
        if self.by not in get_args(Criterion):
            raise ConfigError(f"think: by={self.by!r} must be one of {get_args(Criterion)}")

    def storage(self, pairing: Pairing, width: int) -> PackedStorage:
        """An empty one."""
        keys = Pruned(self.drop, pairing, width, self.by, self.seed)
        return PackedStorage(keys, Whole(), group=self.group, residual=self.residual)
