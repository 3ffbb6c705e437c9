"""Storage formats of a bank: how keys and values become few bits, and what these stand for."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ...errors import ConfigError
from .. import bits
from ..base import CHANNELS, Bank, one_of

LARGEST = {"fp8": 448.0, "int8": 127.0}
"""Of a token's values after scaling: what the format can just hold."""


def quantize(bank: Bank, format: Literal["fp8", "int8", "int4"]) -> Bank:
    """The bank in another format: 8 bits with a scale for each token and head, or 4 bits with a
    scale and a zero for each channel of a block's keys, and each 64 channels of a token's values.

    Keys of tokens beyond a block's length have no part in a channel's scale.

    Raises:
        ConfigError: the bank is quantized already, or D does not suit the format.
    """
    one_of("format", format, ("fp8", "int8", "int4"))
    if bank.format != "plain":
        raise ConfigError(f"bank.format={bank.format!r} must be 'plain' to be quantized")
    if format == "int4":
        if bank.dim % CHANNELS:
            raise ConfigError(f"bank has D={bank.dim}; int4 needs a multiple of {CHANNELS}")
        return _four_bits(bank)
    (keys, key_scale), (values, value_scale) = (
        _eight_bits(each.float(), format) for each in (bank.keys, bank.values)
    )
    return replace(
        bank,
        keys=keys,
        values=values,
        format=format,
        key_scale=key_scale,
        value_scale=value_scale,
    )


def dequantized(bank: Bank, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values [N, H, P, D] that the stored ones stand for."""
    if bank.format == "plain":
        return bank.keys.to(dtype), bank.values.to(dtype)
    assert bank.key_scale is not None and bank.value_scale is not None
    if bank.format != "int4":
        keys = bank.keys.to(dtype) * bank.key_scale.to(dtype)[..., None]
        return keys, bank.values.to(dtype) * bank.value_scale.to(dtype)[..., None]
    assert bank.key_zero is not None and bank.value_zero is not None
    keys = bits.unpacked(bank.keys, 4).to(dtype) * bank.key_scale.to(dtype)[:, :, None]
    keys = keys + bank.key_zero.to(dtype)[:, :, None]
    values = bits.unpacked(bank.values, 4).to(dtype).view(*bank.values.shape[:-1], -1, CHANNELS)
    values = values * bank.value_scale.to(dtype)[..., None] + bank.value_zero.to(dtype)[..., None]
    return keys, values.flatten(-2)


def _eight_bits(x: Tensor, format: Literal["fp8", "int8"]) -> tuple[Tensor, Tensor]:
    scale = bits.scale(x.abs().amax(dim=-1) / LARGEST[format])
    scaled = x / scale.float()[..., None]
    if format == "fp8":
        most = LARGEST["fp8"]  # the scale was rounded; beyond it e4m3 has nothing but NaN
        return scaled.clamp(-most, most).to(torch.float8_e4m3fn), scale
    return scaled.round().clamp(-127, 127).to(torch.int8), scale


def _four_bits(bank: Bank) -> Bank:
    keys, values = bank.keys.float(), bank.values.float()
    low, high = keys, keys
    if bank.lengths is not None:
        place = torch.arange(bank.block, device=keys.device)
        beyond = (place >= bank.lengths[:, None])[:, None, :, None]
        low, high = keys.masked_fill(beyond, torch.inf), keys.masked_fill(beyond, -torch.inf)
    low, high = low.amin(dim=2), high.amax(dim=2)
    low, high = (torch.where(torch.isfinite(x), x, torch.zeros_like(x)) for x in (low, high))
    key_scale, key_zero = bits.scale((high - low) / 15), bits.half(low)
    stored = bits.rounded(keys, key_scale[:, :, None], key_zero[:, :, None], 4)
    parts = values.view(*bank.values.shape[:-1], -1, CHANNELS)
    low, high = parts.amin(dim=-1), parts.amax(dim=-1)
    value_scale, value_zero = bits.scale((high - low) / 15), bits.half(low)
    parts = bits.rounded(parts, value_scale[..., None], value_zero[..., None], 4)
    return replace(
        bank,
        keys=bits.packed(stored, 4),
        values=bits.packed(parts.flatten(-2), 4),
        format="int4",
        key_scale=key_scale,
        value_scale=value_scale,
        key_zero=key_zero,
        value_zero=value_zero,
    )
