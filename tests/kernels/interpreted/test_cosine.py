"""The nearest rows as Triton's interpreter finds them, on toy sizes.

It multiplies bfloat16 wrongly, so int8 rows are multiplied in float32 here; that bfloat16 holds
them exactly needs no GPU to know.
"""

from __future__ import annotations

import pytest
import torch
import triton.language as tl
from palimpsest.kernels.base import Selected
from palimpsest.kernels.configs import Config
from palimpsest.kernels.cosine import kernel, reference

from ..cases import seeded
from ..selections import assert_best

SMALL = Config(tile=16, warps=4, stages=2, splits=2)


@pytest.mark.parametrize("k", [5, 20], ids=["kept", "in memory"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("b", "d"), [(1, 40), (18, 130)], ids=str)
def test_the_nearest_rows_are_found(b: int, d: int, dtype: torch.dtype, k: int) -> None:
    queries = torch.randn(b, d, generator=seeded(0)).to(dtype)
    rows = torch.randn(37, d, generator=seeded(1)).to(dtype)
    found = kernel.run(queries, rows, k, scales=None, config=SMALL)
    assert_best(Selected(found.rows, found.scores), queries.double() @ rows.double().T)


@pytest.mark.parametrize("k", [1, 8, 17])
@pytest.mark.parametrize("eight_bits", [False, True], ids=["plain", "int8"])
@pytest.mark.parametrize("splits", [1, 3])
def test_exact_scores_come_in_exact_order(k: int, eight_bits: bool, splits: int) -> None:
    queries = torch.randint(-2, 3, (3, 16), generator=seeded(0)).float()
    rows = torch.randint(-2, 3, (50, 16), generator=seeded(1)).float()
    scales = None
    if eight_bits:
        rows, scales = rows.to(torch.int8), torch.full((50,), 0.5)
    truth = reference.cosine_topk(queries, rows, k, scales=scales)
    config = Config(tile=16, splits=splits)
    found = kernel.run(queries, rows, k, scales=scales, config=config, maths=tl.float32)
    assert torch.equal(found.rows, truth.rows)
    assert torch.equal(found.scores.double(), truth.scores)


def test_a_row_of_nan_is_not_near() -> None:
    queries, rows = torch.ones(2, 16), torch.ones(6, 16)
    rows[1] = torch.nan
    found = kernel.run(queries, rows, 6, scales=None, config=SMALL)
    assert found.rows.tolist() == [[0, 2, 3, 4, 5, -1]] * 2


def test_queries_wait_for_others_where_their_keys_would_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel, "AT_ONCE", 100)
    queries = torch.randint(-2, 3, (5, 16), generator=seeded(0)).float()
    rows = torch.randint(-2, 3, (40, 16), generator=seeded(1)).float()
    found = kernel.run(queries, rows, 33, scales=None, config=SMALL)
    assert torch.equal(found.rows, reference.cosine_topk(queries, rows, 33).rows)
