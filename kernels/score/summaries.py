"""What stands for the blocks of a bank: made once a block is full, and of many blocks together.

Knows nothing of queries. A block without a valid token is a row of NaN, which is never selected.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...errors import ConfigError
from ..base import Bank, Summaries, SummaryKind, check, one_of
from ..decode.formats import dequantized

_AT_ONCE = 1 << 22
"""Elements of the bank that are held in float32 at the same time."""


def summarise(
    bank: Bank,
    kind: SummaryKind,
    chosen: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Summaries:
    """Summaries [1, N, H, r, D] of a bank's keys, over the valid tokens of each block.

    Args:
        chosen: of `tokens`, int32 or int64 [N, H, r], which tokens of each block represent it; one
            outside the valid ones counts as none.
        dtype: of the summaries, that of the queries to come; by default that of plain keys, and
            bfloat16 for others. Rounded after the fact: `bounds` of a quantized bank hold only up
            to this rounding, those of plain keys exactly.

    Raises:
        ConfigError: `chosen` is missing, not wanted, or of the wrong shape.
    """
    one_of("kind", kind, ("mean", "bounds", "tokens"))
    if (kind == "tokens") != (chosen is not None):
        raise ConfigError(
            f"kind={kind!r} with chosen: 'tokens', and no other, needs it as [N, H, r]"
        )
    n, h = bank.keys.shape[:2]
    if chosen is not None:
        shape = (n, h, chosen.shape[-1])
        check("chosen", chosen, shape, (torch.int32, torch.int64), bank.keys.device)
    if dtype is None:
        dtype = bank.keys.dtype if bank.format == "plain" else torch.bfloat16
    parts = []
    for start, keys, valid in _pieces(bank):
        if chosen is not None:
            part = _representative(keys, valid, chosen[start : start + len(keys)])
        else:
            part = _mean(keys, valid) if kind == "mean" else _bounds(keys, valid)
        empty = ~valid.any(dim=1)[:, None, None, None]
        parts.append(part.masked_fill(empty, torch.nan).to(dtype))
    return Summaries(torch.cat(parts)[None], kind)


def coarser(summaries: Summaries, factor: int) -> Summaries:
    """Summaries of `factor` neighbouring blocks together, the last maybe of fewer.

    The mean of means, all blocks weighing the same; the maximum of maxima and minimum of minima,
    which bound every key of all these blocks. Blocks of NaN have no part in it.

    Raises:
        ConfigError: `tokens` cannot be made coarser, or the factor is not at least 1.
    """
    if summaries.kind == "tokens":
        raise ConfigError("kind='tokens' cannot be made coarser; use 'mean' or 'bounds'")
    if factor < 1:
        raise ConfigError(f"factor={factor} must be at least 1")
    data = summaries.data
    bs, n, h, r, d = data.shape
    rows = -(-n // factor)
    padded = data.new_full((bs, rows * factor, h, r, d), torch.nan)
    padded[:, :n] = data
    together = padded.view(bs, rows, factor, h, r, d)
    if summaries.kind == "mean":
        # nanmean of half precision would add up in half precision
        made = together.float().nanmean(dim=2).to(data.dtype)
    else:
        nothing = together.isnan()
        high = together.masked_fill(nothing, -torch.inf).amax(dim=2)[..., :1, :]
        low = together.masked_fill(nothing, torch.inf).amin(dim=2)[..., 1:, :]
        made = torch.cat([high, low], dim=-2).masked_fill(nothing.all(dim=2), torch.nan)
    return Summaries(made, summaries.kind, summaries.span * factor)


def _pieces(bank: Bank) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Keys [n, H, P, D] of some blocks at a time, and which of their tokens are valid [n, P]."""
    n, h, p, _ = bank.keys.shape
    step = max(1, _AT_ONCE // (h * p * bank.dim))
    place = torch.arange(p, device=bank.keys.device)
    for start in range(0, n, step):
        part = slice(start, start + step)
        if bank.format == "plain":
            keys = bank.keys[part]
            keys = keys if keys.dtype == torch.float64 else keys.float()
        else:
            keys, _ = dequantized(_blocks(bank, part), torch.float32)
        valid = torch.ones(len(keys), p, dtype=torch.bool, device=keys.device)
        if bank.lengths is not None:
            valid = place < bank.lengths[part, None]
        yield start, keys, valid


def _blocks(bank: Bank, part: slice) -> Bank:
    tensors = ("keys", "values", "lengths", "key_scale", "value_scale", "key_zero", "value_zero")
    given = {name: getattr(bank, name) for name in tensors}
    return replace(bank, **{name: x[part] for name, x in given.items() if x is not None})


def _mean(keys: Tensor, valid: Tensor) -> Tensor:
    kept = torch.where(valid[:, None, :, None], keys, torch.zeros_like(keys))
    return kept.sum(dim=2, keepdim=True) / valid.sum(dim=1)[:, None, None, None]


def _bounds(keys: Tensor, valid: Tensor) -> Tensor:
    beyond = ~valid[:, None, :, None]
    high = keys.masked_fill(beyond, -torch.inf).amax(dim=2)
    low = keys.masked_fill(beyond, torch.inf).amin(dim=2)
    return torch.stack([high, low], dim=2)


def _representative(keys: Tensor, valid: Tensor, chosen: Tensor) -> Tensor:
    at = chosen.long().clamp(0, keys.shape[2] - 1)
    taken = keys.gather(2, at[..., None].expand(-1, -1, -1, keys.shape[3]))
    counts = (chosen >= 0) & (chosen < valid.sum(dim=1)[:, None, None])
    found = torch.where(counts[..., None], taken, torch.zeros_like(taken))
    return found.masked_fill(~counts.any(dim=-1)[..., None, None], torch.nan)
