"""The caches that are compared: ours in every format, and transformers' own quantised cache.

Each has read the same prompt exactly and packed it afterwards, as the papers do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...memory.retention import RetentionCache, open_policy, read
from ...memory.retention.formats.packed import PackedStorage
from ...memory.retention.formats.registry import open_format

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

RESIDUAL = 64
"""Newest tokens that stay plain in each of our formats."""

STEPS = 5
"""Single tokens that are read to time a step."""

FORMATS = {
    "plain": "plain",
    "int8": "int8",
    "int4": "int4",
    "int2": "int2",
    "GEAR, 4 bits, rank 4, 2 %": "gear:bits=4",
    "GEAR, 2 bits, rank 4, 2 %": "gear:bits=2",
    "GEAR-L, 2 bits, rank 4": "gear:bits=2,outliers=0",
    "2 bits and 2 % outliers": "gear:bits=2,rank=0",
    "int2, groups of 32": "int2:group=32",
    "ThinK, 40 %": "think:drop=0.4",
    "ThinK, 60 %": "think:drop=0.6",
    "40 % by key norm": "think:drop=0.4,by=key",
    "60 % by key norm": "think:drop=0.6,by=key",
    "40 % at random": "think:drop=0.4,by=random",
}

QUICK = (
    "plain",
    "int8",
    "int4",
    "int2",
    "GEAR, 2 bits, rank 4, 2 %",
    "ThinK, 40 %",
    "40 % by key norm",
    "40 % at random",
)
"""Those of a quick run."""

QUANTO = {
    "transformers, quanto 4 bits (its defaults)": {"nbits": 4},
    "transformers, quanto 4 bits, keys by channel": {"nbits": 4, "axis_key": -1},
    "transformers, quanto 2 bits, keys by channel": {"nbits": 2, "axis_key": -1},
}
FP8 = "transformers, fp8"


@dataclass(frozen=True, slots=True)
class Held:
    """A packed prompt.

    Args:
        fork: gives a cache that may be read on from.
        bits: of a number that is packed: codes, scales and all, floats counted as 16 bits.
        keys, values: relative error of what is packed, over all layers.
    """

    fork: Callable[[], Cache]
    bits: float
    keys: float
    values: float


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ids [1, P] that was read exactly: all of it, and all but the last tokens, which a
    format has to see for itself, as it may want to know what they ask for."""

    ids: Tensor
    whole: RetentionCache
    begun: RetentionCache


def our_prompt(model: PreTrainedModel, ids: Tensor) -> Prompt:
    """A prompt ids [1, P] in a plain cache."""
    begun = RetentionCache(model, open_policy("full"))
    read(model, begun, ids[:, :-RESIDUAL])
    whole = begun.fork()
    read(model, whole, ids[:, -RESIDUAL:])
    return Prompt(ids, whole, begun)


def in_format(model: PreTrainedModel, prompt: Prompt, spec: str) -> Held:
    """A prompt in one of our formats; all but the last RESIDUAL tokens are packed."""
    if spec == "plain":
        return Held(prompt.whole.fork, 16.0, 0.0, 0.0)
    form = open_format(spec, stride=prompt.ids.shape[1], residual=RESIDUAL)
    cache = prompt.begun.fork(form=form)
    read(model, cache, prompt.ids[:, -RESIDUAL:])
    cache.settle()
    stores = [
        (found.store, wanted.store)
        for found, wanted in zip(cache.layers, prompt.whole.layers, strict=True)
    ]
    return Held(
        cache.fork,
        _bits(cache),
        error((found.keys(), wanted.keys()) for found, wanted in stores),
        error((found.values(), wanted.values()) for found, wanted in stores),
    )


def _bits(cache: RetentionCache) -> float:
    """Of one packed number, on average over keys and values."""
    bits = numbers = 0.0
    for layer in cache.layers:
        assert isinstance(layer.store, PackedStorage)
        rows, heads, _, dim = layer.store.keys().shape
        state = layer.store.state()
        bits += sum(bits_of(part) for name, part in state.items() if not name.endswith(".tail"))
        numbers += 2 * rows * heads * layer.store.packed * dim
    return bits / numbers


def bits_of(part: Tensor) -> int:
    """Of a tensor, floats counted as a model of 16 bits would hold them."""
    each = min(16, 8 * part.element_size()) if part.is_floating_point() else 8 * part.element_size()
    return each * part.numel()


def error(pairs: Iterator[tuple[Tensor, Tensor]]) -> float:
    """Relative error of all that is found, in the Frobenius norm."""
    missed = total = 0.0
    for found, wanted in pairs:
        missed += float((found.float() - wanted.float()).square().sum())
        total += float(wanted.float().square().sum())
    return math.sqrt(missed / total)


def their_prompt(model: PreTrainedModel, ids: Tensor) -> Cache:
    """transformers' plain cache after ids [1, P]."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def quantized(model: PreTrainedModel, prompt: Cache, backend: str, **options: Any) -> Held:
    """transformers' quantised cache, given the prompt's keys and values as a prefill gives them."""
    from transformers import QuantizedCache

    def made() -> Cache:
        cache = QuantizedCache(backend, model.config, **options)
        for at, layer in enumerate(prompt.layers):
            cache.update(layer.keys, layer.values, at)
        return cache

    bits = numbers = 0.0
    keys: list[tuple[Tensor, Tensor]] = []
    values: list[tuple[Tensor, Tensor]] = []
    for own, layer in zip(made().layers, prompt.layers, strict=True):
        for stored, exact, found in (
            (own._quantized_keys, layer.keys, keys),
            (own._quantized_values, layer.values, values),
        ):
            found.append((own._dequantize(stored), exact))
            bits += sum(map(bits_of, _tensors(stored)))
            numbers += exact.numel()
    return Held(made, bits / numbers, error(iter(keys)), error(iter(values)))


def _tensors(stored: Any) -> Iterator[Tensor]:
    """What a quantised tensor of quanto, or of transformers' fp8, really consists of."""
    if isinstance(stored, tuple):
        for part in stored:
            yield from _tensors(part)
    elif hasattr(stored, "_scale"):
        yield stored._data._data
        yield from (stored._scale, stored._shift)
    else:
        yield stored


@torch.no_grad()
def loss(model: PreTrainedModel, held: Held, ids: Tensor) -> float:
    """Mean negative log-likelihood, nats, of ids[0, 1:] given what was read and ids[0, 0]."""
    cache = held.fork()
    with _around(model, cache):
        said = model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True).logits
    return float(torch.nn.functional.cross_entropy(said[0].float(), ids[0, 1:]))


@torch.no_grad()
def step_ms(model: PreTrainedModel, held: Held, ids: Tensor) -> float:
    """Milliseconds to read one token, the median of some."""
    cache, times = held.fork(), []
    with _around(model, cache):
        for at in range(STEPS):
            started = time.perf_counter()
            model(input_ids=ids[:, at : at + 1], past_key_values=cache, use_cache=True)
            times.append((time.perf_counter() - started) * 1000)
    return median(times)


def _around(model: PreTrainedModel, cache: Cache) -> AbstractContextManager[None]:
    return cache.attached(model) if isinstance(cache, RetentionCache) else nullcontext()
