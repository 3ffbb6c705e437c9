"""`compact` in Triton: what is kept is read once and written once, keys turned on the way."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..base import Compacted, Pairing
from ..configs import choose, device_of


@triton.jit
def _compact(
    keys,  # [H, N, D]
    values,  # [H, N, D]
    keep,  # [H, M], or [M] if all heads keep the same
    cos,  # [H, M, D / 2], or [M, D / 2]
    sin,
    new_keys,  # [H, M, D]
    new_values,  # [H, M, D]
    moved,  # [H, N], or [N]
    n,
    m,
    D: tl.constexpr,
    HALF: tl.constexpr,
    BM: tl.constexpr,
    OWN: tl.constexpr,
    OWN_ANGLE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Grid [M / BM, H]. HALF is D / 2, padded to a power of two."""
    head = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = place < m
    own = head if OWN else 0
    entry = tl.load(keep + own * m + place, mask=inside, other=0)
    source = (head * n + entry)[:, None] * D
    target = (head * m + place)[:, None] * D
    if OWN or head == 0:
        tl.store(moved + own * n + entry, place, mask=inside)

    pair = tl.arange(0, HALF)
    here = inside[:, None] & (pair < D // 2)[None, :]
    if INTERLEAVED:
        # neighbours are one load of the whole row, taken apart in registers
        channel = tl.arange(0, 2 * HALF)[None, :]
        whole = inside[:, None] & (channel < D)
        tl.store(
            new_values + target + channel,
            tl.load(values + source + channel, mask=whole),
            mask=whole,
        )
        row = tl.load(keys + source + channel, mask=whole)
        first, second = tl.split(tl.reshape(row, [BM, HALF, 2]))
    else:
        near, far = pair[None, :], pair[None, :] + D // 2
        tl.store(new_values + target + near, tl.load(values + source + near, mask=here), mask=here)
        tl.store(new_values + target + far, tl.load(values + source + far, mask=here), mask=here)
        first = tl.load(keys + source + near, mask=here)
        second = tl.load(keys + source + far, mask=here)
    if cos is not None:
        angle = head * m + place if OWN_ANGLE else place.to(tl.int64)
        at = angle[:, None] * (D // 2) + pair[None, :]
        c, s = tl.load(cos + at, mask=here), tl.load(sin + at, mask=here)
        x, y = first.to(tl.float32), second.to(tl.float32)
        first = (x * c - y * s).to(first.dtype)
        second = (y * c + x * s).to(second.dtype)
    if INTERLEAVED:
        row = tl.reshape(tl.join(first, second), [BM, 2 * HALF])
        tl.store(new_keys + target + channel, row, mask=whole)
    else:
        tl.store(new_keys + target + near, first, mask=here)
        tl.store(new_keys + target + far, second, mask=here)


def run(
    keys: Tensor,
    values: Tensor,
    keep: Tensor,
    *,
    cos: Tensor | None,
    sin: Tensor | None,
    pairing: Pairing,
) -> Compacted:
    """Arguments as `ops.compact`."""
    (h, n, d), (shared, m) = keys.shape, keep.shape
    shape = {"H": h, "D": d, "bytes": keys.element_size()}
    config = choose("compact", device_of(keys)[0], shape)
    new_keys = torch.empty(h, m, d, dtype=keys.dtype, device=keys.device)
    new_values = torch.empty(h, m, d, dtype=keys.dtype, device=keys.device)
    moved = torch.full((shared, n), -1, dtype=torch.int32, device=keys.device)
    _compact[(triton.cdiv(m, config.tile), h)](
        keys,
        values,
        keep,
        cos,
        sin,
        new_keys,
        new_values,
        moved,
        n,
        m,
        D=d,
        HALF=triton.next_power_of_2(d // 2),
        BM=config.tile,
        OWN=shared > 1,
        OWN_ANGLE=cos is not None and cos.dim() == 3,
        INTERLEAVED=pairing == "interleaved",
        **config.options,
    )
    return Compacted(new_keys, new_values, moved)
