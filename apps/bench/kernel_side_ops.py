"""Experiments of the ops beside the attention itself: merging, the nearest rows, compaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...kernels import ops
from ...kernels.base import Nearest
from ...kernels.compact import reference as compact_reference
from ...kernels.cosine import reference as cosine_reference
from ...kernels.merge import reference as merge_reference
from ...kernels.rotary import rotate, table
from .kernel_baselines import Calls
from .kernel_experiments import CHECKED, LIMITS, Experiment, System, off
from .kernel_timing import Clock


def side_ops(clock: Clock, seed: int, *, small: bool, full: bool) -> Iterator[Experiment]:
    """Of all three ops, at sizes for a GPU, for a CPU, or small for a check."""
    rng = torch.Generator(clock.device).manual_seed(seed)
    half = torch.float16 if clock.cuda else torch.float32
    if small:
        yield merge(clock, rng, 5, 24, 64)
        yield from (cosine(clock, rng, 3000, 96, 3, kind) for kind in (half, torch.int8))
        yield compaction(clock, rng, 2, 500, 200, 64, half)
    elif clock.cuda:
        yield from (merge(clock, rng, parts, 64 * 32, 128) for parts in (2, 8, 32))
        batches = (1, 32, 256) if full else (1, 32)
        for d in (384, 768, 1024) if full else (768,):
            for b in batches:
                yield from (
                    cosine(clock, rng, 1_000_000, d, b, kind) for kind in (half, torch.int8)
                )
        for m in (4096, 65_536):
            yield compaction(clock, rng, 8, 2 * m, m, 128, torch.bfloat16)
    else:
        yield merge(clock, rng, 8, 256, 64)
        for b in (1, 32):
            yield from (cosine(clock, rng, 100_000, 384, b, kind) for kind in (half, torch.int8))
        yield compaction(clock, rng, 2, 8192, 4096, 64, torch.float32)


def merge(clock: Clock, rng: torch.Generator, parts: int, rows: int, d: int) -> Experiment:
    """Partial results of many partitions."""
    moved = 4 * (parts + 1) * rows * (d + 1)
    given = [
        tuple(
            torch.randn(shape, generator=rng, device=clock.device)
            for shape in ((parts, rows, d), (parts, rows))
        )
        for _ in range(clock.rotations(moved))
    ]
    o, lse = given[0]

    def error(result: tuple[Tensor, Tensor]) -> float:
        return off(result[0], merge_reference.merge_partials(o.double(), lse.double())[0])

    def calls(act: Callable[..., object]) -> Calls:
        return [partial(act, *each) for each in given]

    return Experiment(
        "merge",
        f"R={parts} rows={rows} D={d}",
        {"R": parts, "rows": rows, "d": d},
        moved,
        LIMITS[torch.float32],
        {"ours": System(partial(calls, ops.merge_partials), error)},
        {"plain torch": System(partial(calls, merge_reference.merge_partials), error)},
    )


def cosine(
    clock: Clock, rng: torch.Generator, n: int, d: int, b: int, dtype: torch.dtype, k: int = 10
) -> Experiment:
    """The nearest of n rows; int8 rows are asked by float queries."""
    made = torch.randn(n, d, generator=rng, device=clock.device)
    made = torch.nn.functional.normalize(made, dim=1)
    query_dtype = torch.float16 if clock.cuda else torch.float32
    scales = None
    if dtype == torch.int8:
        scales = made.abs().amax(dim=1) / 127
        made = (made / scales[:, None]).round().to(torch.int8)
    else:
        made = made.to(dtype)
    queries = [
        torch.nn.functional.normalize(
            torch.randn(b, d, generator=rng, device=clock.device), dim=1
        ).to(query_dtype)
        for _ in range(4)
    ]
    truth = cosine_reference.cosine_topk(queries[0][:CHECKED], made, k, scales=scales)

    def error(result: Any) -> float:
        scores = result.scores if isinstance(result, Nearest) else result.values
        return off(scores[:CHECKED], truth.scores)

    def whole(q: Tensor) -> object:
        scores = q @ made.T if scales is None else (q @ made.to(q.dtype).T) * scales
        return torch.topk(scores, k)

    moved = n * d * made.element_size()
    name = str(dtype).removeprefix("torch.")
    return Experiment(
        "cosine",
        f"B={b} N={n:,} d={d} {name}",
        {"b": b, "n": n, "d": d, "dtype": name},
        moved,
        LIMITS[query_dtype],
        {
            "ours": System(
                lambda: [partial(ops.cosine_topk, q, made, k, scales=scales) for q in queries],
                error,
            )
        },
        {"matmul + torch.topk": System(lambda: [partial(whole, q) for q in queries], error)},
    )


def compaction(
    clock: Clock, rng: torch.Generator, h: int, n: int, m: int, d: int, dtype: torch.dtype
) -> Experiment:
    """m of n entries closed up, their keys turned."""
    keys, values = (
        torch.randn(h, n, d, generator=rng, device=clock.device).to(dtype) for _ in range(2)
    )
    frequencies = 10_000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    moved = 4 * h * m * d * dtype.itemsize
    given = []
    for _ in range(clock.rotations(moved, 16)):
        keep = torch.randperm(n, generator=rng, device=clock.device)[:m].sort().values
        angles = torch.arange(m, device=clock.device) - keep
        given.append((keep.int()[None], *table(frequencies, angles)))

    def ours(keep: Tensor, cos: Tensor, sin: Tensor) -> Any:
        return ops.compact(keys, values, keep, cos=cos, sin=sin)

    def plain(keep: Tensor, cos: Tensor, sin: Tensor) -> Any:
        k, v = (x.index_select(1, keep[0]) for x in (keys, values))
        return rotate(k.float(), cos, sin).to(dtype), v

    def error(result: Any) -> float:
        keep, cos, sin = given[0]
        truth = compact_reference.compact(keys, values, keep, cos=cos, sin=sin)
        return max(off(result[0], truth.keys), off(result[1], truth.values))

    return Experiment(
        "compact",
        f"{m} of {n} H={h} D={d}",
        {"h": h, "n": n, "rows": m, "d": d, "dtype": str(dtype).removeprefix("torch.")},
        moved,
        LIMITS[dtype],
        {"ours": System(lambda: [partial(ours, *each) for each in given], error)},
        {"index_select + rotate": System(lambda: [partial(plain, *each) for each in given], error)},
    )
