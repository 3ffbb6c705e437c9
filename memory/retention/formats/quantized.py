"""8, 4 and 2 bits: keys by channel over a group of tokens, values by token over 64 channels.

KIVI's asymmetry (Liu et al. 2024, arXiv 2402.02750, section 3): a few channels of the keys are
large in every token, values have no such channels. Keys are raw: rotation mixes a large channel
with its partner, by another angle for each token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ....errors import ConfigError
from ....kernels import bits as codes
from ....kernels.base import CHANNELS, Pairing
from .packed import PackedStorage, Packing, Parts

MEMBERS = {2: 4, 4: 2, 8: 1}
"""Codes of so many bits in a byte."""


@dataclass(frozen=True, slots=True)
class ByChannel:
    """A scale and a zero for each channel over `group` tokens.

    Args:
        bits: 2, 4 or 8.
    """

    bits: int
    group: int
    window: int = 0

    def shared(self, x: Tensor, q: Tensor | None) -> Parts:
        """Nothing."""
        return {}

    def encode(self, x: Tensor, shared: Parts) -> Parts:
        """codes uint8 [B, H, N, P, D * bits / 8]; scale and zero float16 [B, H, N, P / group, D].

        Raises:
            ConfigError: the codes of D channels do not fill bytes.
        """
        b, h, n, _, dim = x.shape
        grouped = x.float().reshape(b, h, n, -1, self.group, dim)
        return _encoded(grouped, 4, self.bits, x.shape)

    def decode(self, parts: Parts, shared: Parts) -> Tensor:
        """See `Codec`."""
        stored = codes.unpacked(parts["codes"], self.bits).float()
        grouped = stored.view(*parts["scale"].shape[:4], self.group, -1)
        return _decoded(grouped, parts, 4).flatten(3, 4)


@dataclass(frozen=True, slots=True)
class ByToken:
    """A scale and a zero for each token over 64 channels: over fewer, if 64 do not divide D."""

    bits: int
    window: int = 0

    def shared(self, x: Tensor, q: Tensor | None) -> Parts:
        """Nothing."""
        return {}

    def encode(self, x: Tensor, shared: Parts) -> Parts:
        """codes uint8 [B, H, N, P, D * bits / 8]; scale and zero float16 [B, H, N, P, D / 64].

        Raises:
            ConfigError: the codes of D channels do not fill bytes.
        """
        grouped = x.float().reshape(*x.shape[:4], -1, channels(x.shape[4]))
        return _encoded(grouped, 5, self.bits, x.shape)

    def decode(self, parts: Parts, shared: Parts) -> Tensor:
        """See `Codec`."""
        stored = codes.unpacked(parts["codes"], self.bits).float()
        return _decoded(stored.view(*parts["scale"].shape, -1), parts, 5).flatten(4, 5)


def channels(dim: int) -> int:
    """Channels of a value of D that share a scale: the most that divide it, up to 64."""
    return max(n for n in range(1, min(dim, CHANNELS) + 1) if dim % n == 0)


def _encoded(grouped: Tensor, over: int, bits: int, shape: torch.Size) -> Parts:
    dim = shape[-1]
    if dim % MEMBERS[bits]:
        raise ConfigError(
            f"keys and values have D={dim}; {bits} bits need a multiple of {MEMBERS[bits]},"
            " so that codes fill bytes; take a format of more bits"
        )
    low, high = grouped.amin(dim=over), grouped.amax(dim=over)
    scale, zero = codes.scale((high - low) / (2**bits - 1)), codes.half(low)
    stored = codes.rounded(grouped, scale.unsqueeze(over), zero.unsqueeze(over), bits)
    packed = codes.packed(stored.view(shape), bits)
    return {"codes": packed, "scale": scale, "zero": zero}


def _decoded(stored: Tensor, parts: Parts, over: int) -> Tensor:
    return stored.mul_(parts["scale"].float().unsqueeze(over)).add_(
        parts["zero"].float().unsqueeze(over)
    )


@dataclass(frozen=True, slots=True)
class Quantized(Packing):
    """What the formats of a few bits have in common. At D = 64 they take bits + 0.5 a number."""

    bits: ClassVar[int]

    def storage(self, pairing: Pairing, width: int) -> PackedStorage:
        """An empty one."""
        keys, values = ByChannel(self.bits, self.group), ByToken(self.bits)
        return PackedStorage(keys, values, group=self.group, residual=self.residual)


@dataclass(frozen=True, slots=True)
class Int8(Quantized):
    """8 bits: for practical purposes the same numbers, in half of bfloat16's room."""

    name: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8


@dataclass(frozen=True, slots=True)
class Int4(Quantized):
    """4 bits: what to take first."""

    name: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4


@dataclass(frozen=True, slots=True)
class Int2(Quantized):
    """2 bits: visibly worse."""

    name: ClassVar[str] = "int2"
    bits: ClassVar[int] = 2
