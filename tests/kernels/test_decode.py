"""Decode on any machine: the reference against torch's attention, the CPU path against it."""

import math
import time
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from palimpsest.errors import ConfigError
from palimpsest.kernels import ops
from palimpsest.kernels.base import Attended, Bank, Pairing, Rotation
from palimpsest.kernels.decode import cpu, reference
from palimpsest.kernels.decode.formats import dequantized, quantize
from torch import Tensor

from .cases import (
    LIMITS,
    assert_attended,
    error,
    random_bank,
    random_ids,
    random_query,
    random_rotation,
    seeded,
    worst,
)

B, S, N = 2, 5, 9
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def assert_cpu(q: Tensor, bank: Bank, ids: Tensor, **how: Any) -> Attended:
    """The CPU path computes what the reference does, in float32 whatever the dtype."""
    ours = ops.gather_decode(q, bank, ids, backend="torch", **how)
    scale = how.pop("scale", q.shape[-1] ** -0.5)
    how.pop("splits", None)
    truth = reference.gather_decode(q, bank, ids, scale=scale, **how)
    assert_attended(ours, truth, LIMITS[torch.float32])
    return ours


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_the_reference_is_torchs_attention_over_the_selected_tokens(groups: int) -> None:
    bank = random_bank(N, 2, 16, 64, torch.float64, ragged=True)
    ids, q = random_ids(B, groups, S, N), random_query(B, 8, 64, torch.float64)
    ours = reference.gather_decode(q, bank, ids, scale=0.2)
    assert bank.lengths is not None
    for b in range(B):
        for head in range(8):
            row = [i for i in ids[b, head * groups // 8].tolist() if i >= 0]
            tokens = [(i, j) for i in row for j in range(int(bank.lengths[i]))]
            if not tokens:
                assert not ours.out[b, head].any() and ours.lse[b, head] == -math.inf
                continue
            k, v = (torch.stack([x[i, head // 4, j] for i, j in tokens])
                    for x in (bank.keys, bank.values))  # fmt: skip
            truth = F.scaled_dot_product_attention(q[b, head][None], k, v, scale=0.2)[0]
            sums = torch.logsumexp(k @ q[b, head] * 0.2, dim=0) / math.log(2)
            assert error(ours.out[b, head], truth) < 1e-12
            assert abs(float(ours.lse[b, head] - sums)) < 1e-12


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("g", [1, 3, 4, 7, 8, 16])
def test_any_number_of_query_heads(dtype: torch.dtype, g: int) -> None:
    bank = random_bank(N, 2, 32, 64, dtype, ragged=True)
    assert_cpu(random_query(B, 2 * g, 64, dtype), bank, random_ids(B, 2, S, N))


@pytest.mark.parametrize("d", [16, 64, 80, 128, 256])
@pytest.mark.parametrize("p", [16, 128])
def test_any_width_and_block(d: int, p: int) -> None:
    bank = random_bank(N, 2, p, d, ragged=True)
    assert_cpu(random_query(B, 8, d, torch.float32), bank, random_ids(B, 2, S, N))


@pytest.mark.parametrize("groups", [1, 2, 8], ids=["sequence", "kv_head", "query_head"])
@pytest.mark.parametrize("per_block", [False, True])
@pytest.mark.parametrize("pairing", [None, "half", "interleaved"])
def test_everything_at_once(groups: int, per_block: bool, pairing: Pairing | None) -> None:
    rng = seeded(5)
    how: dict[str, Any] = {
        "scale": 0.3,
        "bias": torch.randn(B, groups, S, generator=rng),
        "log_weight": torch.randn(N, 2, 16, generator=rng),
        "mass": True,
    }
    if pairing is not None:
        how["rotation"] = random_rotation(B, groups, S, 64, pairing=pairing)
    q = random_query(B, 8, 64, torch.float32, s=S if per_block else 0)
    assert_cpu(q, random_bank(N, 2, 16, 64, ragged=True), random_ids(B, groups, S, N), **how)


@pytest.mark.parametrize("format", ["fp8", "int8", "int4"])
@pytest.mark.parametrize("pairing", [None, "half", "interleaved"])
def test_quantized_banks(format: Literal["fp8", "int8", "int4"], pairing: Pairing | None) -> None:
    plain = random_bank(N, 2, 16, 128)
    lengths = torch.arange(N, dtype=torch.int32)
    bank = quantize(Bank(plain.keys, plain.values, lengths), format)
    rotation = random_rotation(B, 1, S, 128, pairing=pairing) if pairing else None
    q = random_query(B, 8, 128, torch.bfloat16)
    assert_cpu(q, bank, random_ids(B, 2, S, N), rotation=rotation, mass=True)


def test_only_the_gathered_blocks_are_dequantized(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(bank: Bank, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        seen.append(bank.keys.shape[0] * bank.keys.shape[1])
        return dequantized(bank, dtype)

    monkeypatch.setattr(cpu, "dequantized", watched)
    bank = quantize(random_bank(500, 2, 16, 64), "int8")
    q = random_query(1, 4, 64, torch.float32)
    ops.gather_decode(q, bank, random_ids(1, 2, 3, 500), backend="torch")
    assert sum(seen) == 2 * 3


def test_keys_of_a_block_may_all_stand_at_its_base() -> None:
    rotation = random_rotation(B, 2, S, 64, step=0)
    bank, q = random_bank(N, 2, 16, 64), random_query(B, 8, 64, torch.float32)
    assert_cpu(q, bank, random_ids(B, 2, S, N), rotation=rotation)


def test_rotating_the_query_by_its_distance_is_the_same_as_rotating_the_keys() -> None:
    from palimpsest.kernels.rotary import rotate, table

    d, now, frequencies = 64, 90_000, 1e4 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    raw, q = random_bank(N, 2, 16, d, torch.float64), random_query(B, 8, d, torch.float64)
    ids, where = random_ids(B, 2, S, N, holes=False), random_rotation(B, 2, S, d)
    positions = torch.arange(100_003)
    exact = table(frequencies, positions, dtype=torch.float64)
    far = rotate(q, exact[0][now], exact[1][now])
    truth = reference.gather_decode(far, raw, ids, scale=0.1, rotation=Rotation(*exact, where.base))
    # keys by their place in the block, once; the query, for each block, by the rest of the way
    keys = rotate(raw.keys, exact[0][:16], exact[1][:16])
    away = (now - where.base).repeat_interleave(4, dim=1).flatten()
    cos, sin = (x.view(B, 8, S, -1) for x in table(frequencies, away, dtype=torch.float64))
    near = rotate(q[:, :, None].expand(-1, -1, S, -1), cos, sin)
    ours = reference.gather_decode(near.contiguous(), Bank(keys, raw.values), ids, scale=0.1)
    assert error(ours.out, truth.out) < 1e-9 and worst(ours.lse, truth.lse) < 1e-9


@pytest.mark.parametrize("limit", [1, 3 * 16 * 64 * 4, 10**9], ids=["block", "three", "all"])
def test_parts_do_not_change_the_result(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "MOST_BYTES", limit)
    bank, q = random_bank(N, 2, 16, 64, ragged=True), random_query(B, 8, 64, torch.float32)
    assert_cpu(q, bank, random_ids(B, 2, S, N), mass=True)


def test_nothing_selected_is_zero_and_minus_infinity() -> None:
    bank, q = random_bank(N, 2, 16, 64), random_query(B, 8, 64, torch.float32)
    nothing = torch.full((B, 2, S), -1, dtype=torch.int32)
    ours = assert_cpu(q, bank, nothing, mass=True)
    assert not ours.out.any() and torch.isneginf(ours.lse).all()
    assert ours.mass is not None and not ours.mass.any()


def test_a_bias_of_minus_infinity_selects_nothing() -> None:
    bank, q = random_bank(N, 2, 16, 64), random_query(B, 8, 64, torch.float32)
    ids = random_ids(B, 2, S, N, holes=False)
    gone = torch.zeros(B, 2, S)
    gone[:, :, 1] = -math.inf
    gone[1] = -math.inf
    ours = ops.gather_decode(q, bank, ids, bias=gone, mass=True)
    truth = ops.gather_decode(q, bank, ids.masked_fill(torch.isneginf(gone), -1), mass=True)
    assert_attended(ours, truth, LIMITS[torch.float32])


def test_a_block_selected_twice_counts_twice() -> None:
    bank, q = random_bank(N, 1, 16, 64), random_query(1, 1, 64, torch.float32)
    once, twice = torch.tensor([[[3, 4]]]).int(), torch.tensor([[[3, 4, 4]]]).int()
    double = torch.tensor([[[0.0, math.log(2)]]])
    ours = assert_cpu(q, bank, twice)
    assert_attended(ours, ops.gather_decode(q, bank, once, bias=double), LIMITS[torch.float32])


def test_masses_of_a_sequence_add_up_to_its_query_heads() -> None:
    bank, q = random_bank(N, 2, 16, 64), random_query(B, 8, 64, torch.float32)
    mass = ops.gather_decode(q, bank, random_ids(B, 2, S, N, holes=False), mass=True).mass
    assert mass is not None
    assert torch.allclose(mass.sum(dim=(2, 3)), torch.full((B, 2), 4.0))


def test_reading_the_selected_is_much_faster_than_reading_all() -> None:
    n, p, d = 15_625, 64, 64  # a million tokens, of which 2048 are selected
    keys = torch.randn(n // 25, 1, p, d, generator=seeded(0)).bfloat16().repeat(25, 1, 1, 1)
    bank, q = Bank(keys, keys.flip(0)), random_query(1, 4, d, torch.bfloat16)
    ids = random_ids(1, 1, 32, n, holes=False)
    k, v = bank.keys.view(1, 1, n * p, d), bank.values.view(1, 1, n * p, d)

    def dense() -> Tensor:
        return F.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)

    ratio = _least(dense, 2) / _least(lambda: ops.gather_decode(q, bank, ids), 10)
    assert ratio >= 20, f"{ratio:.0f} times as fast"


def _least(call: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


Q, BANK = random_query(B, 8, 64, torch.float32), random_bank(N, 2, 16, 64)
IDS = random_ids(B, 2, S, N)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"q": Q[0]}, r"q=\(8, 64\) must be \[B, Hq, D\]"),
    ({"q": Q[..., :32].contiguous()}, "D=32; the bank has D=64"),
    ({"q": Q.mT.contiguous().mT}, "q is not contiguous; call .contiguous()"),
    ({"q": Q.double()}, "q is torch.float64; it must be one of"),
    ({"q": Q.half()}, "q is torch.float16; the bank is torch.float32, and they must be alike"),
    ({"q": Q.to("meta")}, "q is on meta; it must be on cpu"),
    ({"q": Q[:, :7].contiguous()}, "Hq=7; it must be a multiple of H=2"),
    ({"q": Q[:, :, None].expand(-1, -1, 3, -1).contiguous()}, "must have shape"),
    ({"ids": IDS[..., :0]}, "selects no block"),
    ({"ids": IDS.long()}, "ids is torch.int64; it must be one of int32"),
    ({"ids": IDS[:1]}, r"ids=\(1, 2, 5\) must have shape \(2, 2, 5\)"),
    ({"ids": IDS.repeat(1, 2, 1)}, "HS=4; it must be 1, H=2 or Hq=8"),
    ({"ids": IDS[0]}, r"must be \[B, HS, S\]"),
    ({"bias": torch.zeros(B, 2, 4)}, r"bias=\(2, 2, 4\) must have shape \(2, 2, 5\)"),
    ({"log_weight": torch.zeros(N, 16)}, r"must have shape \(9, 2, 16\)"),
    ({"splits": 0}, "splits=0 must be from 1 to S=5"),
    ({"splits": 6}, "splits=6 must be from 1 to S=5"),
    ({"rotation": random_rotation(B, 2, 4, 64)}, r"rotation.base=\(2, 2, 4\) must be"),
    ({"rotation": random_rotation(B, 2, S, 32)}, r"must be \[M, 32\]"),
    ({"ids": IDS.masked_fill(IDS == N - 1, N), "check_ids": True}, "must be from -1 to 8"),
    ({"ids": IDS - 1, "check_ids": True}, "ids has -2 to"),
    ({"backend": "cuda"}, "backend='cuda' must be one of"),
    ({"backend": "triton"}, "backend='triton' needs tensors on a GPU, these are on cpu"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_breaks_a_rule_is_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"q": Q, "bank": BANK, "ids": IDS} | change
    with pytest.raises(ConfigError, match=message):
        ops.gather_decode(**given)
