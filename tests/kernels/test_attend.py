"""Attention to keys next to each other: against float64, and as a part of one softmax."""

from __future__ import annotations

import math

import pytest
import torch
from palimpsest.errors import ConfigError
from palimpsest.kernels.attend.reference import attend
from palimpsest.kernels.base import seen
from palimpsest.kernels.ops import attend as op
from palimpsest.kernels.ops import merge_partials
from torch import Tensor

from .cases import LIMITS, error, seeded, worst

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def drawn(b: int, hq: int, h: int, t: int, s: int, d: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    rng = seeded(b + hq + t + s)
    return (
        2 * torch.randn(b, hq, t, d, generator=rng),
        torch.randn(b, h, s, d, generator=rng),
        torch.randn(b, h, s, d, generator=rng),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 4, 2, 1, 63), (2, 9, 3, 5, 100), (2, 4, 4, 7, 7), (1, 8, 1, 1, 1)]
)
def test_it_is_attention_with_its_log_sum_exp(
    dtype: torch.dtype, shape: tuple[int, int, int, int, int]
) -> None:
    q, k, v = (x.to(dtype) for x in drawn(*shape))
    got, truth = op(q, k, v), attend(q, k, v)
    assert error(got.out, truth.out) <= LIMITS[dtype].out
    assert worst(got.lse, truth.lse) <= 1e-3 if dtype != torch.float32 else 2e-5


@pytest.mark.parametrize("mass", [False, True])
def test_a_query_sees_what_it_may_and_one_that_sees_nothing_is_nothing(mass: bool) -> None:
    q, k, v = drawn(2, 4, 2, 6, 40)
    visible = torch.rand(2, 6, 40, generator=seeded(1)) < 0.4
    visible[1, 3] = False
    got = op(q, k, v, seen=seen(visible, q.dtype), mass=mass)
    truth = attend(q, k, v, seen=visible, mass=True)
    there = torch.isfinite(truth.lse)
    assert error(got.out, truth.out) <= 1e-5
    assert worst(got.lse[there], truth.lse[there]) <= 2e-5
    assert bool((got.lse[1, :, 3] == -math.inf).all()) and float(got.out[1, :, 3].abs().max()) == 0
    if mass:
        assert got.mass is not None and truth.mass is not None
        assert worst(got.mass, truth.mass) <= 1e-5


def test_parts_of_the_keys_merge_to_the_whole() -> None:
    q, k, v = drawn(1, 4, 2, 5, 90)
    whole = op(q, k, v)
    parts = [op(q, k[:, :, some], v[:, :, some]) for some in (slice(0, 17), slice(17, 90))]
    out, lse = merge_partials(
        torch.stack([p.out for p in parts]), torch.stack([p.lse for p in parts])
    )
    assert error(out, whole.out) <= 1e-5 and worst(lse, whole.lse) <= 2e-5


def test_a_long_text_is_weighed_a_few_tokens_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from palimpsest.kernels.attend import cpu

    q, k, v = drawn(1, 4, 2, 33, 50)
    visible = torch.ones(1, 33, 50, dtype=torch.bool).tril(17)
    monkeypatch.setattr(cpu, "MOST_LOGITS", 4 * 50 * 7)
    got = op(q, k, v, seen=seen(visible, q.dtype), mass=True)
    truth = attend(q, k, v, seen=visible, mass=True)
    assert error(got.out, truth.out) <= 1e-5
    assert got.mass is not None and truth.mass is not None
    assert worst(got.mass, truth.mass) <= 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(1, 4, 32)}, r"must be \[B, Hq, T, D\]"),
        ({"keys": torch.zeros(1, 2, 9, 16)}, "must have shape"),
        ({"values": torch.zeros(1, 2, 8, 32)}, "must have shape"),
        ({"keys": torch.zeros(1, 2, 9, 32).half()}, "must be torch.float32"),
        ({"q": torch.zeros(1, 5, 3, 32)}, "multiple of H=2"),
        ({"seen": seen(torch.ones(1, 3, 8, dtype=torch.bool), torch.float32)}, "seen.added"),
        ({"seen": seen(torch.ones(1, 3, 9, dtype=torch.bool), torch.float16)}, "seen.added"),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, Tensor], message: str) -> None:
    q, k, v = drawn(1, 4, 2, 3, 9)
    given = {"q": q, "keys": k, "values": v, "seen": None, **change}
    with pytest.raises(ConfigError, match=message):
        op(**given)  # type: ignore[arg-type]
