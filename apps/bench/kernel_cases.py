"""What attention over memory is measured on: the sizes, and random inputs of each.

No two calls in a row read the same blocks, and whatever is read in turn is larger than the caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ...kernels.base import Bank, Format, Summaries
from ...kernels.decode.formats import quantize
from ...kernels.step import Memory
from .kernel_timing import Clock

SINKS, WINDOW = 1, 4
"""Blocks that a step always reads."""

BITS = {"fp8": 8, "int8": 8, "int4": 4}
"""Of a stored element; scales come on top."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One size. Letters as in `kernels.base`, but N counts tokens.

    Args:
        tokens: read of each sequence, by each KV head.
        compiled: whether baselines that take half a minute to compile are measured, too.
    """

    b: int = 1
    n: int = 1 << 20
    hq: int = 32
    h: int = 8
    d: int = 128
    p: int = 64
    tokens: int = 2048
    format: Format = "plain"
    dtype: torch.dtype = torch.bfloat16
    compiled: bool = False

    @property
    def blocks(self) -> int:
        """Of one sequence."""
        return self.n // self.p

    @property
    def selected(self) -> int:
        """Blocks that are read: S."""
        return self.tokens // self.p

    @property
    def token_bytes(self) -> int:
        """Of one token's key and value of one head, with scales."""
        if self.format == "plain":
            return 2 * self.d * self.dtype.itemsize
        if self.format == "int4":
            key_scales = 4 * self.d / self.p
            return round(self.d + key_scales + 4 * self.d / 64)
        return 2 * self.d + 4

    @property
    def read_bytes(self) -> int:
        """That the selected tokens of all sequences have."""
        return self.b * self.h * self.tokens * self.token_bytes

    @property
    def summary_bytes(self) -> int:
        """Of one mean key for each block of all sequences."""
        return self.b * self.blocks * self.h * self.d * self.dtype.itemsize

    @property
    def bank_bytes(self) -> int:
        """Of one sequence's keys and values."""
        return self.n * self.h * self.token_bytes

    @property
    def label(self) -> str:
        """In a table's cell: what differs from one case to another."""
        form = str(self.dtype).removeprefix("torch.") if self.format == "plain" else self.format
        size = f"{self.n >> 20}M" if self.n >= 1 << 20 else f"{self.n >> 10}k"
        return f"B={self.b} N={size} {self.hq}/{self.h}x{self.d} P={self.p} T={self.tokens} {form}"

    def columns(self) -> dict[str, Any]:
        """For the points' file."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        return named | {"dtype": str(self.dtype).removeprefix("torch.")}


def cases(device: str, full: bool) -> Iterator[Case]:
    """The sizes of a run: without `full`, one thing at a time differs from the reference."""
    yield from _on_gpu(full) if device == "cuda" else _on_cpu(full)


def _on_cpu(full: bool) -> Iterator[Case]:
    base = Case(n=131_072, hq=8, h=2, d=64, dtype=torch.float32)
    yield base
    yield replace(base, n=1 << 20)
    yield from (replace(base, format=form) for form in ("int8", "fp8", "int4"))
    yield from _losses(base)
    if full:
        yield from (replace(base, b=8), replace(base, dtype=torch.bfloat16))
        yield from (replace(base, p=p) for p in (32, 128, 256))


def _on_gpu(full: bool) -> Iterator[Case]:
    base = Case()
    batches, sizes = (1, 8, 64), (131_072, 1 << 20, 1 << 22)
    shapes, blocks = ((32, 8, 128), (64, 8, 128), (28, 4, 128), (16, 16, 64)), (64, 32, 128, 256)
    forms: tuple[Format, ...] = ("plain", "int8", "fp8", "int4")
    if full:
        for b, n, (hq, h, d), p, form in product(batches, sizes, shapes, blocks, forms):
            usual = (hq, h, d, p) == (base.hq, base.h, base.d, base.p)
            yield replace(base, b=b, n=n, hq=hq, h=h, d=d, p=p, format=form, compiled=usual)
    else:
        for b, n in ((1, 131_072), (1, 1 << 20), (1, 1 << 22), (8, 1 << 20)):
            yield replace(base, b=b, n=n, compiled=n == 1 << 20)
        for b in (8, 64):
            small = replace(base, b=b, n=131_072)
            yield replace(small, compiled=True)
            yield from (replace(small, format=form) for form in forms[1:])
        small = replace(base, b=8, n=131_072)
        yield from (replace(small, hq=hq, h=h, d=d) for hq, h, d in shapes[1:])
        yield from (replace(small, p=p) for p in blocks[1:])
    yield from _losses(replace(base, n=131_072))


def _losses(base: Case) -> Iterator[Case]:
    """Where retrieval should do worst: a tiny bank, no shared heads, many blocks, small blocks."""
    yield replace(base, n=4096)
    yield replace(base, n=8192)
    yield replace(base, hq=base.h)
    yield replace(base, tokens=16_384)
    yield replace(base, p=16)


class Inputs:
    """Random tensors of a case, made when first asked for.

    Args:
        room: bytes that one copy of the bank may take. Sequences share what has no room: then
            `owned` is smaller than B, and nothing dense over B sequences can be measured.
    """

    def __init__(self, case: Case, clock: Clock, *, room: int, seed: int = 0) -> None:
        self.case, self.clock = case, clock
        self.rng = torch.Generator(clock.device).manual_seed(seed)
        self.owned = min(case.b, room // case.bank_bytes)
        self.count = clock.rotations(case.read_bytes)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Of mean 0 and deviation 1, in the case's dtype."""
        made = torch.empty(shape, dtype=dtype or self.case.dtype, device=self.clock.device)
        return made.normal_(generator=self.rng)

    @cached_property
    def bank(self) -> Bank:
        """Of all sequences, in the case's format."""
        c = self.case
        shape = (self.owned * c.blocks, c.h, c.p, c.d)
        if c.format == "plain":
            return Bank(self.normal(*shape), self.normal(*shape))
        step = max(1, (1 << 26) // (c.h * c.p * c.d))  # what is not stored yet takes 32 bits
        parts = []
        for start in range(0, shape[0], step):
            some = (min(step, shape[0] - start), *shape[1:])
            parts.append(quantize(Bank(self.normal(*some), self.normal(*some)), c.format))
        tensors = ("keys", "values", "key_scale", "value_scale", "key_zero", "value_zero")
        given = {name: [getattr(part, name) for part in parts] for name in tensors}
        joined = {name: torch.cat(x) for name, x in given.items() if x[0] is not None}
        return Bank(**joined, format=c.format)

    @cached_property
    def dense(self) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, N, D] of the plain bank: what dense attention reads best."""
        c = self.case
        shape = (c.b, c.blocks, c.h, c.p, c.d)
        each = [
            x.view(shape).transpose(1, 2).flatten(2, 3) for x in (self.bank.keys, self.bank.values)
        ]
        return each[0].contiguous(), each[1].contiguous()

    @cached_property
    def queries(self) -> list[Tensor]:
        """[B, Hq, D], one for each call."""
        dtype = torch.float16 if self.case.format == "fp8" else self.case.dtype
        dtype = torch.float32 if self.case.dtype == torch.float32 else dtype
        shape = (self.case.b, self.case.hq, self.case.d)
        return [self.normal(*shape, dtype=dtype) for _ in range(self.count)]

    @cached_property
    def ids(self) -> list[Tensor]:
        """int32 [B, H, S], one for each call: of each sequence's own blocks, none twice."""
        c, device = self.case, self.clock.device
        first = (torch.arange(c.b, device=device) % self.owned * c.blocks)[:, None, None]
        made = []
        for _ in range(self.count):
            lots = torch.rand(c.b, c.h, c.blocks, generator=self.rng, device=device)
            made.append((lots.topk(c.selected, dim=-1).indices + first).int())
        return made

    @cached_property
    def summaries(self) -> list[Summaries]:
        """Mean keys [B, nb, H, 1, D], one for each call in turn."""
        c = self.case
        copies = self.clock.rotations(c.summary_bytes, self.count)
        return [Summaries(self.normal(c.b, c.blocks, c.h, 1, c.d)) for _ in range(copies)]

    @cached_property
    def memories(self) -> list[Memory]:
        """The bank with each of the summaries."""
        c, device = self.case, self.clock.device
        owner = torch.arange(c.b, device=device) % self.owned
        table = owner[:, None] * c.blocks + torch.arange(c.blocks, device=device)
        count = torch.full((c.b,), c.blocks, dtype=torch.int32, device=device)
        return [Memory(self.bank, each, count, table.int()) for each in self.summaries]
