"""What the kernels' tests share: how far a result may be off, and random banks."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from palimpsest.kernels.base import Attended, Bank, Rotation
from palimpsest.kernels.rotary import table
from torch import Tensor


class Tolerance(NamedTuple):
    """Largest relative L2 error of what is read, and largest error of an lse or a score."""

    out: float
    lse: float


LIMITS = {
    torch.float32: Tolerance(1e-5, 2e-5),
    torch.float16: Tolerance(1e-3, 2e-5),
    torch.bfloat16: Tolerance(4e-3, 2e-5),
}
"""By the dtype of the products, against float64 on the same rounded or dequantised inputs. To be
loosened only in a change that does nothing else."""

ROUNDED = {
    torch.float32: LIMITS[torch.float32],
    torch.float16: Tolerance(1e-3, 1e-3),
    torch.bfloat16: Tolerance(4e-3, 5e-3),
}
"""The same where the kernel rounds keys or queries once more before it multiplies: keys that it
rotates, keys of 4 bits, queries that a format's products need in another dtype."""

LENGTH = 100_003
"""Positions that a rotation's table has in these tests."""


def seeded(seed: int) -> torch.Generator:
    """A generator of random numbers that is this test's own."""
    return torch.Generator().manual_seed(seed)


def random_bank(
    n: int,
    h: int,
    p: int,
    d: int,
    dtype: torch.dtype = torch.float32,
    *,
    ragged: bool = False,
    seed: int = 0,
) -> Bank:
    """A plain bank of normal keys and values. Ragged: blocks end anywhere, also at once; what
    stands beyond a block's end is NaN, as it must never be read."""
    rng = seeded(seed)
    keys, values = (torch.randn(n, h, p, d, generator=rng).to(dtype) for _ in range(2))
    if not ragged:
        return Bank(keys, values)
    lengths = torch.randint(0, p + 1, (n,), generator=rng, dtype=torch.int32)
    lengths[0] = 0
    beyond = (torch.arange(p) >= lengths[:, None])[:, None, :, None]
    keys, values = (x.masked_fill(beyond, torch.nan) for x in (keys, values))
    return Bank(keys, values, lengths)


def random_ids(b: int, groups: int, s: int, n: int, *, holes: bool = True, seed: int = 1) -> Tensor:
    """int32 [B, HS, S], no block twice; with holes, about a fifth is -1, and all of the last."""
    rng = seeded(seed)
    rows = [torch.randperm(n, generator=rng)[:s] for _ in range(b * groups)]
    ids = torch.stack(rows).view(b, groups, s).int()
    if holes:
        ids[torch.rand(b, groups, s, generator=rng) < 0.2] = -1
        ids[-1, -1] = -1
    return ids


def random_query(
    b: int, hq: int, d: int, dtype: torch.dtype, *, s: int = 0, seed: int = 2
) -> Tensor:
    """[B, Hq, D], or [B, Hq, S, D] if s is given."""
    shape = (b, hq, s, d) if s else (b, hq, d)
    return torch.randn(shape, generator=seeded(seed)).to(dtype)


def random_rotation(b: int, groups: int, s: int, d: int, *, seed: int = 3, **how: Any) -> Rotation:
    """Where blocks stand anywhere among the first hundred thousand tokens."""
    cos, sin = _angles(d)
    base = torch.randint(0, LENGTH - 256, (b, groups, s), generator=seeded(seed))
    return Rotation(cos, sin, base.int(), **how)


@lru_cache
def _angles(d: int) -> tuple[Tensor, Tensor]:
    frequencies = 10_000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    return table(frequencies, torch.arange(LENGTH))


def error(ours: Tensor, truth: Tensor) -> float:
    """Relative L2 error, in float64 on the CPU."""
    ours, truth = ours.double().cpu(), truth.double().cpu()
    assert ours.shape == truth.shape, f"{tuple(ours.shape)} is not {tuple(truth.shape)}"
    assert not ours.isnan().any(), f"{int(ours.isnan().sum())} of {ours.numel()} are NaN"
    return float((ours - truth).norm() / truth.norm().clamp(min=1e-30))


def worst(ours: Tensor, truth: Tensor) -> float:
    """Largest absolute error; what is infinite must be so in both."""
    ours, truth = ours.double().cpu(), truth.double().cpu()
    assert ours.shape == truth.shape, f"{tuple(ours.shape)} is not {tuple(truth.shape)}"
    assert not ours.isnan().any(), f"{int(ours.isnan().sum())} of {ours.numel()} are NaN"
    endless = truth.isinf()
    assert torch.equal(ours.isinf(), endless) and torch.equal(ours[endless], truth[endless])
    return float((ours - truth)[~endless].abs().max()) if (~endless).any() else 0.0


def assert_attended(ours: Attended, truth: Attended, limit: Tolerance) -> None:
    """What was read is what should have been, and what nothing was read for is exactly 0."""
    assert ours.out.dtype == ours.lse.dtype == torch.float32
    assert (off := error(ours.out, truth.out)) <= limit.out, f"out is off by {off:.1e}"
    assert (off := worst(ours.lse, truth.lse)) <= limit.lse, f"lse is off by {off:.1e}"
    assert not ours.out[torch.isneginf(ours.lse)].any()
    assert (ours.mass is None) == (truth.mass is None)
    if ours.mass is not None and truth.mass is not None:
        assert (off := error(ours.mass, truth.mass)) <= limit.out, f"mass is off by {off:.1e}"
