"""The cache around a model: attaching, observing, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from palimpsest.errors import ConfigError, InputError, StoreError
from palimpsest.llm.fingerprint import fingerprint
from palimpsest.llm.local import LocalLLM
from palimpsest.memory.retention import RetentionCache, open_policy, read
from palimpsest.memory.retention.files import restore, save
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from .worlds import SIZES, full_disk, llama, logits_of, made, opened, text


def test_a_cache_is_of_no_use_to_a_model_it_is_not_attached_to() -> None:
    cache = opened(llama(), "full")
    with torch.no_grad(), pytest.raises(ConfigError, match="not attached to"):
        llama()(input_ids=text(5), past_key_values=cache)


def test_an_attached_cache_must_also_be_given_to_the_model() -> None:
    with torch.no_grad(), opened(llama(), "full").attached(llama()):
        for other in (None, DynamicCache(config=llama().config)):
            with pytest.raises(ConfigError, match="past_key_values"):
                llama()(input_ids=text(5), past_key_values=other)


def test_a_model_has_one_cache_attached_at_a_time() -> None:
    one, other = opened(llama(), "full"), opened(llama(), "full")
    with (
        one.attached(llama()),
        pytest.raises(ConfigError, match="attached already"),
        other.attached(llama()),
    ):
        pass
    with torch.no_grad(), other.attached(llama()):
        llama()(input_ids=text(5), past_key_values=other)
    assert (one.seen, other.seen) == (0, 5)


def test_a_cache_holds_one_batch() -> None:
    cache = opened(llama(), "full")
    read(llama(), cache, text(5, rows=2))
    with pytest.raises(InputError, match="a batch of 3 rows, and the cache holds 2"):
        read(llama(), cache, text(5, rows=3))


def test_nothing_is_known_of_an_empty_cache() -> None:
    cache = opened(llama(), "full")
    assert (cache.seen, cache.stored, cache.nbytes) == (0, 0, 0)
    with pytest.raises(InputError, match="has read nothing"):
        cache.tokens  # noqa: B018


def test_rows_can_be_chosen_as_beam_search_does() -> None:
    model, ids = llama(), text(20, rows=2)
    cache = opened(model, "sinks:budget=16,stride=4,sinks=2")
    logits_of(model, cache, ids, 20)
    cache.reorder_cache(torch.tensor([1, 1]))
    after = logits_of(model, cache, text(1, seed=3).expand(2, 1), 1)
    alone = opened(model, "sinks:budget=16,stride=4,sinks=2")
    logits_of(model, alone, ids[1:], 20)
    expected = logits_of(model, alone, text(1, seed=3), 1)
    assert torch.allclose(after, expected.expand_as(after), atol=1e-5)


def test_beam_search_says_what_it_says_with_the_models_own_cache() -> None:
    ids = text(12)
    stock = llama().generate(ids, max_new_tokens=8, num_beams=3, do_sample=False)
    cache = opened(llama(), "sinks:budget=64")
    with cache.attached(llama()):
        ours = llama().generate(
            ids, max_new_tokens=8, num_beams=3, do_sample=False, past_key_values=cache
        )
    assert torch.equal(ours, stock)


def test_two_models_that_differ_have_two_fingerprints() -> None:
    assert fingerprint(llama()) == fingerprint(llama())
    assert fingerprint(llama()) != fingerprint(llama(1))
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    other = made(LlamaForCausalLM, LlamaConfig(**SIZES))
    stretched = made(LlamaForCausalLM, LlamaConfig(**SIZES, rope_parameters=scaled))
    assert fingerprint(other) != fingerprint(stretched)  # the same weights


def written(tmp_path: Path) -> Path:
    cache = opened(llama(), "sinks:budget=24")
    logits_of(llama(), cache, text(30), 30)
    path = tmp_path / "cache.safetensors"
    save(cache, path, llama())
    return path


def test_a_damaged_file_is_said_to_be_one(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:50], whole[: len(whole) // 2], b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match="read the text again"):
            restore(path, llama())
    with pytest.raises(StoreError, match="read the text again"):
        restore(tmp_path / "nowhere", llama())


def test_a_file_that_lacks_a_layer_or_is_of_another_version_is_refused(tmp_path: Path) -> None:
    from safetensors import safe_open

    path = written(tmp_path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["palimpsest"])
    tensors = load_file(path)
    less = {name: tensor for name, tensor in tensors.items() if not name.startswith("1.")}
    save_file(less, path, metadata={"palimpsest": json.dumps(header)})
    with pytest.raises(StoreError, match="cannot be read"):
        restore(path, llama())
    save_file(tensors, path, metadata={"palimpsest": json.dumps({**header, "version": 99})})
    with pytest.raises(StoreError, match="version 99"):
        restore(path, llama())


def test_nothing_half_written_is_left_where_a_file_was(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = path.read_bytes()
    with pytest.raises(InputError):
        save(opened(llama(), "full"), path, llama())
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_without_room_on_disk_the_old_file_stays(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = path.read_bytes()
    cache = opened(llama(), "full")
    read(llama(), cache, text(60))
    with full_disk(10_000), pytest.raises(StoreError, match="make room there"):
        save(cache, path, llama())
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.model
def test_on_a_real_model_a_full_cache_is_the_models_own(smollm2: LocalLLM) -> None:
    passage = "The keeper of the lighthouse kept a parrot that swore in four languages. " * 12
    ids = torch.tensor([smollm2._prompts.text(passage)])
    with torch.no_grad():
        stock = smollm2.model(input_ids=ids).logits
    for spec, chunk in (("full", 999), ("sirllm:budget=512", 64), ("lm_infinite:window=512", 50)):
        cache = RetentionCache(smollm2.model, open_policy(spec))
        ours = logits_of(smollm2.model, cache, ids, chunk)
        assert float((ours - stock).abs().max()) < 1e-4
