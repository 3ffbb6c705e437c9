"""What breaks off, is taken back or is pinned at a bad moment leaves a cache that is right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from palimpsest.errors import InputError
from palimpsest.memory.retention import read
from torch import nn

from .worlds import by_hand, causal, llama, logits_of, opened, positions, text


class Broken(Exception):
    """What a test lets happen."""


def fail(*_: object) -> None:
    """In place of something that goes wrong."""
    raise Broken


@contextmanager
def failing(module: nn.Module) -> Iterator[None]:
    """`module` breaks off inside the block."""
    hook = module.register_forward_hook(fail)
    try:
        with pytest.raises(Broken):
            yield
    finally:
        hook.remove()


def test_keys_that_one_query_put_at_the_ceiling_are_near_again_after_a_crop() -> None:
    model, ids, spec = llama(), text(10), "lm_infinite:window=8,sinks=4,stride=16"
    cropped, whole = opened(model, spec), opened(model, spec)
    logits_of(model, cropped, torch.cat([ids[:, :6], text(6, seed=3)], dim=1), 1)
    cropped.crop(6)
    logits_of(model, whole, ids[:, :6], 1)
    one, other = (logits_of(model, cache, ids[:, 6:], 1) for cache in (cropped, whole))
    assert torch.allclose(one, other, atol=1e-5)


def test_pinned_tokens_and_those_a_policy_always_keeps_stay_together() -> None:
    cache = opened(llama(), "sinks:budget=16,stride=4,sinks=4")
    logits_of(llama(), cache, text(14), 14)
    cache.pin(6, 13)
    logits_of(llama(), cache, text(30, seed=3), 30)
    cache.settle()
    assert [*range(4), *range(6, 13)] == positions(cache)[:11]


@pytest.mark.parametrize(
    "spec",
    [
        "sinks:budget=16,stride=4,sinks=4",
        "sirllm:budget=16,stride=4,sinks=2,recent=4",
        "lm_infinite:window=10,sinks=2,stride=4",
        "retrieval:window=10,sinks=2,stride=4,k=4",
    ],
)
def test_pins_that_would_push_out_what_must_stay_are_refused_each_time(spec: str) -> None:
    cache = opened(llama(), spec)
    logits_of(llama(), cache, text(14), 14)
    cache.pin(4, 13)
    logits_of(llama(), cache, text(2), 2)
    for _ in range(2):
        with pytest.raises(InputError, match=r"9 tokens are pinned.* smaller window"):
            read(llama(), cache, text(1))
    assert len(positions(cache)) == 16


@pytest.mark.parametrize("chunk", [1, 4])
def test_lm_infinite_reads_what_is_pinned_beyond_its_window(chunk: int) -> None:
    model, ids = llama(1), text(40)
    cache = opened(model, "lm_infinite:window=8,sinks=2,stride=4")
    first = logits_of(model, cache, ids[:, :6], 6)
    cache.pin(3, 5)
    ours = torch.cat([first, logits_of(model, cache, ids[:, 6:], chunk)], dim=1)
    distance = causal(40)
    seen = torch.zeros(40).bool()
    seen[[0, 1, 3, 4]] = True
    beyond = distance >= 8
    distance = distance.masked_fill(beyond & seen, 8).masked_fill(beyond & ~seen, -1)
    assert torch.allclose(ours[0], by_hand(model, ids, distance), atol=1e-4)


def test_a_pass_that_breaks_off_before_it_was_observed_never_was() -> None:
    model, ids, spec = llama(), text(60), "sirllm:budget=24,stride=4,sinks=2"
    cache, whole = opened(model, spec), opened(model, spec)
    for each in (cache, whole):
        read(model, each, ids[:, :22])
    with failing(model.lm_head):
        read(model, cache, ids[:, 22:24])
    assert cache.seen == 22
    one, other = (read(model, each, ids[:, 22:]) for each in (cache, whole))
    assert one is not None and other is not None and torch.equal(one, other)


def test_a_cache_that_broke_off_while_it_evicted_says_so() -> None:
    model, ids = llama(), text(20)
    cache = opened(model, "sinks:budget=16,stride=4")
    read(model, cache, ids[:, :16])
    before = cache.fork()
    cache.layers[1].evict = fail
    with pytest.raises(Broken):
        read(model, cache, ids[:, 16:])
    assert cache.broken
    for use in (cache.fork, cache.settle, lambda: read(model, cache, ids[:, 16:])):
        with pytest.raises(InputError, match="broke off while it evicted"):
            use()
    assert read(model, before, ids[:, 16:]) is not None
    cache.reset()
    assert read(model, cache, ids) is not None
