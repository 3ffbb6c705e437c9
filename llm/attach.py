"""Attaching contributions to a transformers model for one request, and taking them off again.

Knows nothing of prompts' text, sampling or memories' insides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .loading import memory_errors
from .places import Composition, Delta, LiveCache, Logits, Weights

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import Cache, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Attachment:
    """What the contributions of a request became.

    Args:
        cache: the KV cache that generation owns.
        logits: changes to the next-token distribution, in order.
    """

    cache: Cache
    logits: tuple[Logits, ...]

    def process(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Apply every change: ids [B, T], logits [B, V] -> [B, V]."""
        for contribution in self.logits:
            logits = contribution.process(ids, logits)
        return logits


@contextmanager
def attached(
    model: PreTrainedModel, composition: Composition, prompt_ids: Tensor
) -> Iterator[Attachment]:
    """Attach `composition` to `model` inside the block; nothing is left of it afterwards.

    Args:
        prompt_ids: [B, T], from which gates decide.

    Raises:
        ConfigError: a patch names a layer that the model has not, or that it did not declare.
    """
    import torch

    with ExitStack() as undo:
        with torch.no_grad(), memory_errors("what the memories attach", model.device):
            for patch in composition.weights:
                modules = _modules(model, patch)
                for layer, delta in _opened(patch, prompt_ids).items():
                    undo.callback(modules[layer].register_forward_hook(hook(delta)).remove)
            build = composition.cache.build if composition.cache else new_cache
            attachment = Attachment(build(model), composition.logits)
        if isinstance(attachment.cache, LiveCache):
            undo.enter_context(attachment.cache.attached(model))
        yield attachment


def new_cache(model: PreTrainedModel) -> Cache:
    """The empty KV cache that `model` uses by default."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def _modules(model: PreTrainedModel, patch: Weights) -> dict[str, Module]:
    """The modules that `patch` may touch, by name; checked even where its gate stays closed."""
    known = dict(model.named_modules())
    for layer in sorted(patch.layers):
        if layer not in known:
            near = get_close_matches(layer, known, n=3, cutoff=0.3)
            raise ConfigError(
                f"memory {patch.memory!r} patches layer {layer!r}, which the model has not;"
                f" near it: {near}"
            )
    return {layer: known[layer] for layer in patch.layers}


def _opened(patch: Weights, prompt_ids: Tensor) -> dict[str, Delta]:
    deltas = dict(patch.open(prompt_ids))
    if strange := sorted(deltas.keys() - patch.layers):
        raise ConfigError(
            f"memory {patch.memory!r} opened a patch on {strange}, which is not among its layers"
            f" {sorted(patch.layers)}; name every layer there"
        )
    return deltas


def hook(delta: Delta) -> Callable[[Module, tuple[Any, ...], Tensor], Tensor]:
    """A forward hook that lets `delta` change what a linear layer gives."""
    return lambda module, inputs, output: delta(inputs[0], output)
