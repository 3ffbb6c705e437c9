"""Cases of the compile lane: scoring, cosine and compaction, with the configurations they ship."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from palimpsest.kernels.base import Pairing, Summaries, SummaryKind
from palimpsest.kernels.compact import kernel as compact
from palimpsest.kernels.cosine import kernel as cosine
from palimpsest.kernels.score import kernel as score
from palimpsest.kernels.score.summaries import coarser

from .selections import REPRESENT, ranges

Case = Callable[[], object]


def scoring(
    kind: SummaryKind = "mean",
    dtype: torch.dtype = torch.bfloat16,
    d: int = 128,
    k: int = 32,
    *,
    two_levels: bool = False,
    **given: Any,
) -> Case:
    """32 query heads, 8 KV heads, 4096 blocks."""

    def case() -> object:
        summaries = Summaries(torch.zeros(1, 4096, 8, REPRESENT[kind], d, dtype=dtype), kind)
        rest: dict[str, Any] = {"share": "kv_head", "reduce": "max", "expand": 64}
        rest |= {"candidates": ranges((1, 4000))}
        rest |= {"coarse": coarser(summaries, 16) if two_levels else None}
        return score.run(torch.zeros(1, 32, d, dtype=dtype), summaries, k, **(rest | given))

    return case


def nearest(dtype: torch.dtype = torch.float16, k: int = 10) -> Case:
    """32 queries, 65 536 rows of 768."""

    def case() -> object:
        small = dtype == torch.int8
        queries = torch.zeros(32, 768, dtype=torch.float32 if small else dtype)
        rows = torch.zeros(65_536, 768, dtype=dtype)
        return cosine.run(queries, rows, k, scales=torch.ones(65_536) if small else None)

    return case


def compacting(
    dtype: torch.dtype = torch.bfloat16,
    d: int = 128,
    pairing: Pairing = "half",
    *,
    turned: bool = True,
) -> Case:
    """512 of 1024 entries of 8 heads."""

    def case() -> object:
        angles = torch.zeros(512, d // 2) if turned else None
        cache, keep = torch.zeros(8, 1024, d, dtype=dtype), torch.zeros(1, 512, dtype=torch.int32)
        return compact.run(cache, cache, keep, cos=angles, sin=angles, pairing=pairing)

    return case


CASES: dict[str, Case] = {
    "score": scoring(),
    "score k=64": scoring(k=64),
    "score k=200": scoring(k=200),
    "score bounds": scoring("bounds"),
    "score tokens fp16": scoring("tokens", torch.float16),
    "score softmax": scoring(reduce="softmax"),
    "score for a sequence": scoring("bounds", share="sequence", reduce="mean"),
    "score on two levels": scoring(two_levels=True),
    "score d=80": scoring(d=80),
    "score d=256": scoring(d=256),
    "score bounds d=256": scoring("bounds", d=256),
    "score fp32": scoring(dtype=torch.float32),
    "score bounds fp32": scoring("bounds", torch.float32),
    "score bounds fp32 d=256": scoring("bounds", torch.float32, 256, 16),
    "cosine": nearest(),
    "cosine k=32": nearest(k=32),
    "cosine k=100": nearest(k=100),
    "cosine int8": nearest(torch.int8),
    "cosine int8 k=32": nearest(torch.int8, 32),
    "cosine fp32": nearest(torch.float32),
    "compact": compacting(),
    "compact interleaved": compacting(pairing="interleaved"),
    "compact raw": compacting(turned=False),
    "compact fp32 d=256": compacting(torch.float32, 256),
}
