"""A score and an index as one integer whose order is total: equal scores, the lower index first.

So what is selected depends neither on how the work is split nor on when a part of it is done.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def pack(scores: Tensor, index: Tensor) -> Tensor:
    """int64 keys of float32 scores and non-negative indices below 2^32. NaN counts as -inf."""
    scores = torch.where(scores.isnan(), -torch.inf, scores) + 0.0  # -0.0 becomes 0.0
    bits = scores.view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | (_LOW - index.long())


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores float32 and indices int32; the index of a score of -inf is -1."""
    ordered = (keys >> 32).int()
    scores = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    index = (_LOW - (keys & _LOW)).int()
    return scores, index.masked_fill(torch.isneginf(scores), -1)
