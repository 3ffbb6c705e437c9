"""The operations, as `memory/` calls them: Triton on CUDA, torch in bounded memory on a CPU.

Each checks what it is given, and never syncs with the device to do so: what only the data can tell
(an id out of range) is checked if `check_ids` is set, and otherwise the caller's duty. Nothing is
ever NaN unless an input is. No op needs a gradient, and none gives one.
"""

from __future__ import annotations

import math
import os
from importlib import import_module
from typing import Any, get_args

import torch
from torch import Tensor

from ..errors import ConfigError
from .base import (
    FLOATS,
    WIDEST,
    Attended,
    Backend,
    Bank,
    Compacted,
    Nearest,
    Pairing,
    Reduce,
    Rotation,
    Seen,
    Selected,
    Share,
    Summaries,
    check,
    dims,
    one_of,
    rows_of,
)
from .merge.reference import merge_partials as _merge_torch

MOST_SELECTED = 4096
"""Packed keys that the second stage of a selection holds at once."""


def merge_partials(
    o: Tensor, lse: Tensor, *, backend: Backend | None = None
) -> tuple[Tensor, Tensor]:
    """Join R disjoint partitions of one softmax.

    Args:
        o: [R, ..., D] float32, what each read.
        lse: [R, ...] float32, base 2; -inf for a partition that saw nothing.

    Returns:
        o [..., D] and lse [...]. The order of partitions does not matter; a key in two of them
        counts twice.

    Raises:
        ConfigError: shapes, dtypes or devices do not go together.
    """
    if o.dim() < 2 or len(o) == 0:
        raise ConfigError(f"o={tuple(o.shape)} must be [R, ..., D] with R of at least 1")
    check("o", o, tuple(o.shape), (torch.float32,), o.device)
    check("lse", lse, tuple(o.shape[:-1]), (torch.float32,), o.device)
    run = _kernel("merge", backend, o) or _merge_torch
    merged: tuple[Tensor, Tensor] = run(o, lse)
    return merged


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    seen: Seen | None = None,
    scale: float | None = None,
    mass: bool = False,
) -> Attended:
    """Attention of T tokens to keys that lie next to each other, in torch on every device.

    Args:
        q: [B, Hq, T, D] float16, bfloat16 or float32.
        keys, values: [B, H, S, D], alike; need not be contiguous in B and H.
        seen: which keys each query sees; None: all of them.
        scale: of the logits; by default 1 / sqrt(D).
        mass: also sum up each key's probability over tokens and query heads.

    Raises:
        ConfigError: shapes, dtypes or devices do not go together.
    """
    b, hq, t, d = dims("q", q, "[B, Hq, T, D]")
    _, h, s, _ = dims("keys", keys, "[B, H, S, D]")
    for name, given in (("keys", keys), ("values", values)):
        if tuple(given.shape) != (b, h, s, d):
            raise ConfigError(f"{name}={tuple(given.shape)} must have shape {(b, h, s, d)}")
        if given.dtype != q.dtype or given.device != q.device:
            raise ConfigError(
                f"{name} is {given.dtype} on {given.device}; it must be {q.dtype} on {q.device}"
            )
    rows_of(h, hq, h)
    if seen is not None and (
        seen.added.dim() != 4
        or tuple(seen.added.shape[1:]) != (1, t, s)
        or len(seen.added) not in (1, b)
        or seen.added.dtype != q.dtype
    ):
        raise ConfigError(
            f"seen.added={tuple(seen.added.shape)} of {seen.added.dtype} must be"
            f" {(b, 1, t, s)} or {(1, 1, t, s)} of {q.dtype}"
        )
    scale = 1 / math.sqrt(d) if scale is None else scale
    attended: Attended = _torch("attend")(q, keys, values, seen=seen, scale=scale, mass=mass)
    return attended


def gather_decode(
    q: Tensor,
    bank: Bank,
    ids: Tensor,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    log_weight: Tensor | None = None,
    rotation: Rotation | None = None,
    splits: int | None = None,
    mass: bool = False,
    check_ids: bool = False,
    backend: Backend | None = None,
) -> Attended:
    """Attention of a query to selected blocks, as one softmax over all their tokens.

    `softmax(scale * q k + bias + log_weight) v`, exact; split over the selection and merged
    (FlashDecoding). Several tokens may share a selection: give them as more query heads.

    Args:
        q: [B, Hq, D] float16, bfloat16 or float32; or [B, Hq, S, D], one for each selected block:
            where keys are rotated by their place in their block only, the query is rotated by its
            distance from the block (see `rotary`).
        ids: int32 [B, HS, S], blocks of the bank; -1 selects nothing. HS is 1, H or Hq. A block
            selected twice counts twice.
        scale: of the logits; by default 1 / sqrt(D).
        bias: float32 [B, HS, S], added to the logits of each selected block, natural logarithm:
            a prior, a cluster's size, an inclusion probability.
        log_weight: float32 [N, H, P], added to the logit of each key.
        rotation: the bank's keys are raw, and this is how to rotate them as they are read.
        splits: parts of the selection that are read side by side on a GPU; by default by its shape.
        mass: also sum up each key's probability over the query heads that read it.
        check_ids: raise if an id is out of range; waits for the device.

    Raises:
        ConfigError: shapes, dtypes, devices or layouts do not go together; an id is out of
            range.
    """
    if q.dim() not in (3, 4):
        raise ConfigError(f"q={tuple(q.shape)} must be [B, Hq, D] or [B, Hq, S, D]")
    b, hq, d = q.shape[0], q.shape[1], q.shape[-1]
    _, groups, s = dims("ids", ids, "[B, HS, S]")
    if s == 0:
        raise ConfigError(f"ids={tuple(ids.shape)} selects no block; give at least one column")
    if d != bank.dim:
        raise ConfigError(f"q={tuple(q.shape)} has D={d}; the bank has D={bank.dim}")
    where = bank.keys.device
    check("q", q, (b, hq, d) if q.dim() == 3 else (b, hq, s, d), FLOATS, where)
    if bank.format == "plain" and q.dtype != bank.keys.dtype:
        raise ConfigError(f"q is {q.dtype}; the bank is {bank.keys.dtype}, and they must be alike")
    rows_of(groups, hq, bank.heads)
    check("ids", ids, (b, groups, s), (torch.int32,), where)
    if bias is not None:
        check("bias", bias, (b, groups, s), (torch.float32,), where)
    if log_weight is not None:
        check("log_weight", log_weight, tuple(bank.keys.shape[:3]), (torch.float32,), where)
    if rotation is not None:
        _check_rotation(rotation, q, bank, (b, groups, s))
    if splits is not None and not 1 <= splits <= s:
        raise ConfigError(f"splits={splits} must be from 1 to S={s}")
    if check_ids:
        _check_range("ids", ids, -1, len(bank.keys))
    scale = 1 / math.sqrt(d) if scale is None else scale
    run = _kernel("decode", backend, q) or _torch("decode")
    attended: Attended = run(
        q,
        bank,
        ids,
        scale=scale,
        bias=bias,
        log_weight=log_weight,
        rotation=rotation,
        splits=splits,
        mass=mass,
    )
    return attended


def score_blocks(
    q: Tensor,
    summaries: Summaries,
    k: int,
    *,
    share: Share = "kv_head",
    reduce: Reduce = "max",
    candidates: Tensor | None = None,
    coarse: Summaries | None = None,
    expand: int = 64,
    backend: Backend | None = None,
) -> Selected:
    """The k blocks that a query most probably needs, by their summaries.

    Args:
        q: [B, Hq, D], of the summaries' dtype.
        share: whose selection it is: of the sequence, of the query heads of a KV head (as NSA,
            arXiv 2502.11089), or of each query head (as Quest).
        reduce: over the query heads that share it: their best, their mean, or the sum of each
            one's softmax over all blocks (NSA). `softmax` counts blocks outside `candidates` too.
        candidates: int32 [B, 2], first block and one past the last; by default all.
        coarse: summaries of `span` neighbouring blocks each (see `score.summaries.coarser`):
            only the blocks of the best `expand` of these are scored. For banks beyond four million
            tokens, where reading all summaries costs more than the attention. Exact with `bounds`
            only up to `expand`; not together with `softmax`.

    Raises:
        ConfigError: shapes, dtypes, devices or layouts do not go together, or k is larger than the
            number of blocks.
    """
    b, hq, d = dims("q", q, "[B, Hq, D]")
    bs, n, h, _, width = summaries.data.shape
    check("q", q, (b, hq, d), FLOATS, summaries.data.device)
    if q.dtype != summaries.data.dtype:
        raise ConfigError(f"q is {q.dtype}; summaries are {summaries.data.dtype}; make them alike")
    if d != width:
        raise ConfigError(f"q={tuple(q.shape)} has D={d}; summaries have D={width}")
    if bs not in (1, b):
        raise ConfigError(f"summaries={tuple(summaries.data.shape)} must begin with 1 or B={b}")
    if hq % h:
        raise ConfigError(f"q has Hq={hq}; it must be a multiple of H={h}")
    most = min(n, MOST_SELECTED)
    if not 1 <= k <= most:
        raise ConfigError(f"k={k} must be from 1 to {most}: there are N={n} blocks")
    one_of("share", share, get_args(Share))
    one_of("reduce", reduce, get_args(Reduce))
    if candidates is not None:
        check("candidates", candidates, (b, 2), (torch.int32,), q.device)
    if coarse is not None:
        _check_coarse(coarse, summaries, reduce, k, expand)
    run = _kernel("score", backend, q) or _torch("score")
    selected: Selected = run(
        q,
        summaries,
        k,
        share=share,
        reduce=reduce,
        candidates=candidates,
        coarse=coarse,
        expand=expand,
    )
    return selected


def cosine_topk(
    queries: Tensor,
    rows: Tensor,
    k: int,
    *,
    scales: Tensor | None = None,
    backend: Backend | None = None,
) -> Nearest:
    """The k rows nearest to each query by inner product: by cosine, if all are of length 1. Exact.

    Args:
        queries: [B, d] float16 or float32.
        rows: [N, d], of the queries' dtype; or int8 with `scales`.
        scales: float32 [N], what one step of an int8 row is worth.

    Raises:
        ConfigError: shapes, dtypes, devices or layouts do not go together, or k is larger than N.
    """
    b, d = dims("queries", queries, "[B, d]")
    n, width = dims("rows", rows, "[N, d]")
    floats = (torch.float16, torch.float32)
    check("queries", queries, (b, d), floats, rows.device)
    check("rows", rows, (n, width), (*floats, torch.int8), rows.device)
    if d != width:
        raise ConfigError(f"queries={(b, d)} have d={d}; rows={(n, width)} have d={width}")
    if (rows.dtype == torch.int8) != (scales is not None):
        raise ConfigError(f"rows is {rows.dtype}; int8 rows, and no others, need scales")
    if scales is not None:
        check("scales", scales, (n,), (torch.float32,), rows.device)
    elif rows.dtype != queries.dtype:
        raise ConfigError(f"queries is {queries.dtype}; rows is {rows.dtype}; make them alike")
    most = min(n, MOST_SELECTED)
    if not 1 <= k <= most:
        raise ConfigError(f"k={k} must be from 1 to {most}: there are N={n} rows")
    run = _kernel("cosine", backend, queries) or _torch("cosine")
    nearest: Nearest = run(queries, rows, k, scales=scales)
    return nearest


def compact(
    keys: Tensor,
    values: Tensor,
    keep: Tensor,
    *,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    pairing: Pairing = "half",
    check_ids: bool = False,
    backend: Backend | None = None,
) -> Compacted:
    """Keep some entries of a cache, next to each other, their keys turned to their new positions.

    Args:
        keys, values: [H, N, D] of one float dtype; N entries of H heads (times B sequences).
        keep: int32 [H, M] or [1, M], entries in their new order, none twice.
        cos, sin: float32 [M, D / 2] of new minus old position of each (see `rotary.table`), or
            [H, M, D / 2]; None: keys are raw, or positions stay. Not for embeddings whose
            frequencies depend on the length.
        pairing: as `Rotation`.
        check_ids: raise if one is out of range; waits for the device.

    Returns:
        New tensors: what is given is not changed.

    Raises:
        ConfigError: shapes, dtypes, devices or layouts do not go together; an id is out of
            range.
    """
    h, n, d = dims("keys", keys, "[H, N, D]")
    check("keys", keys, (h, n, d), FLOATS, keys.device)
    check("values", values, (h, n, d), (keys.dtype,), keys.device)
    shared, m = dims("keep", keep, "[H, M]")
    if shared not in (1, h) or not 1 <= m <= n:
        raise ConfigError(f"keep={(shared, m)} must be [1 or H={h}, M] with M from 1 to N={n}")
    if d % 16 or not 16 <= d <= WIDEST:
        raise ConfigError(f"keys={(h, n, d)} has D={d}; it must be a multiple of 16 up to {WIDEST}")
    check("keep", keep, (shared, m), (torch.int32,), keys.device)
    one_of("pairing", pairing, get_args(Pairing))
    if (cos is None) != (sin is None):
        raise ConfigError("cos and sin go together; give both or neither")
    for name, table in (("cos", cos), ("sin", sin)):
        if table is not None:
            shape = (m, d // 2) if table.dim() == 2 else (h, m, d // 2)
            check(name, table, shape, (torch.float32,), keys.device)
    if check_ids:
        _check_range("keep", keep, 0, n)
    run = _kernel("compact", backend, keys) or _torch("compact")
    compacted: Compacted = run(keys, values, keep, cos=cos, sin=sin, pairing=pairing)
    return compacted


def _kernel(op: str, backend: Backend | None, tensor: Tensor) -> Any:
    """The Triton kernel's entry; None where torch is to do it."""
    if backend is not None:
        one_of("backend", backend, get_args(Backend))
    if backend == "torch" or (backend is None and not tensor.is_cuda):
        return None
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError(
            f"backend='triton' needs tensors on a GPU, these are on {tensor.device}; move them, or"
            " set TRITON_INTERPRET=1 before triton is imported, to try a kernel without one"
        )
    try:
        return import_module(f".{op}.kernel", __package__).run
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise ConfigError(
            "backend='triton' needs triton; pip install 'palimpsest[kernels]', or backend='torch'"
        ) from error


def _torch(op: str) -> Any:
    return import_module(f".{op}.cpu", __package__).run


def _check_rotation(
    rotation: Rotation, q: Tensor, bank: Bank, selected: tuple[int, int, int]
) -> None:
    b, groups, s = selected
    shape = tuple(rotation.base.shape)
    if shape not in ((b, groups, s), (b, 1, s)):
        raise ConfigError(f"rotation.base={shape} must be {selected} or {(b, 1, s)}")
    if rotation.cos.shape[1] * 2 != bank.dim:
        raise ConfigError(f"rotation.cos={tuple(rotation.cos.shape)} must be [M, {bank.dim // 2}]")
    if rotation.cos.device != q.device:
        raise ConfigError(f"rotation is on {rotation.cos.device}; it must be on {q.device}")


def _check_coarse(coarse: Summaries, fine: Summaries, reduce: Reduce, k: int, expand: int) -> None:
    (bs, n, h, _, d), (cs, m, ch, _, cd) = fine.data.shape, coarse.data.shape
    factor, left = divmod(coarse.span, fine.span)
    if left or factor < 1 or (cs, ch, cd) != (bs, h, d) or -(-n // factor) != m:
        raise ConfigError(
            f"coarse={tuple(coarse.data.shape)} with span={coarse.span} must have one row for every"
            f" so many of N={n} blocks with span={fine.span}, and else the shape of"
            f" summaries={tuple(fine.data.shape)}"
        )
    if coarse.data.dtype != fine.data.dtype or coarse.data.device != fine.data.device:
        raise ConfigError("coarse and summaries must have one dtype and one device")
    if reduce == "softmax":
        raise ConfigError("reduce='softmax' needs every block's score; give no coarse summaries")
    if not 1 <= expand <= min(m, MOST_SELECTED) or k > expand * factor:
        raise ConfigError(
            f"expand={expand} must be from 1 to {min(m, MOST_SELECTED)}, and expand times"
            f" {factor} blocks at least k={k}"
        )


def _check_range(name: str, ids: Tensor, low: int, size: int) -> None:
    least, most = int(ids.min()), int(ids.max())
    if least < low or most >= size:
        raise ConfigError(f"{name} has {least} to {most}; they must be from {low} to {size - 1}")
