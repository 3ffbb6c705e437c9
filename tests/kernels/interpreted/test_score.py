"""Block scoring as Triton's interpreter runs it, on toy sizes: a sort of int64 takes it long."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from palimpsest.kernels import ops
from palimpsest.kernels.base import Reduce, Selected, Share, Summaries, SummaryKind
from palimpsest.kernels.configs import Config
from palimpsest.kernels.score import kernel, reference
from palimpsest.kernels.score.summaries import coarser
from torch import Tensor

from ..cases import random_query
from ..selections import REDUCES, SHARES, assert_best, random_summaries, ranges, whole_query

SMALL = Config(tile=16, warps=4, stages=2, splits=2)


def run(q: Tensor, summaries: Summaries, k: int, **given: Any) -> Selected:
    """`kernel.run` with the defaults of `ops`, and a small tile."""
    rest = {"share": "kv_head", "reduce": "max", "candidates": None, "coarse": None, "expand": 64}
    return kernel.run(q, summaries, k, **(rest | {"config": SMALL} | given))


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", ["mean", "bounds", "tokens"])
def test_the_best_blocks_are_found(kind: SummaryKind, share: Share, reduce: Reduce) -> None:
    bs = 1 if kind == "bounds" else 2
    q, summaries = random_query(2, 4, 16, torch.float32), random_summaries(bs, 37, 2, 16, kind)
    truth = reference.block_scores(q, summaries, share, reduce, torch.float64)
    assert_best(run(q, summaries, 5, share=share, reduce=reduce), truth)


@pytest.mark.parametrize(("d", "hq"), [(80, 3), (48, 20), (16, 1)], ids=str)
def test_half_precision_and_odd_sizes(d: int, hq: int) -> None:
    """More query heads than the rows of a product, and channels that are no power of two."""
    q = random_query(1, hq, d, torch.float16)
    summaries = random_summaries(1, 37, 1, d, "bounds", torch.float16)
    truth = reference.block_scores(q, summaries, "kv_head", "max", torch.float64)
    assert_best(run(q, summaries, 8), truth)


@pytest.mark.parametrize("splits", [1, 2, 3])
def test_exact_scores_come_in_exact_order_however_the_work_is_split(splits: int) -> None:
    q, summaries = whole_query(1, 4, 16), random_summaries(1, 83, 2, 16, whole=True)
    truth = reference.score_blocks(q, summaries, 7)
    assert (truth.scores.diff() == 0).any()
    ours = run(q, summaries, 7, config=Config(tile=16, splits=splits))
    assert torch.equal(ours.ids, truth.ids) and torch.equal(ours.scores.double(), truth.scores)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 5), (37, 1), (37, 37)], ids=str)
def test_few_blocks_and_all_of_them(n: int, k: int) -> None:
    """All 37 are more than a tile can keep: keys go to memory."""
    q, summaries = whole_query(1, 2, 16), random_summaries(1, n, 1, 16, whole=True)
    ours, truth = run(q, summaries, k), reference.score_blocks(q, summaries, k)
    assert torch.equal(ours.ids, truth.ids) and torch.equal(ours.scores.double(), truth.scores)


@pytest.mark.parametrize("k", [6, 20], ids=["kept", "in memory"])
@pytest.mark.parametrize("reduce", REDUCES)
def test_what_is_excluded_or_nan_is_not_selected(reduce: Reduce, k: int) -> None:
    q, summaries = random_query(3, 2, 16, torch.float32), random_summaries(1, 37, 1, 16)
    summaries.data[:, 5::4] = torch.nan
    allowed = ranges((3, 30), (20, 24), (9, 9))
    truth = reference.block_scores(q, summaries, "kv_head", reduce, torch.float64)
    for sequence, (low, high) in enumerate(allowed.tolist()):
        truth[sequence, :, :low] = truth[sequence, :, high:] = -torch.inf
    ours = run(q, summaries, k, reduce=reduce, candidates=allowed)
    assert_best(ours, truth)
    assert (ours.ids[2] == -1).all()


def test_a_query_of_nan_selects_nothing() -> None:
    q, summaries = random_query(1, 2, 16, torch.float32), random_summaries(1, 20, 1, 16, "bounds")
    q[...] = torch.nan
    for reduce in REDUCES:
        ours = run(q, summaries, 4, reduce=reduce)
        assert (ours.ids == -1).all() and torch.isneginf(ours.scores).all()


@pytest.mark.parametrize("share", SHARES)
def test_two_levels_score_what_the_first_expands(share: Share) -> None:
    q, summaries = whole_query(2, 4, 16), random_summaries(2, 70, 2, 16, "bounds", whole=True)
    coarse, allowed = coarser(summaries, 8), ranges((3, 65), (20, 23))
    for expand in (9, 3):
        given: dict[str, Any] = {"share": share, "candidates": allowed}
        given |= {"coarse": coarse, "expand": expand}
        ours = run(q, summaries, 6, **given)
        on_a_cpu = ops.score_blocks(q, summaries, 6, **given, backend="torch")
        assert torch.equal(ours.ids, on_a_cpu.ids) and torch.equal(ours.scores, on_a_cpu.scores)


def test_the_op_takes_the_kernel_and_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def chosen(op: str, gpu: str, shape: dict[str, int]) -> Config:
        asked.append((op, gpu, shape))
        return SMALL

    monkeypatch.setattr(kernel, "choose", chosen)
    q, summaries = whole_query(1, 2, 16), random_summaries(1, 20, 1, 16, whole=True)
    ours = ops.score_blocks(q, summaries, 3, backend="triton")
    assert torch.equal(ours.ids, reference.score_blocks(q, summaries, 3).ids)
    assert asked == [("score", "", {"N": 20, "H": 1, "R": 1, "D": 16, "bytes": 4})]
