"""GEAR: few bits, and what they got wrong as a term of low rank and a few exact outliers.

Kang et al. 2024, arXiv 2403.05527: X ~ Dq + S + L. S holds the largest and smallest numbers of each
vector, Dq codes of X with those replaced by the vector's mean, L of rank r what is still missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ....errors import ConfigError
from ....kernels import bits as codes
from ....kernels.base import Pairing
from .packed import Codec, PackedStorage, Packing, Parts, check_least
from .quantized import MEMBERS, ByChannel, ByToken

LOOPS = 3
"""Power iterations (the public code's `loop`)."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """Another codec's groups, repaired.

    Args:
        base: makes Dq.
        along: dimension of [B, H, N, P, D] along which a vector lies: 3, a channel of keys over
            the group's tokens; 4, a token of values over its channels.
        rank: r, for each head and group.
        outliers: share of a vector's numbers that are kept exactly, half at either end.
        seed: of the power iteration's start.
    """

    base: Codec
    along: int
    rank: int
    outliers: float
    seed: int
    window: int = 0

    def shared(self, x: Tensor, q: Tensor | None) -> Parts:
        """Nothing."""
        return {}

    def encode(self, x: Tensor, shared: Parts) -> Parts:
        """The base's parts; index and value [B, H, N, 2k, D] or [B, H, N, P, 2k] of outliers; left
        [B, H, N, P, r] and right [B, H, N, D, r], whose product is L."""
        x = x.float()
        count = ends(x.shape[self.along], self.outliers)
        largest = x.topk(count, dim=self.along).indices
        smallest = x.topk(count, dim=self.along, largest=False).indices
        index = torch.cat([largest, smallest], dim=self.along)
        value = codes.half(x.gather(self.along, index))
        mean = x.mean(dim=self.along, keepdim=True).expand_as(index)
        parts = dict(self.base.encode(x.scatter(self.along, index, mean), shared))
        narrow = torch.uint8 if x.shape[self.along] <= 256 else torch.int16
        parts |= {"index": index.to(narrow), "value": value}
        left, right = low_rank(x - self._coded(parts, shared), self.rank, self.seed)
        return parts | {"left": codes.half(left), "right": codes.half(right)}

    def decode(self, parts: Parts, shared: Parts) -> Tensor:
        """See `Codec`."""
        missing = parts["left"].float() @ parts["right"].float().transpose(-1, -2)
        return self._coded(parts, shared) + missing

    def _coded(self, parts: Parts, shared: Parts) -> Tensor:
        """Dq + S."""
        near = self.base.decode(parts, shared)
        return near.scatter_(self.along, parts["index"].long(), parts["value"].float())


def ends(length: int, outliers: float) -> int:
    """Outliers at either end of a vector: of its own length (the public code counts a key channel's
    as if it were as long as all heads of a token), and at least one."""
    return max(1, round(length * outliers / 2)) if outliers else 0


def low_rank(x: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """left [..., P, r], orthonormal, and right [..., D, r]: about the best product of rank r for
    x [..., P, D], by power iteration (GEAR, algorithm 2). Orthonormal after every product instead
    of the last only: the same space, and no number grows."""
    start = torch.randn(x.shape[-1], rank, generator=torch.Generator().manual_seed(seed))
    right = start.to(x.device).expand(*x.shape[:-2], -1, -1)
    left = x @ right
    for turn in range(LOOPS):
        if turn:
            left = x @ torch.linalg.qr(right).Q
        left = torch.linalg.qr(left).Q
        right = x.transpose(-1, -2) @ left
    return left, right


@dataclass(frozen=True, slots=True)
class Gear(Packing):
    """Few bits, a term of low rank and outliers.

    Args:
        bits: of Dq; 2, 4 or 8.
        rank: r of each head; 0: no such term.
        outliers: share of numbers kept exactly; 0: none (GEAR-L).
        block: tokens that are packed at once and share a term of low rank; a multiple of `group`.
        seed: of the power iteration's start.
    """

    name: ClassVar[str] = "gear"
    bits: int = 2
    rank: int = 4
    outliers: float = 0.02
    block: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        Packing.__post_init__(self)
        check_least(self, "rank", 0)
        if self.bits not in MEMBERS:
            raise ConfigError(f"gear: bits={self.bits} must be one of {sorted(MEMBERS)}")
        if not 0 <= self.outliers < 0.5:
            raise ConfigError(f"gear: outliers={self.outliers} must be from 0 to below 0.5")
        if self.block < self.group or self.block % self.group:
            raise ConfigError(f"gear: block={self.block} must be a multiple of group={self.group}")
        if self.rank > self.block:
            raise ConfigError(f"gear: rank={self.rank} must be at most block={self.block}")

    def storage(self, pairing: Pairing, width: int) -> PackedStorage:
        """An empty one."""

        def repaired(base: Codec, along: int) -> Repaired:
            return Repaired(base, along, self.rank, self.outliers, self.seed)

        keys = repaired(ByChannel(self.bits, self.group), 3)
        values = repaired(ByToken(self.bits), 4)
        return PackedStorage(keys, values, group=self.block, residual=self.residual)
