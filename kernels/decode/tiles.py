"""What one program of a decode kernel does with one tile of a block: its logits, its values.

A tile is TILE neighbouring tokens of one head of one block, rows are query heads, padded so that a
tensor core takes them. `start` points at the tensor, `at` is a row's offset from there in elements,
`there` which rows there are: 0 stands for all others, and they are not read.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def channels(start, at, there, FIRST: tl.constexpr, TAKE: tl.constexpr, WIDTH: tl.constexpr):
    """Channels FIRST to FIRST + TAKE of each row, [rows, WIDTH], 0 beyond."""
    channel = tl.arange(0, WIDTH)
    mask = there[:, None]
    if TAKE < WIDTH:
        mask = mask & (channel < TAKE)[None, :]
    return tl.load(start + (at[:, None] + (FIRST + channel)[None, :]), mask, other=0.0)


@triton.jit
def queries(q, at, there, D: tl.constexpr, HALVES: tl.constexpr, DOT: tl.constexpr):
    """Query rows as the keys come: whole, or their first and their second half."""
    if HALVES:
        WIDTH: tl.constexpr = halves(D)
        first = channels(q, at, there, 0, D // 2, WIDTH)
        second = channels(q, at, there, D // 2, D // 2, WIDTH)
        return first.to(DOT), second.to(DOT)
    else:
        whole = channels(q, at, there, 0, D, triton.next_power_of_2(D)).to(DOT)
        return whole, whole


@triton.jit
def logits(
    q,  # [rows, WIDTH], whole or the first half
    q_second,
    tile,  # int64: the block and the head
    first,  # the tile's first token in its block
    there,
    base,  # the block's position
    keys,
    key_scale,
    key_zero,
    log_weight,
    cos,
    sin,
    positions,
    factor,  # scale * log2(e)
    bias,
    FORMAT: tl.constexpr,
    PAIRING: tl.constexpr,
    STEP: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
    HALVES: tl.constexpr,
    DOT: tl.constexpr,
):
    """Base 2, [rows, TILE] float32; -inf where there is no token."""
    token = first + tl.arange(0, TILE)
    turn = (tl.minimum(tl.maximum(base + STEP * token, 0), positions - 1)).to(tl.int64) * (D // 2)
    if HALVES:
        WIDTH: tl.constexpr = halves(D)
        if FORMAT == "int4":
            packed = channels(
                keys + tile * (P * (D // 2)), token * (D // 2), there, 0, D // 2, WIDTH
            )
            k, k_second = nibbles(packed, DOT)
            k = scaled(k, key_scale, key_zero, tile * D, D // 2)
            k_second = scaled(k_second, key_scale, key_zero, tile * D + D // 2, D // 2)
        else:
            k = channels(keys + tile * (P * D), token * D, there, 0, D // 2, WIDTH)
            k_second = channels(keys + tile * (P * D), token * D, there, D // 2, D // 2, WIDTH)
        if PAIRING == "half":
            c = channels(cos, turn, there, 0, D // 2, WIDTH).to(tl.float32)
            s = channels(sin, turn, there, 0, D // 2, WIDTH).to(tl.float32)
            k, k_second = turned(k.to(tl.float32), k_second.to(tl.float32), c, s)
        elif PAIRING == "interleaved":
            k = turned_neighbours(k, cos, sin, turn, there, 0, D // 2)
            k_second = turned_neighbours(k_second, cos, sin, turn, there, D // 4, D // 2)
        dots = tl.dot(q, tl.trans(k.to(DOT)), input_precision="ieee")
        dots = tl.dot(q_second, tl.trans(k_second.to(DOT)), dots, input_precision="ieee")
    else:
        k = channels(keys + tile * (P * D), token * D, there, 0, D, triton.next_power_of_2(D))
        if PAIRING == "interleaved":
            k = turned_neighbours(k, cos, sin, turn, there, 0, D)
        dots = tl.dot(q, tl.trans(k.to(DOT)), input_precision="ieee")
    out = dots * factor
    if FORMAT == "fp8" or FORMAT == "int8":
        out *= tl.load(key_scale + tile * P + token, there, other=0.0).to(tl.float32)[None, :]
    if log_weight is not None:
        out += tl.load(log_weight + tile * P + token, there, other=0.0)[None, :] * LOG2E
    return tl.where(there[None, :], out + bias, float("-inf"))


@triton.jit
def turned(first, second, cos, sin):
    """Pairs of channels, rotated."""
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def turned_neighbours(k, cos, sin, turn, there, FIRST: tl.constexpr, TAKE: tl.constexpr):
    """TAKE channels whose neighbours are pairs, the first of them pair FIRST of the table. Loaded
    together and parted in registers: every other channel cannot be loaded 16 bytes at a time."""
    WIDTH: tl.constexpr = k.shape[1] // 2
    c = channels(cos, turn, there, FIRST, TAKE // 2, WIDTH).to(tl.float32)
    s = channels(sin, turn, there, FIRST, TAKE // 2, WIDTH).to(tl.float32)
    even, odd = tl.split(tl.reshape(k.to(tl.float32), [k.shape[0], WIDTH, 2]))
    even, odd = turned(even, odd, c, s)
    return tl.reshape(tl.join(even, odd), [k.shape[0], WIDTH * 2])


@triton.jit
def nibbles(packed, DOT: tl.constexpr):
    """Low and high halves of bytes as numbers, without converting one: or-ed into the last bits of
    float16's 1024, whose neighbours are 1 apart."""
    wide = packed.to(tl.uint16)
    low = ((wide & 15) | 0x6400).to(tl.float16, bitcast=True) - 1024.0
    high = ((wide >> 4) | 0x6400).to(tl.float16, bitcast=True) - 1024.0
    return low.to(DOT), high.to(DOT)


@triton.jit
def scaled(k, scale, zero, start, TAKE: tl.constexpr):
    """Nibbles of keys as what they stand for: a scale and a zero for each channel."""
    channel = tl.arange(0, k.shape[1])
    by = tl.load(scale + start + channel, channel < TAKE, other=0.0).to(k.dtype)
    zeros = tl.load(zero + start + channel, channel < TAKE, other=0.0).to(k.dtype)
    return k * by[None, :] + zeros[None, :]


@triton.jit
def scaled_in_groups(
    v, scale, zero, at, there, FIRST: tl.constexpr, TAKE: tl.constexpr, GROUP: tl.constexpr
):
    """Nibbles of values as what they stand for: each token has a scale and a zero for GROUP
    channels."""
    if FIRST // GROUP == (FIRST + TAKE - 1) // GROUP:
        by = tl.load(scale + at + FIRST // GROUP, there, other=0.0)[:, None]
        zeros = tl.load(zero + at + FIRST // GROUP, there, other=0.0)[:, None]
    else:
        channel = tl.arange(0, v.shape[1])
        group = at[:, None] + ((FIRST + channel) // GROUP)[None, :]
        mask = there[:, None] & (channel < TAKE)[None, :]
        by = tl.load(scale + group, mask, other=0.0)
        zeros = tl.load(zero + group, mask, other=0.0)
    return v * by.to(v.dtype) + zeros.to(v.dtype)


@triton.jit
def values_in_halves(
    values,
    value_scale,
    value_zero,
    tile,
    token,
    there,
    P: tl.constexpr,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    DOT: tl.constexpr,
):
    """4-bit values [TILE, D / 2] of the first half of the channels, and of the second."""
    HALF: tl.constexpr = D // 2
    packed = channels(values + tile * (P * HALF), token * HALF, there, 0, HALF, halves(D))
    low, high = nibbles(packed, DOT)
    at = (tile * P + token) * (D // GROUP)
    low = scaled_in_groups(low, value_scale, value_zero, at, there, 0, HALF, GROUP)
    high = scaled_in_groups(high, value_scale, value_zero, at, there, HALF, HALF, GROUP)
    return low, high


@triton.constexpr_function
def halves(d: int) -> int:
    """Columns that half of the channels are padded to: what a dot takes."""
    return int(max(16, triton.next_power_of_2(d // 2)))
