"""Configurations are data: which row counts, what holds where none does, how work is split."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.kernels import configs
from palimpsest.kernels.configs import RESIDENT, Config, choose, split_count


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        {"op": "decode", "gpu": "H200", "where": {"D": [1, 64]}, "tile": 128, "splits": 3},
        {"op": "decode", "gpu": "H200", "warps": 8},
        {"op": "decode", "where": {"D": [65, 128], "bytes": [1, 1]}, "stages": 5},
    ]
    monkeypatch.setattr(configs, "_rows", lambda: made)


def test_the_first_row_that_holds_counts(rows: None) -> None:
    assert choose("decode", "NVIDIA H200", {"D": 64}) == Config(tile=128, splits=3)
    assert choose("decode", "NVIDIA H200", {"D": 65, "bytes": 1}) == Config(warps=8)
    assert choose("decode", "NVIDIA H100", {"D": 65, "bytes": 1}) == Config(stages=5)


def test_what_no_row_speaks_of_has_the_defaults(rows: None) -> None:
    default = Config(tile=64, warps=4, stages=3, splits=None)
    assert choose("decode", "", {"D": 64}) == default
    assert choose("decode", "NVIDIA H100", {"D": 100}) == default, "a row asks for bytes"
    assert choose("no such op", "NVIDIA H200", {}) == default


def test_the_shipped_rows_are_well_formed() -> None:
    for row in configs._rows():
        assert row["op"] in ("merge", "decode", "score", "cosine", "compact")
        assert set(row) <= {"op", "gpu", "where", "tile", "warps", "stages", "splits"}
        assert row.get("tile", 64).bit_count() == 1, f"{json.dumps(row)}: a power of two"
        assert all(low <= high for low, high in row.get("where", {}).values())


@pytest.mark.parametrize(
    ("b", "splits"), [(1, 32), (8, 4), (64, 1)], ids=["one", "eight", "sixty-four sequences"]
)
def test_the_reference_workload_fills_an_h200(b: int, splits: int) -> None:
    assert split_count(units=b * 8, parts=32, processors=132) == splits


@given(st.integers(1, 4096), st.integers(1, 256), st.integers(1, 200))
def test_splits_are_few_and_leave_none_empty(units: int, parts: int, processors: int) -> None:
    splits = split_count(units, parts, processors)
    assert 1 <= splits <= parts
    assert -(-parts // -(-parts // splits)) == splits, "a split would have nothing to read"
    assert splits == 1 or units < RESIDENT * processors
