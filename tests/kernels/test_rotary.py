"""Rotary embedding: right far out, in both pairings, and relative."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.kernels.base import Pairing
from palimpsest.kernels.rotary import rotate, table

from .cases import error, seeded

HALF = 32
FREQUENCIES = 10_000.0 ** (-torch.arange(HALF, dtype=torch.float64) / HALF)
POSITIONS = st.integers(-4_000_000, 4_000_000)
PAIRINGS: tuple[Pairing, ...] = ("half", "interleaved")


def turned(x: torch.Tensor, position: int, pairing: Pairing) -> torch.Tensor:
    cos, sin = table(FREQUENCIES, torch.tensor([position]), dtype=torch.float64)
    return rotate(x, cos[0], sin[0], pairing)


def test_angles_are_right_at_a_million_tokens() -> None:
    positions = torch.arange(1_000_000, 1_000_064)
    cos, sin = table(FREQUENCIES, positions)
    assert cos.dtype == torch.float32
    # by addition theorem from small angles: another way to the same cosine
    big, small = positions // 1000 * 1000, positions % 1000
    one, other = (x[:, None] * FREQUENCIES for x in (big.double(), small.double()))
    truth = one.cos() * other.cos() - one.sin() * other.sin()
    assert float((cos - truth).abs().max()) < 1e-7
    assert float((cos.double() ** 2 + sin.double() ** 2 - 1).abs().max()) < 2e-7
    naive = (positions[:, None].float() * FREQUENCIES.float()).cos()
    assert float((naive - truth).abs().max()) > 1e-2, "float32 angles would do"


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_a_pair_turns_as_a_complex_number(pairing: Pairing) -> None:
    x = torch.randn(5, 2 * HALF, generator=seeded(0), dtype=torch.float64)
    parts = (x[:, :HALF], x[:, HALF:]) if pairing == "half" else (x[:, 0::2], x[:, 1::2])
    angle = torch.polar(torch.ones(HALF, dtype=torch.float64), 7 * FREQUENCIES)
    truth = torch.complex(*(part.contiguous() for part in parts)) * angle
    back = turned(x, 7, pairing)
    ours = (back[:, :HALF], back[:, HALF:]) if pairing == "half" else (back[:, 0::2], back[:, 1::2])
    assert error(ours[0], truth.real) < 1e-12 and error(ours[1], truth.imag) < 1e-12


@pytest.mark.parametrize("pairing", PAIRINGS)
@given(at=POSITIONS, query=POSITIONS, key=st.integers(0, 255), seed=st.integers(0, 2**31))
def test_rotating_the_query_by_its_distance_does_for_a_whole_block(
    pairing: Pairing, at: int, query: int, key: int, seed: int
) -> None:
    q, k = torch.randn(2, 2 * HALF, generator=seeded(seed), dtype=torch.float64)
    truth = turned(q, query, pairing) @ turned(k, at + key, pairing)
    # the key by its place in its block, once; the query by its distance from the block's base
    ours = turned(q, query - at, pairing) @ turned(k, key, pairing)
    assert abs(float(truth - ours)) <= 2e-8 * float(q.norm() * k.norm())


@given(one=POSITIONS, other=POSITIONS)
def test_turns_add_up_and_can_be_undone(one: int, other: int) -> None:
    x = torch.randn(2 * HALF, generator=seeded(1), dtype=torch.float64)
    assert (
        error(turned(turned(x, one, "half"), other, "half"), turned(x, one + other, "half")) < 1e-8
    )
    assert error(turned(turned(x, one, "half"), -one, "half"), x) < 1e-8


def test_the_attention_factor_scales_what_is_turned() -> None:
    cos, sin = table(FREQUENCIES, torch.arange(3), scaling=1.25)
    assert torch.allclose((cos**2 + sin**2).sqrt(), torch.full_like(cos, 1.25))
