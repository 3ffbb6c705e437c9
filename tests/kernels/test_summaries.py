"""What stands for a block: of its valid tokens only, and of many blocks together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.errors import ConfigError
from palimpsest.kernels.base import FLOATS, Summaries
from palimpsest.kernels.decode.formats import dequantized, quantize
from palimpsest.kernels.score import reference
from palimpsest.kernels.score.summaries import coarser, summarise

from .cases import random_bank, random_query
from .selections import random_summaries


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(FLOATS), st.integers(1, 16))
def test_bounds_are_above_the_score_of_every_valid_key(
    seed: int, dtype: torch.dtype, valid: int
) -> None:
    bank = random_bank(3, 2, 16, 16, dtype, seed=seed)
    lengths = torch.tensor([valid, 16, 1], dtype=torch.int32)
    bank = replace(bank, lengths=lengths)
    q = random_query(1, 4, 16, dtype, seed=seed + 1)
    bound = reference.block_scores(q, summarise(bank, "bounds"), "query_head", "max", torch.float64)
    keys = bank.keys.double().repeat_interleave(2, dim=1)
    scores = torch.einsum("hd,nhpd->hnp", q[0].double(), keys)
    beyond = torch.arange(16) >= lengths[:, None]
    assert (bound[0, :, :, None] >= scores.masked_fill(beyond, -torch.inf) - 1e-9).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_summaries_are_of_valid_tokens_only(dtype: torch.dtype) -> None:
    bank = random_bank(12, 2, 16, 32, dtype, ragged=True)
    assert bank.lengths is not None
    chosen = torch.tensor([0, 5, -1]).expand(12, 2, 3).contiguous()
    mean, bounds = summarise(bank, "mean"), summarise(bank, "bounds")
    tokens = summarise(bank, "tokens", chosen)
    for block, length in enumerate(bank.lengths.tolist()):
        keys = bank.keys[block, :, :length].double()
        if length == 0:
            assert all(each.data[0, block].isnan().all() for each in (mean, bounds, tokens))
            continue
        expected = keys.mean(dim=1).to(dtype)
        torch.testing.assert_close(mean.data[0, block, :, 0], expected)
        assert torch.equal(bounds.data[0, block, :, 0], keys.amax(dim=1).to(dtype))
        assert torch.equal(bounds.data[0, block, :, 1], keys.amin(dim=1).to(dtype))
        assert torch.equal(tokens.data[0, block, :, 0], bank.keys[block, :, 0])
        second = bank.keys[block, :, 5] if length > 5 else torch.zeros(2, 32, dtype=dtype)
        assert torch.equal(tokens.data[0, block, :, 1], second)
        assert not tokens.data[0, block, :, 2].any()


def test_a_bank_is_summarised_in_pieces_as_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = random_bank(9, 2, 16, 64, ragged=True)
    for each in (bank, quantize(random_bank(9, 2, 16, 64), "int4")):
        whole = summarise(each, "bounds").data
        with monkeypatch.context() as small:
            small.setattr("palimpsest.kernels.score.summaries._AT_ONCE", 2 * 16 * 64 * 2)
            assert torch.equal(summarise(each, "bounds").data.nan_to_num(), whole.nan_to_num())


def test_a_quantized_bank_is_summarised_by_what_its_keys_stand_for() -> None:
    bank = quantize(random_bank(4, 2, 16, 64), "int8")
    keys, _ = dequantized(bank, torch.float32)
    ours = summarise(bank, "bounds", dtype=torch.float32)
    assert torch.equal(ours.data[0, :, :, 0], keys.amax(dim=2))
    assert summarise(bank, "mean").data.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_coarser_summaries_are_means_of_means_and_bounds_of_bounds(dtype: torch.dtype) -> None:
    mean = random_summaries(1, 11, 2, 16, "mean", dtype)
    mean.data[:, 1] = mean.data[:, 8:] = torch.nan
    ours = coarser(mean, 4)
    assert ours.data.shape[1] == 3 and ours.span == 4 and coarser(ours, 2).span == 8
    expected = mean.data[:, [0, 2, 3]].double().mean(dim=1).to(dtype)
    torch.testing.assert_close(ours.data[:, 0], expected)
    assert ours.data[:, 2].isnan().all()
    bounds = random_summaries(1, 11, 2, 16, "bounds", dtype)
    bounds.data[:, 1] = torch.nan
    ours = coarser(bounds, 4)
    assert torch.equal(ours.data[:, 0, :, 0], bounds.data[:, [0, 2, 3], :, 0].amax(dim=1))
    assert torch.equal(ours.data[:, 2, :, 1], bounds.data[:, 8:, :, 1].amin(dim=1))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Summaries(torch.zeros(1, 0, 2, 1, 16)), "has no block"),
        (lambda: Summaries(torch.zeros(1, 3, 2, 2, 16)), "r=2; kind='mean' needs 1"),
        (lambda: Summaries(torch.zeros(1, 3, 2, 1, 16), span=0), "span=0 must be at least 1"),
        (lambda: Summaries(torch.zeros(1, 3, 2, 1, 20)), "D=20; it must be a multiple of 16"),
        (lambda: coarser(random_summaries(1, 4, 1, 16, "tokens"), 2), "cannot be made coarser"),
        (lambda: coarser(random_summaries(1, 4, 1, 16), 0), "factor=0 must be at least 1"),
        (lambda: summarise(random_bank(2, 1, 16, 16), "tokens"), "needs it as"),
        (lambda: summarise(random_bank(2, 1, 16, 16), "max"), "kind='max' must be one of"),  # type: ignore[arg-type]
        (
            lambda: summarise(random_bank(2, 1, 16, 16), "tokens", torch.zeros(3, 1, 2).int()),
            r"chosen=\(3, 1, 2\) must have shape \(2, 1, 2\)",
        ),
    ],
)
def test_summaries_that_break_a_rule_are_told_so(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()
