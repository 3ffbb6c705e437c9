"""Blocks are found by their summaries: the best ones, in a total order, however the work is cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.errors import ConfigError
from palimpsest.kernels import ops
from palimpsest.kernels.base import FLOATS, Reduce, Share, Summaries, SummaryKind
from palimpsest.kernels.score import cpu, reference
from palimpsest.kernels.score.packed import pack, unpack
from palimpsest.kernels.score.summaries import coarser
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .cases import random_query
from .selections import (
    REDUCES,
    REPRESENT,
    SHARES,
    assert_best,
    random_summaries,
    ranges,
    whole_query,
)

KINDS = tuple(REPRESENT)


def run(q: Tensor, summaries: Summaries, k: int, **given: Any) -> Any:
    """`cpu.run` with the defaults of `ops`, and what else it takes."""
    rest = {"share": "kv_head", "reduce": "max", "candidates": None, "coarse": None, "expand": 64}
    return cpu.run(q, summaries, k, **(rest | given))


def naive(q: Tensor, summaries: Summaries, share: Share, reduce: Reduce) -> list[list[list[float]]]:
    """Scores of each sequence, group and block, by plain loops over plain numbers."""
    data = summaries.data.double()
    bs, n, h = data.shape[:3]
    b, hq, _ = q.shape

    def score(sequence: int, row: int, block: int) -> float:
        keys = data[sequence % bs, block, row // (hq // h)].tolist()
        query = q[sequence, row].double().tolist()
        if summaries.kind == "bounds":
            high, low = keys
            return math.fsum(max(x * y, x * z) for x, y, z in zip(query, high, low, strict=True))
        return math.fsum(x * y for key in keys for x, y in zip(query, key, strict=True))

    groups = {"sequence": 1, "kv_head": h, "query_head": hq}[share]
    size = hq // groups
    joins: dict[str, Callable[[Sequence[float]], float]] = {
        "max": max,
        "mean": lambda x: math.fsum(x) / size,
        "softmax": math.fsum,
    }
    join = joins[reduce]
    found = []
    for sequence in range(b):
        rows = [[score(sequence, row, block) for block in range(n)] for row in range(hq)]
        if reduce == "softmax":
            rows = [[math.exp(x) / math.fsum(map(math.exp, row)) for x in row] for row in rows]
        each = [rows[group * size : (group + 1) * size] for group in range(groups)]
        found.append([[join(column) for column in zip(*some, strict=True)] for some in each])
    return found


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_what_plain_loops_compute(
    kind: SummaryKind, share: Share, reduce: Reduce
) -> None:
    q, summaries = random_query(2, 4, 16, torch.float32), random_summaries(2, 9, 2, 16, kind)
    every = torch.tensor(naive(q, summaries, share, reduce), dtype=torch.float64)
    ours = reference.block_scores(q, summaries, share, reduce, torch.float64)
    torch.testing.assert_close(ours, every, rtol=1e-12, atol=1e-12)
    best = reference.score_blocks(q, summaries, 5, share=share, reduce=reduce)
    for ids, truth in zip(best.ids.flatten(0, 1), every.flatten(0, 1), strict=True):
        assert ids.tolist() == sorted(range(9), key=lambda n: -float(truth[n]))[:5]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cpu_finds_the_best_blocks(
    kind: SummaryKind, share: Share, reduce: Reduce, dtype: torch.dtype
) -> None:
    q = random_query(2, 6, 80, dtype) / 4
    for bs in (1, 2):
        summaries = random_summaries(bs, 203, 2, 80, kind, dtype)
        truth = reference.block_scores(q, summaries, share, reduce, torch.float64)
        assert_best(run(q, summaries, 17, share=share, reduce=reduce, step=50), truth)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", KINDS)
def test_exact_scores_come_in_exact_order_however_the_work_is_cut(
    kind: SummaryKind, share: Share
) -> None:
    q, summaries = whole_query(2, 4, 16), random_summaries(1, 301, 2, 16, kind, whole=True)
    truth = reference.score_blocks(q, summaries, 40, share=share)
    assert (truth.scores.diff() == 0).any(), "some scores are equal, and the lower id comes first"
    for step in (1, 7, 300, 1000):
        ours = run(q, summaries, 40, share=share, step=step)
        assert torch.equal(ours.ids, truth.ids)
        assert torch.equal(ours.scores.double(), truth.scores)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 5), (130, 130), (130, 1)], ids=str)
def test_all_blocks_may_be_asked_for_and_few_may_be_there(n: int, k: int) -> None:
    q, summaries = whole_query(1, 2, 16), random_summaries(1, n, 1, 16, whole=True)
    ours, truth = run(q, summaries, k), reference.score_blocks(q, summaries, k)
    assert torch.equal(ours.ids, truth.ids)
    if n == k:
        assert ours.ids[0, 0].sort().values.tolist() == list(range(n))


def test_of_equal_scores_the_lower_block_comes_first() -> None:
    q, summaries = torch.ones(1, 2, 16), Summaries(torch.ones(1, 100, 1, 1, 16))
    assert run(q, summaries, 9, step=8).ids.tolist() == [[list(range(9))]]


@pytest.mark.parametrize("reduce", REDUCES)
def test_blocks_outside_the_candidates_are_not_selected(reduce: Reduce) -> None:
    q, summaries = random_query(4, 2, 16, torch.float32), random_summaries(1, 70, 1, 16)
    allowed = ranges((3, 40), (60, 70), (20, 24), (9, 9))
    ours = run(q, summaries, 8, reduce=reduce, candidates=allowed, step=16)
    truth = reference.block_scores(q, summaries, "kv_head", reduce, torch.float64)
    for sequence, (low, high) in enumerate(allowed.tolist()):
        truth[sequence, :, :low] = truth[sequence, :, high:] = -torch.inf
    assert_best(ours, truth)
    assert (ours.ids[3] == -1).all(), "nothing to select"


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_summary_of_nan_is_never_selected(kind: SummaryKind, reduce: Reduce) -> None:
    q, summaries = random_query(1, 4, 16, torch.float32), random_summaries(1, 30, 2, 16, kind)
    summaries.data[:, ::2] = torch.nan
    for found in (
        run(q, summaries, 30, reduce=reduce),
        reference.score_blocks(q, summaries, 30, reduce=reduce),
    ):
        assert (found.ids[..., :15] % 2 == 1).all() and (found.ids[..., 15:] == -1).all()
        assert not found.scores.isnan().any()


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", ["mean", "bounds"])
def test_two_levels_that_expand_all_are_one_level(kind: SummaryKind, share: Share) -> None:
    q = whole_query(2, 4, 16)
    for bs, factor in ((1, 4), (2, 16)):
        summaries = random_summaries(bs, 101, 2, 16, kind, whole=True)
        coarse = coarser(summaries, factor)
        rows = coarse.data.shape[1]
        for allowed in (None, ranges((10, 90), (50, 53))):
            one = run(q, summaries, 12, share=share, candidates=allowed)
            both = {"share": share, "candidates": allowed, "coarse": coarse, "expand": rows}
            two = run(q, summaries, 12, **both, step=30)
            assert torch.equal(two.ids, one.ids) and torch.equal(two.scores, one.scores)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_a_coarse_bound_misses_only_what_stands_in_rows_it_did_not_expand(
    seed: int, expand: int
) -> None:
    q = random_query(1, 2, 16, torch.float32, seed=seed)
    summaries = random_summaries(1, 46, 1, 16, "bounds", seed=seed)
    coarse = coarser(summaries, 8)
    above = run(q, coarse, expand).ids
    within = torch.isin(torch.arange(46) // 8, above)
    truth = reference.block_scores(q, summaries, "kv_head", "max", torch.float64)
    found = run(q, summaries, 6, coarse=coarse, expand=expand)
    assert_best(found, truth.masked_fill(~within, -torch.inf))
    upper = reference.block_scores(q, coarse, "kv_head", "max", torch.float64)
    rows = torch.split(truth[0, 0], 8)
    assert all(float(upper[0, 0, i]) >= float(row.max()) - 1e-9 for i, row in enumerate(rows))


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]  # its base has no types
    """The most float32 elements that any one operation gave."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, Tensor) and each.dtype == torch.float32:
                self.elements = max(self.elements, each.numel())
        return made


@pytest.mark.parametrize("coarse", [False, True], ids=["one level", "two levels"])
def test_summaries_are_never_all_in_float32_at_once(coarse: bool) -> None:
    q = random_query(1, 4, 64, torch.float16)
    summaries = random_summaries(1, 4096, 2, 64, dtype=torch.float16)
    more: dict[str, Any] = {"coarse": coarser(summaries, 4), "expand": 600} if coarse else {}
    with Largest() as largest:  # type: ignore[no-untyped-call]
        run(q, summaries, 8, step=64, share="query_head", **more)
    heads = 4 if coarse else 2
    assert 64 * 64 <= largest.elements <= heads * 64 * 64


@given(
    st.lists(st.tuples(st.floats(width=32, allow_nan=False), st.integers(0, 2**31 - 1)), min_size=1)
)
def test_packed_keys_are_ordered_by_score_and_then_by_lower_index(
    pairs: list[tuple[float, int]],
) -> None:
    scores, index = torch.tensor([x for x, _ in pairs]), torch.tensor([i for _, i in pairs])
    order = pack(scores, index).argsort(descending=True).tolist()
    expected = sorted(range(len(pairs)), key=lambda at: (-pairs[at][0], pairs[at][1]))
    assert [pairs[at] for at in order] == [pairs[at] for at in expected]


@given(st.floats(width=32), st.integers(0, 2**31 - 1))
def test_a_key_unpacks_to_what_was_packed(score: float, index: int) -> None:
    scores, found = unpack(pack(torch.tensor([score]), torch.tensor([index])))
    if math.isnan(score) or score == -math.inf:
        assert scores.item() == -math.inf and found.item() == -1
    else:
        assert scores.item() == score and found.item() == index


def bad(what: str) -> dict[str, Any]:
    """Arguments of `ops.score_blocks`, of which this one breaks a rule."""
    q, summaries = random_query(1, 4, 32, torch.float32), random_summaries(1, 20, 2, 32)
    good: dict[str, Any] = {"q": q, "summaries": summaries, "k": 4}
    coarse = coarser(summaries, 4)
    changes: dict[str, dict[str, Any]] = {
        "q shape": {"q": q[0]},
        "q dtype": {"q": q.half()},
        "q float64": {"q": q.double()},
        "q layout": {"q": q.transpose(1, 2).contiguous().transpose(1, 2)},
        "q width": {"q": q[..., :16].contiguous()},
        "q heads": {"q": q[:, :3].contiguous()},
        "batch": {"summaries": random_summaries(3, 20, 2, 32)},
        "k of 0": {"k": 0},
        "k beyond N": {"k": 21},
        "share": {"share": "head"},
        "reduce": {"reduce": "min"},
        "range dtype": {"candidates": ranges((0, 4)).long()},
        "range shape": {"candidates": ranges((0, 4), (0, 4))},
        "coarse rows": {"coarse": replace(coarse, span=5)},
        "coarse span": {"coarse": replace(coarse, span=1)},
        "coarse dtype": {"coarse": Summaries(coarse.data.half(), span=4)},
        "coarse softmax": {"coarse": coarse, "expand": 3, "reduce": "softmax"},
        "expand of 0": {"coarse": coarse, "expand": 0},
        "expand beyond": {"coarse": coarse, "expand": 6},
        "expand too few": {"coarse": coarse, "expand": 1, "k": 5},
        "backend": {"backend": "cuda"},
    }
    return good | changes[what]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("q shape", r"q=\(4, 32\) must be \[B, Hq, D\]"),
        ("q dtype", r"q is torch.float16; summaries are torch.float32"),
        ("q float64", r"q is torch.float64; it must be one of float16"),
        ("q layout", r"q is not contiguous; call .contiguous"),
        ("q width", r"q=\(1, 4, 16\) has D=16; summaries have D=32"),
        ("q heads", r"q has Hq=3; it must be a multiple of H=2"),
        ("batch", r"summaries=\(3, 20, 2, 1, 32\) must begin with 1 or B=1"),
        ("k of 0", r"k=0 must be from 1 to 20"),
        ("k beyond N", r"k=21 must be from 1 to 20: there are N=20 blocks"),
        ("share", r"share='head' must be one of"),
        ("reduce", r"reduce='min' must be one of"),
        ("range dtype", r"candidates is torch.int64; it must be one of int32"),
        ("range shape", r"candidates=\(2, 2\) must have shape \(1, 2\)"),
        ("coarse rows", r"coarse=\(1, 5, 2, 1, 32\) with span=5 must have one row"),
        ("coarse span", r"coarse=\(1, 5, 2, 1, 32\) with span=1 must have one row"),
        ("coarse dtype", r"coarse and summaries must have one dtype"),
        ("coarse softmax", r"reduce='softmax' needs every block's score"),
        ("expand of 0", r"expand=0 must be from 1 to 5"),
        ("expand beyond", r"expand=6 must be from 1 to 5"),
        ("expand too few", r"expand=1 .* at least k=5"),
        ("backend", r"backend='cuda' must be one of"),
    ],
)
def test_what_breaks_a_rule_is_told_so(what: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ops.score_blocks(**bad(what))


def test_the_op_runs_on_a_cpu_with_all_it_takes() -> None:
    q, summaries = whole_query(2, 4, 16), random_summaries(1, 64, 2, 16, "bounds", whole=True)
    ours = ops.score_blocks(
        q,
        summaries,
        7,
        share="sequence",
        reduce="mean",
        candidates=ranges((4, 60), (0, 64)),
        coarse=coarser(summaries, 8),
        expand=8,
    )
    truth = reference.score_blocks(
        q, summaries, 7, share="sequence", reduce="mean", candidates=ranges((4, 60), (0, 64))
    )
    assert torch.equal(ours.ids, truth.ids) and ours.ids.shape == (2, 1, 7)


@given(st.integers(1, 3000), st.integers(1, 10**6), st.integers(1, 6), st.integers(1, 200))
def test_splits_fill_the_device_unless_tiles_or_keys_run_out(
    units: int, tiles: int, log_width: int, processors: int
) -> None:
    running = pytest.importorskip("palimpsest.kernels.score.running", exc_type=ImportError)
    width, most = 2**log_width, 4096
    parts = running.parts_of(units, tiles, width, processors, most)
    assert parts.bit_count() == 1 and parts <= tiles and parts * width <= most
    if parts * 2 <= tiles and parts * 2 * width <= most:
        assert units * parts >= 2 * processors
    if parts > 1:
        assert units * parts / 2 < 2 * processors, "no more than are needed"
