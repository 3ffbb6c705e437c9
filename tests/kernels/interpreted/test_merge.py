"""The merge kernel in Triton's interpreter."""

import math

import pytest
import torch
from palimpsest.kernels.merge import kernel, reference

from ..cases import LIMITS, error, seeded, worst


@pytest.mark.parametrize(("r", "d"), [(1, 64), (3, 80), (70, 128), (33, 256), (2, 1000)])
def test_it_computes_what_the_reference_does(r: int, d: int) -> None:
    rng = seeded(r)
    o, lse = torch.randn(r, 2, 3, d, generator=rng), 20 * torch.randn(r, 2, 3, generator=rng)
    lse[0], o[0] = -math.inf, torch.nan
    lse[:, 1, 2] = -math.inf
    ours, sums = kernel.run(o, lse)
    truth = reference.merge_partials(o.double(), lse.double())
    limit = LIMITS[torch.float32]
    assert error(ours, truth[0]) <= limit.out if r > 1 else not ours.any()
    assert worst(sums, truth[1]) <= limit.lse
    assert not ours[1, 2].any() and torch.isneginf(sums[1, 2])


def test_no_rows_are_no_work() -> None:
    ours, sums = kernel.run(torch.zeros(2, 0, 64), torch.zeros(2, 0))
    assert ours.shape == (0, 64) and sums.shape == (0,)
