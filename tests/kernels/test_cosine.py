"""The nearest rows of a table are found exactly, and of 8-bit rows as near as 8 bits allow."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from palimpsest.errors import ConfigError
from palimpsest.kernels import ops
from palimpsest.kernels.base import Selected
from palimpsest.kernels.cosine import cpu, reference
from torch import Tensor

from .cases import seeded
from .selections import assert_best


def unit(n: int, d: int, seed: int) -> Tensor:
    """[n, d] of length 1."""
    return torch.nn.functional.normalize(torch.randn(n, d, generator=seeded(seed)), dim=1)


def eight_bits(rows: Tensor) -> tuple[Tensor, Tensor]:
    """int8 rows, and what one step of each is worth."""
    scales = rows.abs().amax(dim=1) / 127
    return (rows / scales[:, None]).round().to(torch.int8), scales


def all_scores(queries: Tensor, rows: Tensor, scales: Tensor | None) -> Tensor:
    """[B, N] in float64."""
    every = queries.double() @ rows.double().T
    return every if scales is None else every * scales.double()


def test_the_reference_is_what_plain_loops_compute() -> None:
    queries, (rows, scales) = unit(3, 20, 0), eight_bits(unit(15, 20, 1))
    found = reference.cosine_topk(queries, rows, 4, scales=scales)
    for query, ids, scores in zip(queries.double().tolist(), *found, strict=True):
        each = [
            math.fsum(x * y for x, y in zip(query, row, strict=True)) * scale
            for row, scale in zip(rows.double().tolist(), scales.double().tolist(), strict=True)
        ]
        best = sorted(range(15), key=lambda row: -each[row])[:4]
        assert ids.tolist() == best
        torch.testing.assert_close(scores.tolist(), [each[row] for row in best])


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize(
    ("b", "n", "d", "k"), [(1, 1, 33, 1), (3, 1000, 100, 10), (17, 63, 384, 63)], ids=str
)
def test_a_cpu_finds_the_nearest_rows(b: int, n: int, d: int, k: int, stored: torch.dtype) -> None:
    queries, rows, scales = unit(b, d, 2), unit(n, d, 3), None
    if stored == torch.int8:
        rows, scales = eight_bits(rows)
    else:
        queries, rows = queries.to(stored), rows.to(stored)
    found = cpu.run(queries, rows, k, scales=scales, step=40)
    assert_best(Selected(found.rows, found.scores), all_scores(queries, rows, scales))


def test_of_equal_scores_the_lower_row_comes_first_however_the_work_is_cut() -> None:
    queries = torch.randint(-2, 3, (5, 16), generator=seeded(0)).float()
    rows = torch.randint(-2, 3, (500, 16), generator=seeded(1)).float()
    truth = reference.cosine_topk(queries, rows, 50)
    assert (truth.scores.diff() == 0).any()
    for step in (1, 7, 499, 1000):
        found = cpu.run(queries, rows, 50, scales=None, step=step)
        assert torch.equal(found.rows, truth.rows)
        assert torch.equal(found.scores.double(), truth.scores)


def test_a_row_of_nan_is_not_near() -> None:
    queries, rows = unit(2, 16, 0), unit(6, 16, 1)
    rows[1] = torch.nan
    found = ops.cosine_topk(queries, rows, 6)
    assert (found.rows[:, -1] == -1).all() and not (found.rows == 1).any()
    assert not found.scores.isnan().any()


def test_eight_bits_rank_nearly_as_32_do_and_exactly_once_the_best_are_scored_again() -> None:
    """kernels/cosine/README.md tells the same of 200 000 rows: 0.983, and 1.000 rescored."""
    queries, rows = unit(64, 384, 4), unit(20_000, 384, 5)
    truth = ops.cosine_topk(queries, rows, 10).rows
    small, scales = eight_bits(rows)
    off = all_scores(queries, small, scales) - all_scores(queries, rows, None)
    assert 2e-4 < float(off.std()) < 6e-4
    found = ops.cosine_topk(queries, small, 40, scales=scales).rows

    def recall(best: Tensor) -> float:
        hits = [len({*a} & {*b}) for a, b in zip(best.tolist(), truth.tolist(), strict=True)]
        return sum(hits) / truth.numel()

    again = (rows[found.long()] @ queries[..., None]).squeeze(-1).topk(10, dim=1).indices
    assert 0.95 < recall(found[:, :10]) < 1.0
    assert recall(found.gather(1, again)) == 1.0


def bad(what: str) -> dict[str, Any]:
    """Arguments of `ops.cosine_topk`, of which this one breaks a rule."""
    queries, rows = unit(2, 16, 0), unit(9, 16, 1)
    small, scales = eight_bits(rows)
    good: dict[str, Any] = {"queries": queries, "rows": rows, "k": 3}
    changes: dict[str, dict[str, Any]] = {
        "shape": {"queries": queries[0]},
        "width": {"queries": queries[:, :8].contiguous()},
        "dtype": {"queries": queries.half()},
        "bfloat16": {"queries": queries.bfloat16(), "rows": rows.bfloat16()},
        "layout": {"rows": rows.T.contiguous().T},
        "k of 0": {"k": 0},
        "k beyond N": {"k": 10},
        "no rows": {"rows": rows[:0]},
        "no scales": {"rows": small},
        "scales": {"scales": scales},
        "scales shape": {"rows": small, "scales": scales[1:]},
        "scales dtype": {"rows": small, "scales": scales.half()},
    }
    return good | changes[what]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("shape", r"queries=\(16,\) must be \[B, d\]"),
        ("width", r"queries=\(2, 8\) have d=8; rows=\(9, 16\) have d=16"),
        ("dtype", r"queries is torch.float16; rows is torch.float32; make them alike"),
        ("bfloat16", r"queries is torch.bfloat16; it must be one of float16, float32"),
        ("layout", r"rows is not contiguous; call .contiguous"),
        ("k of 0", r"k=0 must be from 1 to 9"),
        ("k beyond N", r"k=10 must be from 1 to 9: there are N=9 rows"),
        ("no rows", r"k=3 must be from 1 to 0: there are N=0 rows"),
        ("no scales", r"rows is torch.int8; int8 rows, and no others, need scales"),
        ("scales", r"rows is torch.float32; int8 rows, and no others, need scales"),
        ("scales shape", r"scales=\(8,\) must have shape \(9,\)"),
        ("scales dtype", r"scales is torch.float16; it must be one of float32"),
    ],
)
def test_what_breaks_a_rule_is_told_so(what: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ops.cosine_topk(**bad(what))
