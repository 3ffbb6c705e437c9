"""What every retention policy must hold to. A new one joins by a row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from palimpsest.errors import ConfigError, InputError
from palimpsest.memory.retention import RetentionCache, open_policy, read
from palimpsest.memory.retention.files import restore, save
from palimpsest.memory.retention.near import NearLayer
from palimpsest.memory.retention.policies.registry import POLICIES
from torch import Tensor, nn

from ..memory.retention.worlds import llama, logits_of, opened, text

SMALL = {
    "full": "full",
    "window": "window:budget=24,stride=4",
    "sinks": "sinks:budget=24,stride=4,sinks=2",
    "random": "random:budget=24,stride=4,sinks=2,recent=4",
    "sirllm": "sirllm:budget=24,stride=4,sinks=2",
    "h2o": "h2o:budget=24,stride=4",
    "lm_infinite": "lm_infinite:window=18,sinks=2,stride=4",
    "infllm": "infllm:window=14,sinks=2,stride=16,block=16,k=2,lookup=step",
    "retrieval": "retrieval:window=16,sinks=2,stride=4,k=5,lookup=step",
}
"""Each with 24 or 32 tokens near at most, but for the full one."""

LARGE = {
    "full": "full",
    "window": "window:budget=80",
    "sinks": "sinks:budget=80",
    "random": "random:budget=80",
    "sirllm": "sirllm:budget=80",
    "h2o": "h2o:budget=80",
    "lm_infinite": "lm_infinite:window=80",
    "infllm": "infllm:window=80",
    "retrieval": "retrieval:window=80",
}
"""Each with room for the whole text."""

CLOSE = 2e-5


@pytest.fixture(params=sorted(SMALL))
def small(request: pytest.FixtureRequest) -> str:
    return SMALL[request.param]


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def near_bytes(layer: NearLayer) -> int:
    return layer.nbytes - (layer.far.nbytes if layer.far is not None else 0)


def test_every_registered_policy_is_in_the_tables() -> None:
    assert set(POLICIES) == set(SMALL) == set(LARGE)


@pytest.mark.parametrize("spec", LARGE.values())
@pytest.mark.parametrize("chunk", [80, 1, 7])
def test_a_budget_that_covers_the_text_gives_the_models_own_logits(spec: str, chunk: int) -> None:
    model, ids = llama(), text(80)
    with torch.no_grad():
        stock = model(input_ids=ids).logits
    assert difference(logits_of(model, opened(model, spec), ids, chunk), stock) < CLOSE


def test_what_is_read_does_not_depend_on_the_chunks(small: str) -> None:
    model, ids = llama(), text(90)
    whole = logits_of(model, opened(model, small), ids, 90)
    for chunk in (1, 5):
        assert difference(logits_of(model, opened(model, small), ids, chunk), whole) < CLOSE


def test_evictions_change_what_is_read(small: str) -> None:
    model, ids = llama(), text(90)
    with torch.no_grad():
        stock = model(input_ids=ids).logits
    changed = difference(logits_of(model, opened(model, small), ids, 90), stock)
    assert changed < CLOSE if small == "full" else changed > 100 * CLOSE


def test_seen_and_stored_are_two_numbers_and_memory_stays_flat(small: str) -> None:
    model = llama()
    cache = opened(model, small)
    sizes = []
    for part in torch.split(text(240), 40, dim=1):
        logits_of(model, cache, part, 40)
        if cache.policy.budget is not None:
            assert len(cache.tokens) <= cache.policy.budget <= 32
        sizes.append(sum(near_bytes(layer) for layer in cache.layers))
    assert cache.get_seq_length() == cache.seen == 240
    if cache.policy.budget is not None:
        assert sizes[1] == sizes[-1]
    near = cache.tokens.position[0]
    assert bool((near.diff() > 0).all())
    assert cache.tokens.id[0].tolist() == text(240)[0, near].tolist()


def test_a_saved_cache_goes_on_as_if_it_had_never_been_away(small: str, tmp_path: Path) -> None:
    model, ids = llama(), text(70)
    cache = opened(model, small)
    cache.begin_turn()
    logits_of(model, cache, ids[:, :45], 45)
    save(cache, tmp_path / "cache.safetensors", model)
    restored = restore(tmp_path / "cache.safetensors", model)
    assert restored.policy == cache.policy and restored.turn == 1
    assert (restored.seen, restored.stored, restored.nbytes) == (45, cache.stored, cache.nbytes)
    after = [logits_of(model, each, ids[:, 45:], 5) for each in (cache, restored)]
    assert torch.equal(*after)


def test_a_fork_goes_on_by_itself(small: str) -> None:
    model, ids = llama(), text(80)
    cache = opened(model, small)
    logits_of(model, cache, ids[:, :40], 40)
    fork = cache.fork()
    logits_of(model, fork, text(33, seed=5), 33)
    assert (cache.seen, fork.seen) == (40, 73)
    apart = opened(model, small)
    logits_of(model, apart, ids[:, :40], 40)
    one, other = (logits_of(model, each, ids[:, 40:], 40) for each in (cache, apart))
    assert torch.equal(one, other)


def test_tokens_can_be_taken_back_until_they_made_others_leave(small: str) -> None:
    model, ids = llama(), text(60)
    cache = opened(model, small)
    logits_of(model, cache, ids[:, :50], 50)
    with torch.no_grad():
        before = cache.fork()
        logits_of(model, cache, ids[:, 50:52], 2)
        cache.crop(2)
        one, other = (read(model, each, ids[:, 50:]) for each in (cache, before))
    assert cache.seen == 60 and one is not None and other is not None
    if not cache.observes:
        assert difference(one, other) == 0
    if cache.policy.budget is not None:
        with pytest.raises(InputError, match="fork the cache"):
            cache.crop(30)


def test_rows_of_a_batch_do_not_know_of_each_other(small: str) -> None:
    model, ids = llama(), text(60, rows=3)
    together = logits_of(model, opened(model, small), ids, 60)
    for row in range(3):
        alone = logits_of(model, opened(model, small), ids[row : row + 1], 60)
        assert difference(together[row : row + 1], alone) < CLOSE


def test_padding_on_the_left_changes_nothing(small: str) -> None:
    model, ids = llama(), text(60, rows=2)
    mask = torch.ones_like(ids)
    mask[1, :12] = 0
    cache, parts = opened(model, small), []
    with torch.no_grad(), cache.attached(model):
        for start in range(0, 60, 4):
            some = ids[:, start : start + 4]
            logits = model(
                input_ids=some, attention_mask=mask[:, : start + 4], past_key_values=cache
            ).logits
            cache.observe(some, logits)
            parts.append(logits)
    padded = torch.cat(parts, dim=1)
    assert cache.tokens.position[1].max() == 47
    for row, start in ((0, 0), (1, 12)):
        alone = logits_of(model, opened(model, small), ids[row : row + 1, start:], 60)
        assert difference(padded[row : row + 1, start:], alone) < CLOSE


class Broken(RuntimeError):
    pass


def test_a_pass_that_breaks_off_midway_never_was(small: str) -> None:
    model, ids = llama(), text(70)
    cache = opened(model, small)
    logits_of(model, cache, ids[:, :41], 41)

    def fail(module: nn.Module, inputs: object, output: object) -> None:
        raise Broken

    hook = model.model.layers[0].register_forward_hook(fail)
    try:
        with pytest.raises(Broken):
            read(model, cache, ids[:, 41:44])
    finally:
        hook.remove()
    assert cache.seen == 41
    whole = opened(model, small)
    logits_of(model, whole, ids[:, :41], 41)
    one, other = (logits_of(model, each, ids[:, 41:], 3) for each in (cache, whole))
    assert torch.equal(one, other)


def test_reading_can_be_cancelled_and_gone_on_with(small: str) -> None:
    model, ids = llama(), text(70)
    cache = opened(model, small)
    if cache.room is None:
        pytest.skip("it is read in one pass")
    assert read(model, cache, ids, cancelled=lambda: cache.seen >= 42) is None
    assert 42 <= cache.seen < 70
    after = read(model, cache, ids[:, cache.seen :])
    whole = read(model, opened(model, small), ids)
    assert after is not None and whole is not None and difference(after, whole) < CLOSE


def test_generate_says_what_it_says_with_the_models_own_cache() -> None:
    model, ids = llama(), text(20)
    stock = model.generate(ids, max_new_tokens=12, do_sample=False)
    for spec in LARGE.values():
        cache = opened(model, spec)
        with cache.attached(model):
            ours = model.generate(ids, max_new_tokens=12, do_sample=False, past_key_values=cache)
        assert torch.equal(ours, stock), spec


def test_generate_goes_on_for_ever(small: str) -> None:
    model = llama()
    cache = opened(model, small)
    if cache.observes:
        pytest.skip("generate shows no logits, so what ranks by surprisal is read by `read`")
    with cache.attached(model):
        said = model.generate(
            text(30),
            max_new_tokens=60,
            do_sample=False,
            past_key_values=cache,
            prefill_chunk_size=4,
        )
        again = model.generate(
            torch.cat([said, text(3, seed=8)], dim=1),
            max_new_tokens=5,
            do_sample=False,
            past_key_values=cache,
            prefill_chunk_size=1,
        )
    assert said.shape == (1, 90) and again.shape == (1, 98) and cache.seen == 97


def test_more_than_fits_at_once_is_refused_with_the_remedy(small: str) -> None:
    model = llama()
    cache = opened(model, small)
    if cache.room is None:
        pytest.skip("everything fits")
    with cache.attached(model), torch.no_grad(), pytest.raises(InputError, match="prefill_chunk"):
        model(input_ids=text(60), past_key_values=cache)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_budget_without_room_is_refused(name: str) -> None:
    options = {
        "window": {"budget": 1},
        "sinks": {"budget": 5, "sinks": 4},
        "random": {"budget": 5, "sinks": 4},
        "sirllm": {"budget": 5, "sinks": 4},
        "h2o": {"budget": 1},
        "lm_infinite": {"window": 0},
        "infllm": {"window": 1},
        "retrieval": {"k": 0},
    }.get(name)
    if options is None:
        pytest.skip("it has no budget")
    with pytest.raises(ConfigError, match="must be at least"):
        open_policy(name, **options)


def test_an_option_that_is_not_there_is_refused(small: str) -> None:
    with pytest.raises(ConfigError, match="has no option 'budgte'; it has"):
        open_policy(small, budgte=3)


def test_the_model_is_as_it_was_afterwards(small: str) -> None:
    model, ids = llama(), text(30)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        logits_of(model, opened(model, small), ids, 30)
        assert torch.equal(model(input_ids=ids).logits, before)


def test_a_fingerprint_is_of_one_model_only(tmp_path: Path) -> None:
    cache: RetentionCache = opened(llama(), "sinks:budget=24")
    logits_of(llama(), cache, text(30), 30)
    save(cache, tmp_path / "cache", llama())
    with pytest.raises(ConfigError, match="another model"):
        restore(tmp_path / "cache", llama(layers=1))
