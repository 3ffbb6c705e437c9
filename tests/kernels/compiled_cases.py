"""Cases of the compile lane: merging and decode, with the configurations they ship.

A row is a name and a call on a CPU's tensors, which are never read: only their shapes and dtypes
say what is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from palimpsest.kernels.base import Pairing, Rotation
from palimpsest.kernels.decode import kernel as decode
from palimpsest.kernels.decode.formats import quantize
from palimpsest.kernels.merge import kernel as merge

from .cases import random_bank, random_ids, random_query

HALF, BRAIN, FLOAT = torch.float16, torch.bfloat16, torch.float32


def merging(r: int, d: int) -> Callable[[], object]:
    return lambda: merge.run(torch.empty(r, 64, 32, d), torch.empty(r, 64, 32))


def decoding(
    dtype: torch.dtype = BRAIN,
    d: int = 128,
    *,
    p: int = 64,
    g: int = 4,
    format: Any = "plain",
    pairing: Pairing | None = None,
    per_block: bool = False,
    everything: bool = False,
) -> Callable[[], object]:
    """One sequence, 8 KV heads, 32 blocks; `everything`: also what blocks and tokens may have."""

    def call() -> object:
        plain = random_bank(33, 8, p, d, dtype if format == "plain" else FLOAT, ragged=everything)
        bank = plain if format == "plain" else quantize(plain, format)
        q = random_query(1, 8 * g, d, dtype, s=32 if per_block else 0)
        table, base = torch.empty(999, d // 2), torch.zeros(1, 8, 32, dtype=torch.int32)
        return decode.run(
            q,
            bank,
            random_ids(1, 8, 32, 33),
            scale=0.1,
            bias=torch.empty(1, 8, 32) if everything else None,
            log_weight=torch.empty(33, 8, p) if everything else None,
            rotation=Rotation(table, table, base, pairing=pairing) if pairing else None,
            mass=everything,
        )

    return call


CASES: dict[str, Callable[[], object]] = {
    "merge": merging(8, 128),
    "merge many": merging(70, 256),
    "decode": decoding(),
    "decode, everything": decoding(everything=True),
    "decode, query per block": decoding(per_block=True),
    "decode, 64 rows": decoding(g=64),
    "decode, P=32": decoding(p=32),
    "decode, D=64": decoding(HALF, 64),
    "decode, D=80": decoding(d=80),
    "decode, D=256": decoding(d=256),
    "decode, float32": decoding(FLOAT, everything=True),
    "decode, raw keys in halves": decoding(pairing="half", everything=True),
    "decode, raw keys interleaved": decoding(pairing="interleaved"),
    "decode, raw keys, D=256": decoding(d=256, pairing="half"),
    "decode, fp8": decoding(format="fp8"),
    "decode, fp8, D=256": decoding(d=256, format="fp8"),
    "decode, int8": decoding(format="int8"),
    "decode, int8, raw keys": decoding(format="int8", pairing="interleaved"),
    "decode, int4": decoding(format="int4"),
    "decode, int4, raw keys": decoding(format="int4", pairing="half"),
}
