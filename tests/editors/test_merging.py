"""Merging: by hand on small numbers, and rules that hold for any."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.editors.merging import MERGES
from torch import Tensor

numbers = st.floats(-4, 4, width=32)


def deltas(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows)[:, None, :]


def test_ties_trims_elects_signs_and_averages_what_agrees() -> None:
    given = deltas([[4.0, 1.0, -2.0, 0.0], [2.0, -3.0, 0.5, 0.0]])
    # Half of each is kept: [4, 0, -2, 0] and [2, -3, 0, 0].
    assert MERGES["ties"](given, 0.5).tolist() == [[3.0, -3.0, -2.0, 0.0]]


def test_sign_keeps_all_entries_and_averages_those_that_agree() -> None:
    given = deltas([[4.0, 1.0, -2.0], [2.0, -3.0, 0.5]])
    assert MERGES["sign"](given, 0.5).tolist() == [[3.0, -3.0, -2.0]]


def test_linear_is_the_mean_and_so_shrinks_what_only_one_has() -> None:
    assert MERGES["linear"](deltas([[4.0, 0.0], [0.0, 2.0]]), 1.0).tolist() == [[2.0, 1.0]]
    assert MERGES["ties"](deltas([[4.0, 0.0], [0.0, 2.0]]), 1.0).tolist() == [[4.0, 2.0]]


def test_slerp_keeps_the_length_that_a_mean_loses() -> None:
    merged = MERGES["slerp"](deltas([[1.0, 0.0], [0.0, 1.0]]), 1.0)
    assert merged.norm().item() == pytest.approx(1.0)
    assert merged[0, 0].item() == pytest.approx(merged[0, 1].item())


def test_dare_keeps_the_sum_on_average() -> None:
    merged = MERGES["dare"](torch.ones(2, 100, 100), 0.25)
    assert merged.mean().item() == pytest.approx(1.0, abs=0.05)
    assert set(merged.flatten().tolist()) <= {0.0, 2.0, 4.0}


@pytest.mark.parametrize("name", sorted(MERGES))
@given(rows=st.lists(st.lists(numbers, min_size=4, max_size=4), min_size=1, max_size=3))
def test_a_merge_at_full_density_stays_within_what_it_is_given(
    name: str, rows: list[list[float]]
) -> None:
    given = deltas(rows)
    merged = MERGES[name](given, 1.0)
    assert merged.shape == given.shape[1:]
    assert torch.isfinite(merged).all()
    if name != "slerp":
        assert (merged <= given.amax(0).clamp(min=0) + 1e-5).all()
        assert (merged >= given.amin(0).clamp(max=0) - 1e-5).all()


@pytest.mark.parametrize("name", sorted(MERGES))
def test_one_delta_merges_to_itself(name: str) -> None:
    alone = deltas([[3.0, -1.0, 0.0]])
    assert torch.allclose(MERGES[name](alone, 1.0), alone[0])
