"""Reading a text into a cache, outside a chat."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...llm.decoding import read as read_chunks
from .cache import RetentionCache

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
