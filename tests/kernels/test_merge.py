"""Merging partials: the algebra, and against one softmax over everything."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.errors import ConfigError
from palimpsest.kernels import ops
from palimpsest.kernels.merge.reference import merge_partials
from torch import Tensor

from .cases import error, seeded, worst

SEEDS = st.integers(0, 2**31)


def partials(r: int, *, seed: int, empty: float = 0.3, d: int = 16) -> tuple[Tensor, Tensor]:
    """[R, 3, 2, D] and [R, 3, 2], some of which saw nothing, with logits of any size."""
    rng = seeded(seed)
    o = torch.randn(r, 3, 2, d, generator=rng, dtype=torch.float64)
    lse = 40 * torch.randn(r, 3, 2, generator=rng, dtype=torch.float64)
    nothing = torch.rand(r, 3, 2, generator=rng) < empty
    return o.masked_fill(nothing[..., None], 0.0), lse.masked_fill(nothing, -math.inf)


def alike(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    assert error(one[0], other[0]) < 1e-12 and worst(one[1], other[1]) < 1e-12


def joined(*parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return merge_partials(*(torch.stack(each) for each in zip(*parts, strict=True)))


@given(SEEDS)
def test_it_is_associative(seed: int) -> None:
    o, lse = partials(3, seed=seed)
    a, b, c = zip(o, lse, strict=True)
    alike(joined(joined(a, b), c), joined(a, joined(b, c)))
    alike(joined(joined(a, b), c), joined(a, b, c))


@given(SEEDS, st.integers(1, 9))
def test_the_order_does_not_matter(seed: int, r: int) -> None:
    o, lse = partials(r, seed=seed)
    order = torch.randperm(r, generator=seeded(seed))
    alike(merge_partials(o, lse), merge_partials(o[order], lse[order]))


@given(SEEDS)
def test_nothing_is_its_identity_whatever_stands_in_its_o(seed: int) -> None:
    ((o, lse),) = zip(*partials(1, seed=seed), strict=True)
    nothing = torch.full_like(o, torch.nan), torch.full_like(lse, -math.inf)
    alike(joined((o, lse), nothing), (o, lse))
    alike(joined(nothing, (o, lse)), (o, lse))


def test_nothing_at_all_is_zero_and_minus_infinity() -> None:
    o, lse = merge_partials(*partials(4, seed=0, empty=1.0))
    assert not o.any() and torch.isneginf(lse).all()


@given(SEEDS)
def test_parts_of_a_softmax_merge_to_the_whole(seed: int) -> None:
    rng = seeded(seed)
    logits = 10 * torch.randn(12, generator=rng, dtype=torch.float64)
    values = torch.randn(12, 16, generator=rng, dtype=torch.float64)
    cuts = [0, *sorted(torch.randint(0, 13, (3,), generator=rng).tolist()), 12]
    parts = []
    for start, end in pairwise(cuts):
        weights = torch.softmax(logits[start:end], dim=0)
        sums = torch.logsumexp(logits[start:end], dim=0) / math.log(2)
        parts.append((weights @ values[start:end], sums))
    o, lse = joined(*parts)
    assert error(o, torch.softmax(logits, dim=0) @ values) < 1e-12
    assert worst(lse, torch.logsumexp(logits, dim=0) / math.log(2)) < 1e-12


def test_a_sink_that_only_takes_part_in_the_sum_is_a_partition_of_zeros() -> None:
    o, lse = merge_partials(torch.tensor([[[4.0]], [[0.0]]]), torch.zeros(2, 1))
    assert o.item() == 2.0 and lse.item() == 1.0


@pytest.mark.parametrize(
    ("o", "lse", "message"),
    [
        (torch.zeros(0, 3, 4), torch.zeros(0, 3), r"o=\(0, 3, 4\) must be \[R, ..., D\]"),
        (torch.zeros(2), torch.zeros(2), r"o=\(2,\) must be \[R, ..., D\]"),
        (torch.zeros(2, 3, 4), torch.zeros(3, 2), r"lse=\(3, 2\) must have shape \(2, 3\)"),
        (torch.zeros(2, 3, 4).half(), torch.zeros(2, 3), "o is torch.float16; it must be"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3).double(), "lse is torch.float64; it must be"),
        (torch.zeros(2, 4, 3).mT, torch.zeros(2, 3), "o is not contiguous"),
    ],
)
def test_what_breaks_a_rule_is_refused(o: Tensor, lse: Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ops.merge_partials(o, lse)
