"""What the tests of selections share: random summaries, and whether the right ones were found."""

from __future__ import annotations

import torch
from palimpsest.kernels.base import Selected, Summaries, SummaryKind
from torch import Tensor

from .cases import LIMITS, seeded

REPRESENT: dict[SummaryKind, int] = {"mean": 1, "bounds": 2, "tokens": 3}
SHARES = ("sequence", "kv_head", "query_head")
REDUCES = ("max", "mean", "softmax")


def random_summaries(
    bs: int,
    n: int,
    h: int,
    d: int,
    kind: SummaryKind = "mean",
    dtype: torch.dtype = torch.float32,
    *,
    whole: bool = False,
    seed: int = 4,
) -> Summaries:
    """Normal summaries; or, whole, of small integers, whose scores are exact in any order and
    often equal. Of `bounds`, the maximum is above the minimum."""
    shape = (bs, n, h, REPRESENT[kind], d)
    data = torch.randn(shape, generator=seeded(seed))
    if whole:
        data = torch.randint(-2, 3, shape, generator=seeded(seed)).float()
    if kind == "bounds":
        data = torch.cat([data.amax(dim=3, keepdim=True), data.amin(dim=3, keepdim=True)], dim=3)
    return Summaries(data.to(dtype), kind)


def whole_query(b: int, hq: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[B, Hq, D] of small integers."""
    return torch.randint(-2, 3, (b, hq, d), generator=seeded(5)).to(dtype)


def ranges(*pairs: tuple[int, int]) -> Tensor:
    """int32 [B, 2]."""
    return torch.tensor(pairs, dtype=torch.int32)


def assert_best(ours: Selected, every: Tensor, limit: float | None = None) -> None:
    """These are the best of all scores [B, HS, N] in float64, best first, -inf for what must not be
    selected. One may stand for another only if their scores differ by less than twice the limit,
    which is relative to the largest score."""
    k = ours.ids.shape[-1]
    finite = every.masked_fill(every.isinf(), 0.0)
    slack = (limit or LIMITS[torch.float32].out) * max(float(finite.abs().max()), 1e-30)
    assert ours.ids.dtype == torch.int32 and ours.scores.dtype == torch.float32
    assert not ours.scores.isnan().any()
    for ids, scores, truth in zip(
        ours.ids.flatten(0, -2), ours.scores.flatten(0, -2), every.flatten(0, -2), strict=True
    ):
        there = ids >= 0
        count = int(there.sum())
        assert count == min(k, int((~truth.isneginf()).sum())), "as many as there are"
        assert there[:count].all() and torch.isneginf(scores[count:]).all(), "padding at the end"
        assert len(set(ids[:count].tolist())) == count, "none twice"
        assert (scores[:count].diff() <= 0).all(), "best first"
        chosen = truth[ids[:count].long()]
        assert (chosen - scores[:count]).abs().le(slack).all(), "each with its own score"
        if count:
            assert chosen.min() >= truth.sort(descending=True).values[count - 1] - 2 * slack
