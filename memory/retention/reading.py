"""Reading a text into a cache, outside a chat; and how well the model foresaw it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...llm.decoding import OBSERVED
from ...llm.decoding import read as read_chunks
from .cache import RetentionCache
from .surprisal import surprisal

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read(
    model: PreTrainedModel,
    cache: RetentionCache,
    ids: Tensor,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> Tensor | None:
    """Read ids [B, T] of any length into `cache`, in chunks that end where it evicts.

    Returns:
        float32 logits [B, V] of the token after the last one; None if cancelled before the end.
        What was read until then stays read.
    """
    with torch.no_grad(), cache.attached(model):
        return read_chunks(model, ids.to(model.device), cache, cancelled)


def score(model: PreTrainedModel, cache: RetentionCache, ids: Tensor) -> Tensor:
    """Read ids [B, T] of any length into `cache`, and tell how surprising each of them was.

    Returns:
        float32 [B, T - 1] on the CPU: -ln P in nats of ids[:, 1:], each given what the cache kept
        of all before it. Perplexity is `score(...).mean().exp()`.
    """
    return torch.cat(list(score_chunks(model, cache, ids)), dim=1)


def score_chunks(model: PreTrainedModel, cache: RetentionCache, ids: Tensor) -> Iterator[Tensor]:
    """As `score`, a piece for each chunk as it is read: the text may be endless, and memory is
    bounded. The pieces together are [B, T - 1]; between two of them the model is free."""
    done = 0
    last: Tensor | None = None
    while done < ids.shape[1]:
        most = OBSERVED if cache.room is None else min(OBSERVED, cache.room)
        chunk = ids[:, done : done + most].to(model.device)
        with torch.no_grad(), cache.attached(model):
            logits = model(input_ids=chunk, past_key_values=cache, use_cache=True).logits
            cache.observe(chunk, logits)
        within = surprisal(logits[:, :-1], chunk[:, 1:])
        first: list[Tensor] = [] if last is None else [surprisal(last, chunk[:, :1])]
        last = logits[:, -1:]
        done += chunk.shape[1]
        yield torch.cat([*first, within], dim=1)
