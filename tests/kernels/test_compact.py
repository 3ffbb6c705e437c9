"""What is kept of a cache lies close together, its keys turned to where they stand now."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from palimpsest.errors import ConfigError
from palimpsest.kernels import ops
from palimpsest.kernels.base import FLOATS, Compacted, Pairing
from palimpsest.kernels.compact import cpu, reference
from palimpsest.kernels.rotary import rotate, table
from torch import Tensor

from .cases import LIMITS, error, seeded

PAIRINGS = ("half", "interleaved")


def frequencies(d: int) -> Tensor:
    """Of Llama: from a turn every 6 tokens to one every 60 000."""
    return 10_000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)


def cache(h: int, n: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Normal keys and values [H, N, D]."""
    both = torch.randn(2, h, n, d, generator=seeded(6)).to(dtype)
    return both[0].contiguous(), both[1].contiguous()


def kept(h: int, n: int, m: int) -> Tensor:
    """int32 [H, M], in no order, none twice."""
    rng = seeded(7)
    return torch.stack([torch.randperm(n, generator=rng)[:m] for _ in range(h)]).int()


def assert_compacted(ours: Compacted, truth: Compacted, dtype: torch.dtype) -> None:
    """Values and places exactly, keys up to what one rounding may do."""
    assert ours.keys.dtype == ours.values.dtype == dtype
    assert error(ours.keys, truth.keys) <= LIMITS[dtype].out
    assert torch.equal(ours.values.double(), truth.values.double())
    assert torch.equal(ours.moved, truth.moved)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_the_reference_is_what_rotating_raw_keys_anew_gives(pairing: Pairing) -> None:
    raw, values = (x.double() for x in cache(2, 30, 16))
    old = torch.arange(30) + 4_000_000
    keys = rotate(raw, *table(frequencies(16), old, dtype=torch.float64), pairing)
    keep, new = kept(1, 30, 11), torch.arange(11)
    turn = table(frequencies(16), new - old[keep[0].long()], dtype=torch.float64)
    ours = reference.compact(keys, values, keep, cos=turn[0], sin=turn[1], pairing=pairing)
    again = table(frequencies(16), new, dtype=torch.float64)
    for place, entry in enumerate(keep[0].tolist()):
        at = (again[0][place], again[1][place])
        torch.testing.assert_close(
            ours.keys[:, place], rotate(raw[:, entry], *at, pairing), rtol=1e-8, atol=1e-8
        )
        assert torch.equal(ours.values[:, place], values[:, entry])
        assert ours.moved[0, entry] == place
    assert (ours.moved >= 0).sum() == 11


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("own", [False, True], ids=["heads alike", "each head its own"])
@pytest.mark.parametrize("turned", [False, True], ids=["raw", "turned"])
def test_a_cpu_keeps_what_the_reference_keeps(
    turned: bool, own: bool, pairing: Pairing, dtype: torch.dtype
) -> None:
    keys, values = cache(3, 100, 80, dtype)
    keep = kept(3 if own else 1, 100, 63)
    cos = sin = None
    if turned:
        moved = torch.arange(63) - keep
        cos, sin = (
            x.view(*keep.shape, 40).squeeze(0) for x in table(frequencies(80), moved.flatten())
        )
    given: dict[str, Any] = {"cos": cos, "sin": sin, "pairing": pairing}
    before = keys.clone()
    ours = ops.compact(keys, values, keep, **given)
    assert_compacted(ours, reference.compact(keys, values, keep, **given), dtype)
    assert torch.equal(keys, before), "what was given is not changed"


def test_keys_that_stay_raw_are_copied_exactly() -> None:
    keys, values = cache(2, 40, 16, torch.bfloat16)
    keep = torch.arange(40, dtype=torch.int32)[None]
    ours = ops.compact(keys, values, keep)
    assert torch.equal(ours.keys, keys) and torch.equal(ours.values, values)
    assert torch.equal(ours.moved, keep)


def test_an_entry_that_was_dropped_went_nowhere() -> None:
    keys, values = cache(1, 5, 16)
    ours = ops.compact(keys, values, torch.tensor([[4, 1]], dtype=torch.int32))
    assert ours.moved.tolist() == [[-1, 1, -1, -1, 0]]


def test_rotating_half_precision_again_and_again_drifts_with_the_root_of_the_times() -> None:
    """Each rotation rounds anew: compact from keys that were rotated once, or never."""
    raw, _ = cache(1, 256, 128)
    places = torch.arange(256, dtype=torch.int32)[None]
    keys, total, drift = raw.bfloat16(), torch.zeros(256, dtype=torch.long), {}
    start = keys.double()
    rng = seeded(8)
    for times in range(1, 65):
        step = torch.randint(-1000, 1000, (256,), generator=rng)
        total += step
        cos, sin = table(frequencies(128), step)
        keys = ops.compact(keys, keys, places, cos=cos, sin=sin).keys
        if times in (1, 4, 16, 64):
            once = table(frequencies(128), total, dtype=torch.float64)
            drift[times] = error(keys, rotate(start, *once))
    for times, off in drift.items():
        predicted = 1.7e-3 * times**0.5
        assert 0.7 * predicted < off < 1.4 * predicted, drift


def bad(what: str) -> dict[str, Any]:
    """Arguments of `ops.compact`, of which this one breaks a rule."""
    keys, values = cache(2, 9, 16)
    keep = torch.tensor([[0, 3, 8]], dtype=torch.int32)
    cos, sin = table(frequencies(16), torch.arange(3))
    good: dict[str, Any] = {"keys": keys, "values": values, "keep": keep}
    changes: dict[str, dict[str, Any]] = {
        "shape": {"keys": keys[0]},
        "dtype": {"keys": keys.double()},
        "values": {"values": values.half()},
        "layout": {"keys": keys.transpose(1, 2).contiguous().transpose(1, 2)},
        "width": {"keys": keys[..., :8].contiguous(), "values": values[..., :8].contiguous()},
        "heads": {"keep": keep.expand(3, -1).contiguous()},
        "too many": {"keep": torch.arange(10, dtype=torch.int32)[None]},
        "empty": {"keep": keep[:, :0]},
        "keep dtype": {"keep": keep.long()},
        "no sin": {"cos": cos},
        "table": {"cos": cos[1:], "sin": sin[1:]},
        "table dtype": {"cos": cos.double(), "sin": sin.double()},
        "pairing": {"pairing": "pairs"},
        "above": {"keep": keep + 1, "check_ids": True},
        "below": {"keep": keep - 1, "check_ids": True},
    }
    return good | changes[what]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("shape", r"keys=\(9, 16\) must be \[H, N, D\]"),
        ("dtype", r"keys is torch.float64; it must be one of"),
        ("values", r"values is torch.float16; it must be one of float32"),
        ("layout", r"keys is not contiguous; call .contiguous"),
        ("width", r"keys=\(2, 9, 8\) has D=8; it must be a multiple of 16"),
        ("heads", r"keep=\(3, 3\) must be \[1 or H=2, M\]"),
        ("too many", r"keep=\(1, 10\) must be \[1 or H=2, M\] with M from 1 to N=9"),
        ("empty", r"keep=\(1, 0\) must be"),
        ("keep dtype", r"keep is torch.int64; it must be one of int32"),
        ("no sin", r"cos and sin go together; give both or neither"),
        ("table", r"cos=\(2, 8\) must have shape \(3, 8\)"),
        ("table dtype", r"cos is torch.float64; it must be one of float32"),
        ("pairing", r"pairing='pairs' must be one of"),
        ("above", r"keep has 1 to 9; they must be from 0 to 8"),
        ("below", r"keep has -1 to 7; they must be from 0 to 8"),
    ],
)
def test_what_breaks_a_rule_is_told_so(what: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ops.compact(**bad(what))


def test_one_head_at_a_time_is_all_heads_together() -> None:
    keys, values = cache(3, 20, 16, torch.float16)
    keep = kept(3, 20, 7)
    cos, sin = (x.view(3, 7, 8) for x in table(frequencies(16), (torch.arange(7) - keep).flatten()))
    together = cpu.run(keys, values, keep, cos=cos, sin=sin, pairing="half")
    for head in range(3):
        alone = cpu.run(
            keys[head : head + 1],
            values[head : head + 1],
            keep[head : head + 1],
            cos=cos[head],
            sin=sin[head],
            pairing="half",
        )
        assert torch.equal(alone.keys[0], together.keys[head])
        assert torch.equal(alone.moved[0], together.moved[head])
