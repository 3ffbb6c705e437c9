"""The decode kernel in Triton's interpreter: each of its variants, at toy sizes.

The interpreter multiplies bfloat16 wrongly, so that dtype is not here, and a bank of int8 is read
with float32 queries only.
"""

from typing import Any

import pytest
import torch
from palimpsest.kernels import configs, ops
from palimpsest.kernels.base import Attended, Bank, Format, Pairing
from palimpsest.kernels.decode import kernel, reference
from palimpsest.kernels.decode.formats import quantize
from torch import Tensor

from ..cases import (
    LIMITS,
    ROUNDED,
    Tolerance,
    assert_attended,
    random_bank,
    random_ids,
    random_query,
    random_rotation,
    seeded,
)

B, S, N, P = 2, 3, 6, 16
DTYPES = (torch.float32, torch.float16)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tiles to a block of 32."""
    monkeypatch.setattr(kernel, "choose", lambda *_: configs.Config(tile=16))


def assert_kernel(q: Tensor, bank: Bank, ids: Tensor, limit: Tolerance, **how: Any) -> Attended:
    ours = ops.gather_decode(q, bank, ids, backend="triton", **how)
    how.pop("splits", None)
    truth = reference.gather_decode(q, bank, ids, scale=q.shape[-1] ** -0.5, **how)
    assert_attended(ours, truth, limit)
    return ours


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("g", "d"), [(1, 16), (3, 64), (4, 80), (7, 64), (8, 128), (16, 64)])
def test_any_number_of_query_heads_and_any_width(dtype: torch.dtype, g: int, d: int) -> None:
    bank = random_bank(N, 2, P, d, dtype, ragged=True)
    assert_kernel(random_query(B, 2 * g, d, dtype), bank, random_ids(B, 2, S, N), LIMITS[dtype])


@pytest.mark.parametrize(
    ("groups", "hq", "per_block"),
    [(1, 4, False), (2, 4, True), (4, 4, False), (4, 4, True), (1, 88, False), (2, 88, True)],
)
def test_whoever_shares_a_selection(groups: int, hq: int, per_block: bool) -> None:
    """88 query heads are 44 to a KV head: two tiles of 16 rows, and 12 more."""
    q = random_query(B, hq, 64, torch.float32, s=S if per_block else 0)
    bank = random_bank(N, 2, P, 64, ragged=True)
    assert_kernel(q, bank, random_ids(B, groups, S, N), LIMITS[torch.float32], mass=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_priors_and_weights_and_masses(dtype: torch.dtype) -> None:
    rng = seeded(4)
    bias, weights = torch.randn(B, 2, S, generator=rng), torch.randn(N, 2, 32, generator=rng)
    bias[0, 0, 0] = -torch.inf
    q, bank = random_query(B, 8, 64, dtype), random_bank(N, 2, 32, 64, dtype, ragged=True)
    ids = random_ids(B, 2, S, N)
    assert_kernel(q, bank, ids, LIMITS[dtype], bias=bias, log_weight=weights, mass=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize(("step", "groups", "d"), [(1, 2, 80), (0, 1, 64)])
def test_raw_keys(dtype: torch.dtype, pairing: Pairing, step: int, groups: int, d: int) -> None:
    rotation = random_rotation(B, groups, S, d, pairing=pairing, step=step)
    q, bank = random_query(B, 4, d, dtype), random_bank(N, 2, 32, d, dtype)
    assert_kernel(q, bank, random_ids(B, 2, S, N), ROUNDED[dtype], rotation=rotation, mass=True)


@pytest.mark.parametrize(
    ("format", "dtype", "limits"),
    [
        ("fp8", torch.float32, LIMITS),
        ("int8", torch.float32, LIMITS),
        ("int4", torch.float32, LIMITS),
        ("fp8", torch.float16, LIMITS),
        ("int4", torch.float16, ROUNDED),
    ],
)
@pytest.mark.parametrize(
    ("pairing", "d"), [(None, 64), (None, 192), ("half", 128), ("interleaved", 64)]
)
def test_quantized_banks(
    format: Format, dtype: torch.dtype, limits: Any, pairing: Pairing | None, d: int
) -> None:
    plain = random_bank(N, 2, P, d)
    lengths = torch.tensor([16, 3, 16, 0, 7, 16], dtype=torch.int32)
    assert format != "plain"
    bank = quantize(Bank(plain.keys, plain.values / 1000, lengths), format)
    rotation = random_rotation(B, 2, S, d, pairing=pairing) if pairing else None
    limit = ROUNDED[dtype] if pairing else limits[dtype]
    q, ids = random_query(B, 4, d, dtype), random_ids(B, 2, S, N)
    assert_kernel(q, bank, ids, limit, rotation=rotation, mass=True)


def test_the_split_does_not_change_the_result() -> None:
    q, bank = random_query(1, 4, 64, torch.float32), random_bank(N, 2, P, 64, ragged=True)
    ids = random_ids(1, 2, 5, N)
    for splits in (1, 2, 4, None):  # the last of four has nothing to read
        assert_kernel(q, bank, ids, LIMITS[torch.float32], splits=splits, mass=True)


def test_a_block_selected_twice_counts_twice() -> None:
    q, bank = random_query(B, 4, 64, torch.float32), random_bank(N, 2, P, 64)
    ids = torch.tensor([2, 5, 5]).int().expand(B, 2, -1).contiguous()
    assert_kernel(q, bank, ids, LIMITS[torch.float32], mass=True)


def test_nothing_selected_is_zero_and_minus_infinity() -> None:
    q, bank = random_query(B, 4, 64, torch.float32), random_bank(N, 2, P, 64)
    nothing = torch.full((B, 2, S), -1, dtype=torch.int32)
    ours = assert_kernel(q, bank, nothing, LIMITS[torch.float32], mass=True)
    assert not ours.out.any() and torch.isneginf(ours.lse).all()


def test_very_large_logits_do_not_overflow() -> None:
    q, bank = 1e4 * random_query(B, 4, 64, torch.float32), random_bank(N, 2, P, 64)
    ours = ops.gather_decode(q, bank, random_ids(B, 2, S, N), backend="triton", mass=True)
    assert all(x is not None and not x.isnan().any() for x in ours)
