"""Rotary position embedding, with angles that are right at a million tokens.

RoFormer, arXiv 2104.09864, section 3.2.2. Angles are made in float64, and only their cosines and
sines are rounded: at a million tokens a float32 angle is off by 0.05 rad. Knows nothing of caches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Pairing


def table(
    inverse_frequencies: Tensor,
    positions: Tensor,
    *,
    scaling: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """cos and sin [M, D / 2] of M positions (any integers, also negative), times `scaling`.

    Args:
        inverse_frequencies: [D / 2], as a model's rotary module has them.
        scaling: the attention factor of scaled rotary embeddings (YaRN); 1 for others.
    """
    angles = positions.double()[:, None] * inverse_frequencies.double().to(positions.device)
    return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, pairing: Pairing = "half") -> Tensor:
    """x [..., D] rotated by angles whose cos and sin [..., D / 2] broadcast against its pairs."""
    if pairing == "half":
        first, second = x.chunk(2, dim=-1)
    else:
        first, second = x[..., 0::2], x[..., 1::2]
    turned = (first * cos - second * sin, second * cos + first * sin)
    if pairing == "half":
        return torch.cat(turned, dim=-1)
    return torch.stack(turned, dim=-1).flatten(-2)
