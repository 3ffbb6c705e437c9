"""Compaction as Triton's interpreter runs it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from palimpsest.kernels import ops
from palimpsest.kernels.base import Pairing
from palimpsest.kernels.compact import reference
from palimpsest.kernels.rotary import table

from ..cases import LIMITS, error, seeded


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("own", [False, True], ids=["heads alike", "each head its own"])
@pytest.mark.parametrize("turned", [False, True], ids=["raw", "turned"])
@pytest.mark.parametrize("d", [16, 80])
def test_what_is_kept_is_what_the_reference_keeps(
    d: int, turned: bool, own: bool, pairing: Pairing, dtype: torch.dtype
) -> None:
    rng = seeded(6)
    keys, values = (torch.randn(2, 100, d, generator=rng).to(dtype) for _ in range(2))
    keep = torch.stack([torch.randperm(100, generator=rng)[:41] for _ in range(1 + own)]).int()
    cos = sin = None
    if turned:
        frequencies = 10_000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
        both = table(frequencies, (torch.arange(41) - keep).flatten())
        cos, sin = (x.view(*keep.shape, d // 2).squeeze(0) for x in both)
    given: dict[str, Any] = {"cos": cos, "sin": sin, "pairing": pairing}
    ours = ops.compact(keys, values, keep, **given, backend="triton")
    truth = reference.compact(keys, values, keep, **given)
    assert error(ours.keys, truth.keys) <= LIMITS[dtype].out
    assert torch.equal(ours.values.double(), truth.values)
    assert torch.equal(ours.moved, truth.moved)
