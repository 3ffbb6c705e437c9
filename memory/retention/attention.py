"""The attention function of attached models, and attaching.

While a cache is attached, the model's rotary module is an identity and its attention function is
ours: queries and keys arrive raw, and the cache owns all positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ...errors import CapabilityError, ConfigError
from .rope import attentions, unrotated

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .cache import RetentionCache

NAME = "palimpsest_retention"

UNKNOWN = ("softcap", "s_aux", "sliding_window", "position_bias")
"""What some models ask of attention, and this function does not do."""

_CACHES: WeakKeyDictionary[nn.Module, RetentionCache] = WeakKeyDictionary()


@contextmanager
def attached(model: PreTrainedModel, cache: RetentionCache) -> Iterator[None]:
    """`model` reads and writes `cache` inside the block, if it is given it as past_key_values.

    Raises:
        ConfigError: the model has a cache attached already.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _padding)
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    layers = attentions(model)
    if before == NAME:
        raise ConfigError(
            f"{type(model).__name__} has a retention cache attached already; leave that block first"
        )
    try:
        config._attn_implementation = NAME
        cache.active, cache.coming = True, False
        for layer in layers:
            _CACHES[layer] = cache
        with unrotated(model, cache.rope.width):
            yield
    finally:
        config._attn_implementation, cache.active = before, False
        for layer in layers:
            _CACHES.pop(layer, None)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """query [B, Hq, T, D], key and value [B, H, T, D] of the new tokens, all raw; attention_mask
    bool [B, T], what of them is no padding. Returns [B, T, Hq, D]."""
    asked = [name for name in UNKNOWN if options.get(name) is not None]
    if asked:
        raise CapabilityError(
            f"{type(module).__name__} attends with {asked}, which a retention cache does not do"
        )
    cache = _CACHES[module]
    if not cache.coming:
        raise ConfigError(
            "the attached cache was not given to the model; pass it as past_key_values"
        )
    layer = cast(int, module.layer_idx)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = cache.attend(layer, query, key, value, attention_mask, scale)
    return out.transpose(1, 2), None


def _padding(
    batch_size: int, q_length: int, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any
) -> Tensor | None:
    """In place of a mask: bool [B, T], which of the new tokens are no padding."""
    if attention_mask is None:
        return None
    real = attention_mask[:, -q_length:]
    return None if bool(real.all()) else real
