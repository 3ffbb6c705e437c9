"""`merge_partials` in Triton: one program for each row, which reads every partition of it once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..configs import choose, device_of

MOST_AT_ONCE = 4096
"""Elements of o that a program holds: 32 for each thread of 4 warps."""


def run(o: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Arguments as `ops.merge_partials`, which has checked them."""
    parts, d = o.shape[0], o.shape[-1]
    out, joined = torch.empty_like(o[0]), torch.empty_like(lse[0])
    rows = joined.numel()
    if rows == 0:
        return out, joined
    config = choose("merge", device_of(o)[0], {"R": parts, "D": d})
    width = triton.next_power_of_2(d)
    together = min(triton.next_power_of_2(parts), max(1, MOST_AT_ONCE // width))
    _merge[(rows,)](
        o,
        lse,
        out,
        joined,
        rows,
        PARTS=parts,
        ALL=triton.next_power_of_2(parts),
        TOGETHER=together,
        D=d,
        WIDTH=width,
        **config.options,
    )
    return out, joined


@triton.jit
def _merge(
    o,  # [PARTS, rows, D]
    lse,  # [PARTS, rows]
    out,  # [rows, D]
    joined,  # [rows]
    rows,
    PARTS: tl.constexpr,
    ALL: tl.constexpr,
    TOGETHER: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, ALL)
    sums = tl.load(lse + part.to(tl.int64) * rows + row, part < PARTS, other=float("-inf"))
    top = tl.max(sums, axis=0)
    # if no partition saw anything, -inf minus -inf would be NaN
    shift = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp2(sums - shift), axis=0)

    channel = tl.arange(0, WIDTH)
    acc = tl.zeros([WIDTH], tl.float32)
    for start in range(0, PARTS, TOGETHER):
        some = start + tl.arange(0, TOGETHER)
        at = some.to(tl.int64) * rows + row
        weight = tl.exp2(tl.load(lse + at, some < PARTS, other=float("-inf")) - shift)
        # 0 * NaN is NaN: what stands in the o of a partition that saw nothing is not even read
        here = (weight > 0)[:, None] & (channel < D)[None, :]
        read = tl.load(o + at[:, None] * D + channel[None, :], here, other=0.0)
        acc += tl.sum(read * weight[:, None], axis=0)
    seen = total > 0
    total = tl.where(seen, total, 1.0)
    tl.store(out + row * D + channel, acc / total, channel < D)
    tl.store(joined + row, tl.where(seen, shift + tl.log2(total), float("-inf")))
