"""`gather_decode` in Triton: split over the selection, each split online, partials merged.

A unit is what reads one KV head by one row of the selection: the larger of HS and H for a
sequence. Its query heads are neighbours, and are worked on ROWS at a time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..base import CHANNELS, Attended, Bank, Rotation
from ..configs import Config, choose, device_of, split_count
from ..merge.kernel import run as merge_partials
from .tiles import LOG2E, channels, halves, logits, queries, values_in_halves

MOST_ROWS = {2: 64, 4: 16}
"""Query rows that a program holds, by the bytes of a query's element: more would leave its
accumulators no registers, and no tensor core takes float32 as it is."""

DOTS = {"fp8": tl.float16, "int8": tl.bfloat16, "int4": tl.float16}
"""What products are made of: what a format becomes with the fewest instructions (e4m3 has one for
float16 and not for bfloat16, int8 the other way round), and exactly."""

FLOAT = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


def run(
    q: Tensor,
    bank: Bank,
    ids: Tensor,
    *,
    scale: float,
    bias: Tensor | None = None,
    log_weight: Tensor | None = None,
    rotation: Rotation | None = None,
    splits: int | None = None,
    mass: bool = False,
) -> Attended:
    """Arguments as `ops.gather_decode`, which has checked them. Waits for nothing: a CUDA graph can
    hold it."""
    (b, hq), (_, groups, s) = q.shape[:2], ids.shape
    gpu, processors = device_of(q)
    config = choose("decode", gpu, _shape(q, bank, ids, rotation))
    common = _arguments(q, bank, ids, scale, bias, log_weight, rotation, config)
    programs = max(groups, bank.heads) * triton.cdiv(common["UNIT_ROWS"], common["ROWS"])
    if splits is None:
        splits = config.splits or split_count(b * programs, s, processors)
    splits = min(splits, s)
    out = torch.empty(splits, b, hq, bank.dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(splits, b, hq, dtype=torch.float32, device=q.device)
    _decode[(b, programs, splits)](
        out=out,
        lse=lse,
        values=bank.values,
        value_scale=bank.value_scale,
        value_zero=bank.value_zero,
        each=triton.cdiv(s, splits),
        GROUP=CHANNELS,
        **config.options,
        **common,
    )
    joined, sums = (out[0], lse[0]) if splits == 1 else merge_partials(out, lse)
    if not mass:
        return Attended(joined, sums)
    column = torch.empty(b, groups, s, bank.block, dtype=torch.float32, device=q.device)
    _mass[(s, groups, b)](lse=sums, mass=column, **replace(config, stages=1).options, **common)
    return Attended(joined, sums, column)


def _shape(q: Tensor, bank: Bank, ids: Tensor, rotation: Rotation | None) -> dict[str, int]:
    """What a configuration may depend on."""
    return {
        "B": len(q),
        "G": q.shape[1] // max(ids.shape[1], bank.heads),
        "S": ids.shape[2],
        "P": bank.block,
        "D": bank.dim,
        "bytes": bank.keys.element_size(),
        "dot": q.element_size(),
        "rotated": int(rotation is not None),
    }


def _arguments(
    q: Tensor,
    bank: Bank,
    ids: Tensor,
    scale: float,
    bias: Tensor | None,
    log_weight: Tensor | None,
    rotation: Rotation | None,
    config: Config,
) -> dict[str, Any]:
    """What both kernels take."""
    hq, groups = q.shape[1], ids.shape[1]
    unit_rows = hq // max(groups, bank.heads)
    pairing = rotation.pairing if rotation is not None else ""
    return {
        "q": q,
        "ids": ids,
        "keys": bank.keys,
        "lengths": bank.lengths,
        "key_scale": bank.key_scale,
        "key_zero": bank.key_zero,
        "bias": bias,
        "log_weight": log_weight,
        "cos": rotation.cos if rotation is not None else None,
        "sin": rotation.sin if rotation is not None else None,
        "base": rotation.base if rotation is not None else None,
        "positions": len(rotation.cos) if rotation is not None else 1,
        "factor": scale * LOG2E.value,
        "heads": bank.heads,
        "query_heads": hq,
        "groups": groups,
        "selected": ids.shape[2],
        "FORMAT": bank.format,
        "PAIRING": pairing,
        "STEP": rotation.step if rotation is not None else 0,
        "BASE_GROUPS": rotation.base.shape[1] > 1 if rotation is not None else False,
        "PER_BLOCK": q.dim() == 4,
        "P": bank.block,
        "D": bank.dim,
        "TILE": min(config.tile, bank.block),
        "UNIT_ROWS": unit_rows,
        "ROWS": min(MOST_ROWS[q.element_size()], max(16, triton.next_power_of_2(unit_rows))),
        "HALVES": bank.format == "int4" or pairing == "half",
        "DOT": tl.float32 if q.dtype == torch.float32 else DOTS.get(bank.format, FLOAT[q.dtype]),
    }


@triton.jit
def _decode(
    q,  # [B, Hq, D] or, PER_BLOCK, [B, Hq, S, D]
    ids,  # [B, HS, S]
    keys,  # [N, H, P, D], and so the values
    values,
    lengths,
    key_scale,
    value_scale,
    key_zero,
    value_zero,
    bias,  # [B, HS, S]
    log_weight,  # [N, H, P]
    cos,  # [positions, D / 2]
    sin,
    base,  # [B, HS or 1, S]
    out,  # [splits, B, Hq, D]
    lse,  # [splits, B, Hq]
    positions,
    factor,
    heads,
    query_heads,
    groups,
    selected,
    each,
    FORMAT: tl.constexpr,
    PAIRING: tl.constexpr,
    STEP: tl.constexpr,
    BASE_GROUPS: tl.constexpr,
    PER_BLOCK: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
    UNIT_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    HALVES: tl.constexpr,
    DOT: tl.constexpr,
    GROUP: tl.constexpr,
):
    TILES: tl.constexpr = P // TILE
    WIDTH: tl.constexpr = triton.next_power_of_2(D)
    sequence = tl.program_id(0).to(tl.int64)
    program, split = tl.program_id(1), tl.program_id(2)
    unit = program // tl.cdiv(UNIT_ROWS, ROWS)
    units = tl.num_programs(1) // tl.cdiv(UNIT_ROWS, ROWS)
    head = unit * heads // units
    row = program % tl.cdiv(UNIT_ROWS, ROWS) * ROWS + tl.arange(0, ROWS)
    inside = row < UNIT_ROWS
    query = sequence * query_heads + unit * UNIT_ROWS + row
    chosen = (sequence * groups + unit * groups // units) * selected
    at_base = chosen if BASE_GROUPS else sequence * selected

    if PER_BLOCK:
        query_at = query * selected * D
    else:
        q_first, q_second = queries(q, query * D, inside, D, HALVES, DOT)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if FORMAT == "int4":
        acc = tl.zeros([ROWS, halves(D)], tl.float32)
        acc_second = tl.zeros([ROWS, halves(D)], tl.float32)
    else:
        acc = tl.zeros([ROWS, WIDTH], tl.float32)

    start = split * each
    end = tl.minimum(start + each, selected)
    # Loaded one step ahead, so that keys and values can be fetched several: an address that waits
    # for a load within the step would take up the stages that are meant for the tiles.
    block, count, position = entry(ids + chosen, lengths, base, at_base, start, start < end, P)
    for step in range(start * TILES, end * TILES):
        tile = block.to(tl.int64) * heads + head
        first = step % TILES * TILE
        there = first + tl.arange(0, TILE) < count
        token = first + tl.arange(0, TILE)
        number = step // TILES
        if PER_BLOCK:
            q_first, q_second = queries(q + number * D, query_at, inside, D, HALVES, DOT)
        prior = 0.0
        if bias is not None:
            prior = tl.load(bias + chosen + number) * LOG2E
        score = logits(
            q_first, q_second, tile, first, there, position, keys, key_scale, key_zero,
            log_weight, cos, sin, positions, factor, prior,
            FORMAT, PAIRING, STEP, P, D, TILE, HALVES, DOT,
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(score, axis=1))
        # of nothing but -inf, -inf minus -inf would be NaN
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        before = tl.exp2(top - shift)
        weight = tl.exp2(score - shift[:, None])
        total = total * before + tl.sum(weight, axis=1)
        top = higher
        if FORMAT == "int4":
            v, v_second = values_in_halves(
                values, value_scale, value_zero, tile, token, there, P, D, GROUP, DOT
            )
            weight = weight.to(DOT)
            acc = tl.dot(weight, v, acc * before[:, None], input_precision="ieee")
            acc_second = tl.dot(
                weight, v_second, acc_second * before[:, None], input_precision="ieee"
            )
        elif FORMAT == "fp8" or FORMAT == "int8":
            v = channels(values + tile * (P * D), token * D, there, 0, D, WIDTH).to(DOT)
            by = tl.load(value_scale + tile * P + token, there, other=0.0).to(tl.float32)
            # relative to the tile's largest: a weight times a small scale is no float16
            most = tl.max(by, axis=0)
            by = by / tl.where(most > 0, most, 1.0)
            read = tl.dot((weight * by[None, :]).to(DOT), v, input_precision="ieee")
            acc = acc * before[:, None] + read * most
        else:
            v = channels(values + tile * (P * D), token * D, there, 0, D, WIDTH)
            acc = tl.dot(weight.to(DOT), v, acc * before[:, None], input_precision="ieee")
        following = (step + 1) // TILES
        block, count, position = entry(
            ids + chosen, lengths, base, at_base, following, following < end, P
        )

    seen = total > 0
    total = tl.where(seen, total, 1.0)
    part = split.to(tl.int64) * tl.num_programs(0) * query_heads + query
    tl.store(lse + part, tl.where(seen, top + tl.log2(total), float("-inf")), inside)
    if FORMAT == "int4":
        store(out, part * D, acc / total[:, None], inside, D // 2)
        store(out + D // 2, part * D, acc_second / total[:, None], inside, D // 2)
    else:
        store(out, part * D, acc / total[:, None], inside, D)


@triton.jit
def _mass(
    q,
    ids,
    keys,
    lengths,
    key_scale,
    key_zero,
    bias,
    log_weight,
    cos,
    sin,
    base,
    lse,  # [B, Hq], of the whole selection
    mass,  # [B, HS, S, P]
    positions,
    factor,
    heads,
    query_heads,
    groups,
    selected,
    FORMAT: tl.constexpr,
    PAIRING: tl.constexpr,
    STEP: tl.constexpr,
    BASE_GROUPS: tl.constexpr,
    PER_BLOCK: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
    UNIT_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    HALVES: tl.constexpr,
    DOT: tl.constexpr,
):
    """One program sums up one selected block's probabilities, over all rows that selected it."""
    number, group, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    units = query_heads // UNIT_ROWS
    chosen = (sequence * groups + group) * selected
    at_base = chosen if BASE_GROUPS else sequence * selected
    block, count, position = entry(ids + chosen, lengths, base, at_base, number, True, P)
    prior = 0.0
    if bias is not None:
        prior = tl.load(bias + chosen + number) * LOG2E
    for first in range(0, P, TILE):
        there = first + tl.arange(0, TILE) < count
        column = tl.zeros([TILE], tl.float32)
        for unit in range(group * (units // groups), (group + 1) * (units // groups)):
            tile = block.to(tl.int64) * heads + unit * heads // units
            for some in range(0, UNIT_ROWS, ROWS):
                row = some + tl.arange(0, ROWS)
                query = sequence * query_heads + unit * UNIT_ROWS + row
                at = query * D
                if PER_BLOCK:
                    at = (query * selected + number) * D
                q_first, q_second = queries(q, at, row < UNIT_ROWS, D, HALVES, DOT)
                score = logits(
                    q_first, q_second, tile, first, there, position, keys, key_scale, key_zero,
                    log_weight, cos, sin, positions, factor, prior,
                    FORMAT, PAIRING, STEP, P, D, TILE, HALVES, DOT,
                )  # fmt: skip
                # rows that are not there weigh nothing, nor do those that saw nothing
                sums = tl.load(lse + query, row < UNIT_ROWS, other=float("inf"))
                sums = tl.where(sums == float("-inf"), float("inf"), sums)
                column += tl.sum(tl.exp2(score - sums[:, None]), axis=0)
        at = (chosen + number) * P + first + tl.arange(0, TILE)
        tl.store(mass + at, column)


@triton.jit
def entry(ids, lengths, base, at_base, number, there, P: tl.constexpr):
    """An entry of the selection: a block that there is, its valid tokens (none for -1), where its
    first key stands."""
    id = tl.load(ids + number, there, other=-1)
    block = tl.maximum(id, 0)
    if lengths is not None:
        count = tl.load(lengths + block, id >= 0, other=0)
    else:
        count = tl.where(id >= 0, P, 0)
    position = 0
    if base is not None:
        position = tl.load(base + at_base + number, there, other=0)
    return block, count, position


@triton.jit
def store(out, at, x, inside, TAKE: tl.constexpr):
    """The first TAKE channels of the rows that there are."""
    channel = tl.arange(0, x.shape[1])
    mask = inside[:, None] & (channel < TAKE)[None, :]
    tl.store(out + at[:, None] + channel[None, :], x, mask)
