"""The decoding loop: ids in, ids with their log-probabilities out, one at a time.

Knows nothing of text, of chat templates or of who attached what to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING

from .base import GenerationConfig
from .loading import memory_errors
from .places import LiveCache

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import Cache, PreTrainedModel

    from .attach import Attachment

CHUNK = 1024
"""Tokens that one forward pass reads at most: bounds the activations of a long prompt."""

OBSERVED = 256
"""Tokens that one forward pass reads at most if all their logits are wanted: 50 MB of these for a
vocabulary of 49,152."""


def decode(
    model: PreTrainedModel,
    prompt: Tensor,
    attachment: Attachment,
    config: GenerationConfig,
    cancel: Event | None,
) -> Iterator[tuple[int, float]]:
    """Yield (id, ln P(id | all before) in nats) without end; the caller decides when to stop.

    `prompt` is [1, T]. P is the model's distribution with everything attached, before sampling
    options. Returns early only when `cancel` is set.

    Raises:
        OutOfMemory: the cache has outgrown the device.
    """
    import torch

    def cancelled() -> bool:
        return cancel is not None and cancel.is_set()

    choose = sampler(config, model.device)
    ids = unread = prompt
    while True:
        with torch.no_grad(), memory_errors(f"{ids.shape[1]} tokens", model.device):
            logits = read(model, unread, attachment.cache, cancelled)
            if logits is None or cancelled():
                return
            logits = attachment.process(ids, logits)
            unread = choose(ids, logits)
            logprob = logits[0, unread[0, 0]] - logits[0].logsumexp(-1)
            ids = torch.cat([ids, unread], dim=1)
        yield int(unread), float(logprob)


def read(
    model: PreTrainedModel,
    ids: Tensor,
    cache: Cache,
    cancelled: Callable[[], bool] = lambda: False,
) -> Tensor | None:
    """Read ids [B, T] into `cache`, in chunks; a live cache says how long these may be.

    Returns:
        float32 logits [B, V] of the token after the last one; None if cancelled before the end.
    """

    logits = None
    done = 0
    while done < ids.shape[1]:
        if cancelled():
            return None
        chunk = ids[:, done : done + _chunk(cache)]
        live = isinstance(cache, LiveCache)
        every = live and cache.observes
        with _whole(cache):
            output = model(
                input_ids=chunk,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=0 if every else 1,
            )
            if live:
                cache.observe(chunk, output.logits)
        logits = output.logits[:, -1].float()
        done += chunk.shape[1]
    return logits


@contextmanager
def _whole(cache: Cache) -> Iterator[None]:
    """What a live cache was given inside the block, it takes back if that breaks off: else it would
    hold tokens that it has not observed."""
    before = cache.get_seq_length()
    try:
        yield
    except BaseException:
        gone = cache.get_seq_length() - before
        if isinstance(cache, LiveCache) and gone:
            cache.crop(gone)
        raise


def _chunk(cache: Cache) -> int:
    """Tokens that the next forward pass may read."""
    if not isinstance(cache, LiveCache):
        return CHUNK
    most = OBSERVED if cache.observes else CHUNK
    return most if cache.room is None else min(most, cache.room)


def sampler(config: GenerationConfig, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """A function from ids [B, T] and logits [B, V] to the next ids [B, 1].

    The options are transformers' own processors in the order of its `generate`. Randomness comes
    from a generator of this request, never from the process's.
    """
    import torch
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    options = LogitsProcessorList()
    if config.repetition_penalty != 1.0:
        options.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.temperature == 0:
        return lambda ids, logits: options(ids, logits).argmax(-1, keepdim=True)
    if config.temperature != 1.0:
        options.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        options.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1.0:
        options.append(TopPLogitsWarper(config.top_p))
    generator = torch.Generator(device)
    if config.seed is None:
        generator.seed()
    else:
        generator.manual_seed(config.seed)

    def draw(ids: Tensor, logits: Tensor) -> Tensor:
        chances = options(ids, logits).softmax(-1)
        return torch.multinomial(chances, 1, generator=generator)

    return draw
