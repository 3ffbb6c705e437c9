"""What is given is checked: an error names the argument, the value and the rule."""

from typing import Any

import pytest
import torch
from palimpsest.errors import ConfigError
from palimpsest.kernels.base import Bank, Rotation, Summaries, rows_of

from .cases import random_bank, random_rotation

BANK: dict[str, Any] = {"keys": torch.zeros(3, 2, 32, 64), "values": torch.zeros(3, 2, 32, 64)}
BYTES = torch.zeros(3, 2, 32, 64, dtype=torch.int8)
SCALE = torch.ones(3, 2, 32, dtype=torch.float16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "fp4"}, r"format='fp4' must be one of \('plain'"),
        ({"keys": torch.zeros(3, 2, 64)}, r"keys=\(3, 2, 64\) must be \[N, H, P, D\]"),
        ({"keys": torch.zeros(0, 2, 32, 64)}, r"keys=\(0, 2, 32, 64\) is an empty bank"),
        ({"keys": torch.zeros(3, 0, 32, 64)}, r"keys=\(3, 0, 32, 64\) is an empty bank"),
        ({"keys": torch.zeros(3, 2, 48, 64)}, "P=48; it must be one of"),
        ({"keys": torch.zeros(3, 2, 32, 72)}, "D=72; it must be a multiple of 16 up to 256"),
        ({"keys": torch.zeros(3, 2, 32, 272)}, "D=272; it must be a multiple of 16 up to 256"),
        ({"keys": BYTES}, "keys is int8|keys is torch.int8; it must be one of"),
        ({"keys": torch.zeros(3, 2, 64, 32).mT}, "keys is not contiguous; call .contiguous()"),
        ({"values": torch.zeros(3, 2, 32, 32)}, r"values=\(3, 2, 32, 32\) must have shape"),
        ({"values": torch.zeros(3, 2, 32, 64).half()}, "values is torch.float16; it must be"),
        ({"values": torch.zeros(3, 2, 32, 64, device="meta")}, "values is on meta; it must be on"),
        ({"lengths": torch.zeros(2, dtype=torch.int32)}, r"lengths=\(2,\) must have shape \(3,\)"),
        ({"lengths": torch.zeros(3)}, "lengths is torch.float32; it must be one of int32"),
        ({"key_scale": SCALE}, "format='plain' has no key_scale"),
        ({"format": "int8", "keys": BYTES, "values": BYTES}, "format='int8' needs key_scale"),
        (
            {"format": "int8", "keys": BYTES, "values": BYTES, "key_scale": SCALE[:, :1]},
            r"key_scale=\(3, 1, 32\) must have shape \(3, 2, 32\)",
        ),
        (
            {"format": "int8", "keys": BYTES, "values": BYTES, "key_scale": SCALE.float()},
            "key_scale is torch.float32; it must be one of float16",
        ),
        (
            {"format": "int4", "keys": BYTES[..., :40].byte(), "values": BYTES[..., :40].byte()},
            "D=80; int4 needs a multiple of 64|not contiguous",
        ),
    ],
)
def test_a_bank_that_breaks_a_rule_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Bank(**(BANK | change))


def test_a_bank_tells_its_sizes() -> None:
    bank = random_bank(5, 2, 16, 80)
    assert (bank.dim, bank.heads, bank.block) == (80, 2, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairing": "pairs"}, "pairing='pairs' must be one of"),
        ({"step": 2}, "step=2 must be one of"),
        ({"base": torch.zeros(2, 3, dtype=torch.int32)}, r"base=\(2, 3\) must be \[B, HS, S\]"),
        ({"base": torch.zeros(2, 2, 3)}, "base is torch.float32; it must be one of int32"),
        ({"cos": torch.ones(9)}, r"cos=\(9,\) must be \[M, D / 2\]"),
        ({"sin": torch.ones(9, 8)}, r"sin=\(9, 8\) must have shape \(9, 32\)"),
        ({"sin": torch.ones(9, 32).half()}, "sin is torch.float16; it must be one of float32"),
    ],
)
def test_a_rotation_that_breaks_a_rule_is_refused(change: dict[str, Any], message: str) -> None:
    given = {
        "cos": torch.ones(9, 32),
        "sin": torch.zeros(9, 32),
        "base": torch.zeros(2, 2, 3, dtype=torch.int32),
    }
    with pytest.raises(ConfigError, match=message):
        Rotation(**(given | change))


def test_a_rotation_as_the_tests_make_it_is_taken() -> None:
    assert random_rotation(2, 2, 3, 64).cos.shape[1] == 32


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ((1, 9, 2, 64), "mean", r"must be \[Bs, N, H, r, D\]"),
        ((1, 0, 2, 1, 64), "mean", "has no block"),
        ((1, 9, 2, 2, 64), "mean", "r=2; kind='mean' needs 1"),
        ((1, 9, 2, 1, 64), "bounds", "r=1; kind='bounds' needs 2"),
        ((1, 9, 2, 0, 64), "tokens", "r=0; kind='tokens' needs at least 1"),
        ((1, 9, 2, 1, 40), "mean", "D=40; it must be a multiple of 16 up to 256"),
        ((1, 9, 2, 1, 64), "median", "kind='median' must be one of"),
    ],
)
def test_summaries_that_break_a_rule_are_refused(
    shape: tuple[int, ...], kind: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Summaries(torch.zeros(shape), kind)


def test_a_selection_is_shared_by_sequence_kv_head_or_query_head() -> None:
    assert [rows_of(groups, 8, 2) for groups in (1, 2, 8)] == [8, 4, 1]
    with pytest.raises(ConfigError, match="HS=4; it must be 1, H=2 or Hq=8"):
        rows_of(4, 8, 2)
    with pytest.raises(ConfigError, match="Hq=7; it must be a multiple of H=2"):
        rows_of(1, 7, 2)
