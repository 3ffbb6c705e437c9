"""Scoring, attention, the whole step: ours, stages, baselines, and what is true in float64.

An experiment is one op on one case. Its error is measured before any time is: of what should be
read, on the same rounded or dequantised inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from ...kernels import ops
from ...kernels.base import Attended, Bank, Selected, Summaries
from ...kernels.decode import reference as decode_reference
from ...kernels.score import reference as score_reference
from ...kernels.step import Step, retrieval_attention
from . import kernel_baselines as others
from .kernel_baselines import Calls
from .kernel_cases import SINKS, WINDOW, Inputs

LIMITS = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}
"""Largest relative L2 error, by the dtype of the products. Who rounds the result to it as well may
be off by twice as much."""

CHECKED = 2
"""Sequences whose result is compared with float64."""


@dataclass(frozen=True, slots=True)
class System:
    """Something to be timed.

    Args:
        calls: makes its calls, or raises Unavailable.
        error: of what a call returns, as a share; None: it computes something else.
        moved: bytes that it has to move, if not those of the experiment.
    """

    calls: Callable[[], Calls]
    error: Callable[[Any], float] | None = None
    moved: int | None = None


@dataclass(frozen=True, slots=True)
class Experiment:
    """One op on one case.

    Args:
        moved: bytes that must be read and written, whoever does it.
        ours: systems that must be right.
        others: baselines and stages; what is wrong or cannot run is noted, and not timed.
    """

    op: str
    label: str
    columns: Mapping[str, Any]
    moved: int
    limit: float
    ours: Mapping[str, System]
    others: Mapping[str, System] = field(default_factory=dict)


def of_case(inputs: Inputs) -> Iterator[Experiment]:
    """What a bank of this case can be measured on; only attention, if it is quantised."""
    yield decode(inputs)
    if inputs.case.format == "plain":
        yield score(inputs)
        yield step(inputs)


def off(ours: Tensor, truth: Tensor) -> float:
    """Relative L2 error; NaN counts as endless."""
    ours, truth = ours.double(), truth.double()
    found = float((ours - truth).norm() / truth.norm().clamp(min=1e-30))
    return float("inf") if found != found else found


def _out(result: Any) -> Tensor:
    """[B, Hq, D] of whatever form attention is returned in."""
    return result.out if isinstance(result, Attended | Step) else result


def true_attention(q: Tensor, bank: Bank, ids: Tensor) -> Attended:
    """Of the first sequences, in float64, from a copy of the blocks that they read."""
    q, ids = q[:CHECKED], ids[:CHECKED]
    needed, at = torch.unique(ids.clamp(min=0), return_inverse=True)
    names = ("keys", "values", "key_scale", "value_scale", "key_zero", "value_zero")
    given = {name: getattr(bank, name) for name in names}
    small = replace(bank, **{name: x[needed] for name, x in given.items() if x is not None})
    place = torch.where(ids >= 0, at, -1).int()
    return decode_reference.gather_decode(q, small, place, scale=q.shape[-1] ** -0.5)


def decode(inputs: Inputs) -> Experiment:
    """Attention to a given selection; dense attention over everything beside it."""
    case, q, ids = inputs.case, inputs.queries, inputs.ids

    def error(result: Any, shown: Tensor = ids[0]) -> float:
        truth = true_attention(q[0], inputs.bank, shown)
        return off(_out(result).reshape(case.b, case.hq, case.d)[:CHECKED], truth.out)

    def ours() -> Calls:
        return [partial(ops.gather_decode, q[at], inputs.bank, each) for at, each in enumerate(ids)]

    def shared(result: Any) -> float:
        return error(result, ids[0][:, :1].expand(-1, case.h, -1).contiguous())

    beside: dict[str, System] = {"copy of as many bytes": System(partial(others.copy, inputs))}
    if case.format == "plain":
        flash, cudnn = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
        efficient = SDPBackend.EFFICIENT_ATTENTION
        every = case.b * case.bank_bytes
        beside |= {
            "A gather + SDPA": System(partial(others.gather_sdpa, inputs, flash), error),
            "B gather + SDPA, cuDNN": System(partial(others.gather_sdpa, inputs, cudnn), error),
            "B gather + SDPA, efficient": System(
                partial(others.gather_sdpa, inputs, efficient), error
            ),
            "C FlexAttention": System(partial(others.flex, inputs, False), error),
            "C FlexAttention, one selection": System(partial(others.flex, inputs, True), shared),
            "D varlen_attn, paged": System(partial(others.varlen, inputs), error),
            "E gather + plain torch": System(partial(others.gather_plain, inputs), error),
            "E compiled": System(partial(others.gather_plain, inputs, True), error),
            "F SDPA over everything": System(partial(others.dense_sdpa, inputs), moved=every),
            "F the same, enable_gqa": System(partial(others.dense_sdpa, inputs, True), moved=every),
            "F plain torch over everything": System(
                partial(others.dense_plain, inputs), moved=every
            ),
        }
    limit = LIMITS[q[0].dtype]
    return Experiment(
        "decode",
        case.label,
        case.columns(),
        case.read_bytes,
        limit,
        {"ours": System(ours, error)},
        beside,
    )


def score(inputs: Inputs) -> Experiment:
    """Which blocks: ours in one pass, the baseline in two."""
    case, q, summaries = inputs.case, inputs.queries, inputs.summaries

    def ours() -> Calls:
        return [
            partial(ops.score_blocks, each, summaries[at % len(summaries)], case.selected)
            for at, each in enumerate(q)
        ]

    def error(result: Any) -> float:
        ids = result.ids if isinstance(result, Selected) else result.indices
        return _score_error(q[0], summaries[0], ids)

    return Experiment(
        "score",
        case.label,
        case.columns(),
        case.summary_bytes,
        LIMITS[case.dtype],
        {"ours": System(ours, error)},
        {
            "matmul + torch.topk": System(partial(others.matmul_topk, inputs), error),
            "of which matmul": System(partial(others.matmul_topk, inputs, "matmul")),
            "of which torch.topk": System(partial(others.matmul_topk, inputs, "topk")),
        },
    )


def _score_error(q: Tensor, summaries: Summaries, ids: Tensor) -> float:
    """How much worse the blocks chosen are than the best, as a share of the best score: 0, unless
    blocks whose scores are closer than rounding were swapped."""
    some = Summaries(summaries.data[:CHECKED], summaries.kind)
    scores = score_reference.block_scores(q[:CHECKED], some, "kv_head", "max", torch.float64)
    best = scores.topk(ids.shape[-1]).values
    chosen = scores.gather(2, ids[:CHECKED].long().clamp(min=0)).sort(descending=True).values
    return float((best - chosen).abs().max() / best.abs().max())


def step(inputs: Inputs) -> Experiment:
    """Score, select, gather and attend: what one layer adds to a token."""
    case, q, memories = inputs.case, inputs.queries, inputs.memories
    k = case.selected - SINKS - WINDOW

    def ours() -> Calls:
        return [
            partial(
                retrieval_attention,
                each,
                memories[at % len(memories)],
                k,
                sinks=SINKS,
                window=WINDOW,
            )
            for at, each in enumerate(q)
        ]

    def error(result: Step) -> float:
        table_ = memories[0].table
        assert table_ is not None
        chosen = result.blocks[..., SINKS : SINKS + k]
        data = memories[0].summaries.data[:, SINKS : case.blocks - WINDOW].contiguous()
        selection = _score_error(q[0], Summaries(data), chosen - SINKS)
        ids = table_[:, :1, None] + result.blocks
        return max(selection, off(result.out[:CHECKED], true_attention(q[0], inputs.bank, ids).out))

    return Experiment(
        "step",
        case.label,
        case.columns(),
        case.summary_bytes + case.read_bytes,
        LIMITS[case.dtype],
        {"ours": System(ours, error)},
        {"A matmul, topk, gather, SDPA": System(partial(others.composed_step, inputs))},
    )
