"""Storage formats: what comes back, how far it is off, and what that does to attention."""

from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.errors import ConfigError
from palimpsest.kernels.base import Bank
from palimpsest.kernels.decode import reference
from palimpsest.kernels.decode.formats import dequantized, quantize

from .cases import error, random_bank, random_ids, random_query, seeded

FORMATS: tuple[Literal["fp8", "int8", "int4"], ...] = ("fp8", "int8", "int4")
SEEDS = st.integers(0, 2**31)


def numbers(seed: int, spread: float, *, d: int = 64) -> Bank:
    """A bank whose channels differ in size, as keys' do."""
    bank = random_bank(2, 2, 16, d, seed=seed)
    sizes = torch.exp(spread * torch.randn(d, generator=seeded(seed)))
    return Bank(bank.keys * sizes, bank.values * sizes)


@given(SEEDS, st.floats(0, 3))
def test_int8_is_off_by_half_a_step_of_its_token(seed: int, spread: float) -> None:
    bank = numbers(seed, spread)
    for plain, back, scale in _pairs(bank, quantize(bank, "int8")):
        # the scale was rounded to float16: the largest value may be clamped by 127 times that
        assert ((plain - back).abs() <= scale[..., None] * (0.5 + 127 * 2**-10)).all()


@given(SEEDS, st.floats(0, 3))
def test_fp8_is_off_by_a_sixteenth_at_most(seed: int, spread: float) -> None:
    bank = numbers(seed, spread)
    for plain, back, scale in _pairs(bank, quantize(bank, "fp8")):
        assert ((plain - back).abs() <= plain.abs() / 16 + scale[..., None] * 2**-9).all()


@given(SEEDS, st.floats(0, 2), st.sampled_from([64, 128]))
def test_int4_is_off_by_half_a_step_of_its_channel(seed: int, spread: float, d: int) -> None:
    bank = numbers(seed, spread, d=d)
    packed = quantize(bank, "int4")
    keys, values = dequantized(packed, torch.float64)
    assert packed.key_scale is not None and packed.value_scale is not None
    # beside rounding to a step, scale and zero themselves were rounded to float16
    step = packed.key_scale.double()[:, :, None]
    slack = bank.keys.abs().amax(dim=2, keepdim=True) * 2**-9
    assert ((bank.keys - keys).abs() <= step * 0.51 + slack).all()
    step = packed.value_scale.double().repeat_interleave(64, dim=-1)
    slack = bank.values.abs().amax(dim=-1, keepdim=True) * 2**-9
    assert ((bank.values - values).abs() <= step * 0.51 + slack).all()


@given(SEEDS)
def test_what_comes_back_quantizes_to_the_same_bits(seed: int) -> None:
    once = quantize(numbers(seed, 1.0), "int8")
    twice = quantize(Bank(*dequantized(once, torch.float32)), "int8")
    assert torch.equal(once.keys, twice.keys) and torch.equal(once.values, twice.values)


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_stay_zeros(format: Literal["fp8", "int8", "int4"]) -> None:
    bank = quantize(Bank(torch.zeros(1, 1, 16, 64), torch.zeros(1, 1, 16, 64)), format)
    assert not any(x.any() for x in dequantized(bank, torch.float32))


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_too_large_for_a_scale_saturates(format: Literal["fp8", "int8", "int4"]) -> None:
    bank = random_bank(1, 1, 16, 64)
    packed = quantize(Bank(bank.keys * 1e8, bank.values * 1e8), format)
    assert all(x.isfinite().all() for x in dequantized(packed, torch.float32))


def test_tokens_beyond_a_block_have_no_part_in_a_channels_scale() -> None:
    plain = random_bank(2, 1, 16, 64)
    lengths = torch.tensor([16, 4], dtype=torch.int32)
    keys = plain.keys.clone()
    keys[1, :, 4:] = 1e4
    packed = quantize(Bank(keys, plain.values, lengths), "int4")
    back, _ = dequantized(packed, torch.float32)
    assert error(back[1, :, :4], plain.keys[1, :, :4]) < 0.1


@pytest.mark.parametrize(
    ("format", "flat", "peaked"),
    [("int8", 1.5e-2, 4e-2), ("fp8", 5e-2, 1.2e-1), ("int4", 2e-1, 5e-1)],
)
def test_attention_is_off_as_the_readme_says(
    format: Literal["fp8", "int8", "int4"], flat: float, peaked: float
) -> None:
    bank, ids = random_bank(16, 2, 64, 128), random_ids(2, 2, 16, 16, holes=False)
    packed, off = quantize(bank, format), {}
    for name, size in (("flat", 1.0), ("peaked", 4.0)):
        q = size * random_query(2, 8, 128, torch.float32)
        plain, close = (
            reference.gather_decode(q, each, ids, scale=128**-0.5).out for each in (bank, packed)
        )
        off[name] = error(close, plain)
    assert off["flat"] <= flat and off["peaked"] <= peaked, off
    assert off["flat"] > flat / 10, f"too good to be true: {off}"


def test_what_cannot_be_quantized_is_refused() -> None:
    bank = random_bank(2, 2, 16, 80)
    with pytest.raises(ConfigError, match="D=80; int4 needs a multiple of 64"):
        quantize(bank, "int4")
    with pytest.raises(ConfigError, match=r"bank.format='int8' must be 'plain'"):
        quantize(quantize(bank, "int8"), "fp8")
    unknown: Any = "fp6"
    with pytest.raises(ConfigError, match="format='fp6' must be one of"):
        quantize(bank, unknown)


def _pairs(bank: Bank, packed: Bank) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    assert packed.key_scale is not None and packed.value_scale is not None
    keys, values = dequantized(packed, torch.float64)
    return [
        (bank.keys.double(), keys, packed.key_scale.double()),
        (bank.values.double(), values, packed.value_scale.double()),
    ]
