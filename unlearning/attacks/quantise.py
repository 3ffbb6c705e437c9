"""Weights rounded to few bits: a small change of weights is rounded away, and what it had made the
model forget is back (Zhang et al., ICLR 2025, arXiv 2410.16454)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ...llm.twin import matrix, twin
from ..examining import Examiner
from ..student import linear_layers
from .base import RECALL, RECALL_LIMIT, Leak, Target, directly, tried

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantise:
    """Rounds a copy and asks again. A patch that can be merged is rounded with the weights; one
    that a gate opens stands beside them, as it is.

    Args:
        bits: widths to try, at least 2 each.
        group: weights of a row that share a scale.
    """

    name: ClassVar[str] = "quantise"
    yardstick: ClassVar[str] = RECALL
    remedy: ClassVar[str] = (
        "unlearn the model as it is rounded for serving, or with a larger change of weights"
    )
    least: ClassVar[int] = 1
    bits: tuple[int, ...] = (8, 4)
    group: int = 64
    limit: float = RECALL_LIMIT

    def run(self, target: Target) -> Leak:
        """See `Attack`."""
        merged = target.patch.merged() if target.patch else None
        left = target if merged is None else _without_patch(target)
        numbers: dict[str, float] = {}
        for bits in self.bits:
            model = coarse(target.bench.model, bits, self.group, merged or {})
            examiner = Examiner(model, target.bench.tokenizer, target.cancel)
            numbers |= tried(left, directly(target.samples, f"{bits} bits"), examiner).numbers
        return Leak(max(numbers.values()), len(target.samples), numbers)


def _without_patch(target: Target) -> Target:
    return Target(
        bench=target.bench,
        patch=None,
        samples=target.samples,
        tokens=target.tokens,
        cancel=target.cancel,
    )


@torch.no_grad()
def coarse(
    model: PreTrainedModel, bits: int, group: int, added: Mapping[str, Tensor]
) -> PreTrainedModel:
    """A twin whose decoder layers' matrices are rounded, each with what is added to it by name;
    embedding and head stay, as they do in practice."""
    second = twin(model)
    for name in linear_layers(second, 0):
        layer = second.get_submodule(name)
        weight = matrix(layer)
        if name in added:
            weight = weight + added[name].to(weight)
        weight = rounded(weight, bits, group)
        layer.weight = nn.Parameter(
            weight.T if isinstance(layer, Conv1D) else weight, requires_grad=False
        )
    return second


def rounded(weight: Tensor, bits: int, group: int) -> Tensor:
    """[D_out, D_in] to the nearest of 2^bits - 1 even steps about zero, the widest of each group of
    a row at the end of the scale."""
    rows, wide = weight.shape
    size = group if wide % group == 0 else wide
    parts = weight.float().reshape(rows, wide // size, size)
    steps = (1 << (bits - 1)) - 1
    scale = parts.abs().amax(-1, keepdim=True).clamp(min=1e-12) / steps
    return ((parts / scale).round() * scale).reshape(rows, wide).to(weight.dtype)
