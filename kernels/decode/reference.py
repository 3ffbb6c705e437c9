"""What `gather_decode` computes, in any precision: everything at once, nothing bounded."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Attended, Bank, Rotation, rows_of
from ..rotary import rotate
from .formats import dequantized


def gather_decode(
    q: Tensor,
    bank: Bank,
    ids: Tensor,
    *,
    scale: float,
    bias: Tensor | None = None,
    log_weight: Tensor | None = None,
    rotation: Rotation | None = None,
    mass: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Attended:
    """Arguments as `ops.gather_decode`; computed, and returned, in `dtype`."""
    b, hq, d, (_, groups, s) = q.shape[0], q.shape[1], q.shape[-1], ids.shape
    rows = rows_of(groups, hq, bank.heads)
    g = hq // bank.heads
    # the KV head of each group's rows [HS, rows], and where its blocks are [B, HS, S]
    head = torch.arange(hq, device=q.device).view(groups, rows) // g
    there = ids >= 0
    safe = ids.clamp(min=0).long()
    keys, values = dequantized(bank, dtype)
    k = keys[safe[:, :, None], head[None, :, :, None]]  # [B, HS, rows, S, P, D]
    v = values[safe[:, :, None], head[None, :, :, None]]
    place = torch.arange(bank.block, device=q.device)
    if rotation is not None:
        at = (rotation.base.long()[..., None] + rotation.step * place)[:, :, None]
        at = at.clamp(0, len(rotation.cos) - 1)
        cos, sin = rotation.cos.to(dtype)[at], rotation.sin.to(dtype)[at]
        k = rotate(k, cos, sin, rotation.pairing)
    queries = q.to(dtype).view(b, groups, rows, -1, d).expand(-1, -1, -1, s, -1)
    logits = torch.einsum("bhrsd,bhrspd->bhrsp", queries, k) * scale
    if bias is not None:
        logits = logits + bias.to(dtype)[:, :, None, :, None]
    if log_weight is not None:
        logits = logits + log_weight.to(dtype)[safe[:, :, None], head[None, :, :, None]]
    seen = there[..., None].expand(-1, -1, -1, bank.block)
    if bank.lengths is not None:
        seen = seen & (place < bank.lengths[safe][..., None])
    logits = logits.masked_fill(~seen[:, :, None], -math.inf).flatten(3)
    lse = torch.logsumexp(logits, dim=-1)
    shift = torch.where(torch.isneginf(lse), torch.zeros_like(lse), lse)
    weights = torch.exp(logits - shift[..., None])
    v = torch.where(seen[:, :, None, ..., None], v, torch.zeros_like(v)).flatten(3, 4)
    out = torch.einsum("bhrn,bhrnd->bhrd", weights, v)
    column = weights.view(b, groups, rows, s, bank.block).sum(dim=2) if mass else None
    return Attended(out.reshape(b, hq, d), lse.reshape(b, hq) / math.log(2), column)
