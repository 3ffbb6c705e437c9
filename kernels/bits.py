"""Few bits for a number: asymmetric min-max codes, and codes packed into bytes.

x stands between the least and the largest of its group: code = round((x - zero) / scale), with
zero = min and scale = (max - min) / (2^bits - 1), both float16 (KIVI, arXiv 2402.02750, section 3).
Knows nothing of what is a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

_HALF = torch.finfo(torch.float16)


def scale(wanted: Tensor) -> Tensor:
    """In float16, and nowhere 0 nor infinite: what is divided by it stays a number."""
    return wanted.clamp(_HALF.tiny, _HALF.max).half()


def half(wanted: Tensor) -> Tensor:
    """In float16: what is beyond it saturates."""
    return wanted.clamp(_HALF.min, _HALF.max).half()


def rounded(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest codes, uint8, of float32 x; scale and zero broadcast against it."""
    most = 2**bits - 1
    return ((x - zero.float()) / scale.float()).round().clamp(0, most).to(torch.uint8)


def packed(codes: Tensor, bits: int) -> Tensor:
    """uint8 [..., D] -> uint8 [..., D * bits / 8]: the lowest bits of byte c are those of channel
    c, the next ones those of channel c + D * bits / 8, and so on."""
    whole, *others = codes.chunk(8 // bits, dim=-1)
    for place, part in enumerate(others, start=1):
        whole = whole | (part << (place * bits))
    return whole.contiguous()


def unpacked(stored: Tensor, bits: int) -> Tensor:
    """The inverse of `packed`."""
    most = 2**bits - 1
    return torch.cat([(stored >> at) & most for at in range(0, 8, bits)], dim=-1)
