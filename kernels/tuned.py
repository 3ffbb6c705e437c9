"""What is tuned on: kinds of shape, each with calls of the ops and the torch path's answer to one.

A kind of shape is a row's `where`. Everything is random, and what is read in turn is larger than
the cache of any GPU that we know of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from . import ops
from .base import Bank, Format, Summaries
from .decode.formats import quantize
from .timing import Call

CACHE = 256 << 20
"""Bytes that calls in turn must read together."""

OFF = 1e-2
"""Largest relative L2 error beside the torch path: no judge of rounding, which the tests are, but
of a configuration that computes something else."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Calls with inputs of their own, and whether the first one's result is right."""

    calls: Sequence[Call]
    right: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Bucket:
    """A kind of shape.

    Args:
        where: ranges of the shape's letters, as `configs` reads them.
        largest: tile that it can have.
        make: its workloads on a device.
    """

    op: str
    where: Mapping[str, list[int]]
    largest: int
    make: Callable[[torch.device], list[Workload]]


def buckets() -> Iterator[Bucket]:
    """Of all ops: small heads and large; one sequence, some, many; stored in 16 bits or less."""
    dims = {64: [16, 64], 128: [65, 128], 256: [129, 256]}
    batches = {1: [1, 2], 8: [3, 24], 64: [25, 1 << 20]}
    stored: dict[int, tuple[Format, ...]] = {2: ("plain",), 1: ("int8", "fp8", "int4")}
    for (d, dim), (b, batch), (size, forms) in product(
        dims.items(), batches.items(), stored.items()
    ):
        where = {"D": dim, "B": batch, "bytes": [size, size], "dot": [2, 2], "rotated": [0, 0]}
        yield Bucket("decode", where, 64, partial(_decodes, b, d, forms))
    for (d, dim), (n, blocks) in product(
        dims.items(), {2048: [1, 8191], 16_384: [8192, 1 << 30]}.items()
    ):
        where = {"D": dim, "N": blocks, "bytes": [2, 2], "R": [1, 1]}
        yield Bucket("score", where, 256, partial(_scores, n, d))
    for kind, size in ((torch.float16, 2), (torch.int8, 1)):
        yield Bucket("cosine", {"bytes": [size, size]}, 256, partial(_nearest, kind))
    for d, dim in dims.items():
        yield Bucket("compact", {"D": dim, "bytes": [2, 2]}, 128, partial(_compactions, d))
    yield Bucket("merge", {}, 64, _merges)


def close(truth: Tensor, pick: Callable[[Any], Tensor]) -> Callable[[Any], bool]:
    """Whether what is picked from a result is near what it should be."""

    def judged(result: Any) -> bool:
        found = pick(result).double()
        return bool((found - truth.double()).norm() <= OFF * truth.double().norm())

    return judged


def times(read: int) -> int:
    """Inputs of so many bytes that are more than the cache holds."""
    return max(2, min(64, 1 + CACHE // max(1, read)))


def _decodes(
    b: int, d: int, forms: Sequence[Format], device: torch.device, n: int = 4096, s: int = 32
) -> list[Workload]:
    h, g, p = 8, 4, 64
    made = []
    for form in forms:
        shape = (n, h, p, d)
        keys, values = (torch.randn(shape, device=device).bfloat16() for _ in range(2))
        plain = Bank(keys, values)
        bank = plain if form == "plain" else quantize(plain, form)
        dtype = torch.float16 if form == "fp8" else torch.bfloat16
        given = [
            (
                torch.randn(b, h * g, d, device=device).to(dtype),
                torch.rand(b, h, n, device=device).topk(min(s, n)).indices.int(),
            )
            for _ in range(times(2 * b * h * s * p * d * bank.keys.element_size()))
        ]
        q, ids = given[0]
        truth = ops.gather_decode(q, bank, ids, backend="torch").out
        calls = [partial(ops.gather_decode, q, bank, ids) for q, ids in given]
        made.append(Workload(calls, close(truth, lambda result: result.out)))
    return made


def _scores(n: int, d: int, device: torch.device, k: int = 32) -> list[Workload]:
    made = []
    for b in (1, 8):
        given = [
            (
                torch.randn(b, 32, d, device=device).bfloat16(),
                Summaries(torch.randn(b, n, 8, 1, d, device=device).bfloat16()),
            )
            for _ in range(times(b * n * 8 * d * 2))
        ]
        truth = ops.score_blocks(*given[0], k, backend="torch").scores
        calls = [partial(ops.score_blocks, q, summaries, k) for q, summaries in given]
        made.append(Workload(calls, close(truth, lambda result: result.scores)))
    return made


def _nearest(kind: torch.dtype, device: torch.device, n: int = 500_000) -> list[Workload]:
    made = []
    for d, b in ((384, 1), (768, 32)):
        rows = torch.nn.functional.normalize(torch.randn(n, d, device=device), dim=1)
        scales = None
        if kind == torch.int8:
            scales = rows.abs().amax(dim=1) / 127
            rows = rows / scales[:, None]
        stored = rows.round().to(kind) if scales is not None else rows.to(kind)
        given = [
            torch.nn.functional.normalize(torch.randn(b, d, device=device), dim=1).half()
            for _ in range(times(n * d * stored.element_size()))
        ]
        if device.type == "cpu" and kind == torch.int8:
            given = [queries.float() for queries in given]
        truth = ops.cosine_topk(given[0], stored, 10, scales=scales, backend="torch").scores
        calls = [partial(ops.cosine_topk, q, stored, 10, scales=scales) for q in given]
        made.append(Workload(calls, close(truth, lambda result: result.scores)))
    return made


def _compactions(d: int, device: torch.device, n: int = 16_384) -> list[Workload]:
    keys, values = (torch.randn(8, n, d, device=device).bfloat16() for _ in range(2))
    m = n // 2
    angles = torch.rand(m, d // 2, device=device) * 6
    cos, sin = angles.cos(), angles.sin()
    kept = [
        torch.randperm(n, device=device)[:m].sort().values.int()[None]
        for _ in range(times(8 * 8 * m * d))
    ]
    truth = ops.compact(keys, values, kept[0], cos=cos, sin=sin, backend="torch").keys
    calls = [partial(ops.compact, keys, values, keep, cos=cos, sin=sin) for keep in kept]
    return [Workload(calls, close(truth, lambda result: result.keys))]


def _merges(device: torch.device) -> list[Workload]:
    made = []
    for parts, rows in ((32, 32), (4, 2048)):
        given = [
            (
                torch.randn(parts, rows, 128, device=device),
                torch.randn(parts, rows, device=device),
            )
            for _ in range(times(parts * rows * 516))
        ]
        truth = ops.merge_partials(*given[0], backend="torch")[0]
        calls = [partial(ops.merge_partials, o, lse) for o, lse in given]
        made.append(Workload(calls, close(truth, lambda result: result[0])))
    return made
