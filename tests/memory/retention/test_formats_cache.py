"""Storage formats inside a retention cache, on the embedded model and on a tiny one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from palimpsest.errors import ConfigError
from palimpsest.llm.local import LocalLLM
from palimpsest.memory.retention import RetentionCache, open_policy, read
from palimpsest.memory.retention.formats.packed import PackedStorage
from palimpsest.memory.retention.formats.registry import open_format
from palimpsest.memory.retention.near import NearLayer
from torch import Tensor
from transformers import PreTrainedModel

CHAPTER = Path(__file__).parents[2] / "data" / "time_machine_chapter_1.txt"

SMALL = "group=16,residual=16"
"""Options for texts of some hundred tokens."""


def ids_of(llm: LocalLLM, length: int, rows: int = 1) -> Tensor:
    drawn = torch.Generator().manual_seed(0)
    return torch.randint(2, llm.model.config.vocab_size, (rows, length), generator=drawn)


def cache_of(model: PreTrainedModel, policy: str, form: str) -> RetentionCache:
    return RetentionCache(model, open_policy(policy), open_format(form))


def packed(cache: RetentionCache) -> list[int]:
    stores = [layer.store for layer in cache.layers]
    return [store.packed for store in stores if isinstance(store, PackedStorage)]


def logits(model: PreTrainedModel, cache: RetentionCache, ids: Tensor, chunk: int) -> Tensor:
    """What the model says at every token, read `chunk` at once or as many as may be."""
    said, done = [], 0
    with torch.no_grad(), cache.attached(model):
        while done < ids.shape[1]:
            some = ids[:, done : done + min(chunk, cache.room or chunk)]
            said.append(model(input_ids=some, past_key_values=cache).logits)
            done += some.shape[1]
    return torch.cat(said, dim=1)


@pytest.mark.parametrize("form", ["int8", "int4", "gear:block=32", "think"])
def test_what_is_packed_and_said_does_not_depend_on_the_chunks(
    tiny_llm: LocalLLM, form: str
) -> None:
    spec = f"{form}{',' if ':' in form else ':'}{SMALL}"
    ids = ids_of(tiny_llm, 120)
    said, held = [], []
    for chunk in (1, 7, 1000):
        cache = cache_of(tiny_llm.model, "full", spec)
        said.append(logits(tiny_llm.model, cache, ids, chunk))
        held.append((packed(cache), cache.layers[1].store.keys()))
    # Sums in another order may round one number to the neighbouring code, never more.
    for other, (count, keys) in zip(said[1:], held[1:], strict=True):
        assert count == held[0][0] and count[0] >= 64
        torch.testing.assert_close(other, said[0], atol=2e-3, rtol=0)
        assert float((keys - held[0][1]).norm() / keys.norm()) < 1e-2


def test_keys_are_packed_by_the_text_also_while_a_policy_evicts(tiny_llm: LocalLLM) -> None:
    ids = ids_of(tiny_llm, 200, rows=2)
    for policy in ("sinks:budget=64,stride=16", "h2o:budget=64,stride=16"):
        said = []
        for chunk in (3, 1000):
            cache = cache_of(tiny_llm.model, policy, f"int4:{SMALL}")
            said.append(logits(tiny_llm.model, cache, ids, chunk))
            assert packed(cache) == [32, 32]  # 48 are kept, the newest 16 of them plain
            assert cache.stored <= 64
        torch.testing.assert_close(said[1], said[0], atol=2e-2, rtol=0)


def test_eight_bits_read_nearly_as_plain_ones_and_two_do_not(smollm2: LocalLLM) -> None:
    ids = smollm2.tokenizer(CHAPTER.read_text(), return_tensors="pt").input_ids[:, :200]
    plain = logits(smollm2.model, cache_of(smollm2.model, "full", "plain"), ids, 128)
    off = {}
    for form in ("int8", "int4", "int2"):
        cache = cache_of(smollm2.model, "full", f"{form}:residual=32")
        said = logits(smollm2.model, cache, ids, 128)
        assert packed(cache) == [128] * smollm2.model.config.num_hidden_layers
        found, wanted = (x[:, 128:].log_softmax(-1) for x in (said, plain))
        off[form] = float((wanted.exp() * (wanted - found)).sum(-1).mean())
    assert off["int8"] < 0.002 and off["int8"] < off["int4"] < 0.1 < off["int2"]


@pytest.mark.parametrize("form", ["int4", "gear:bits=4,block=32", "think"])
def test_an_evicting_policy_and_a_format_work_together(smollm2: LocalLLM, form: str) -> None:
    ids = smollm2.tokenizer(CHAPTER.read_text(), return_tensors="pt").input_ids[:, :230]
    policy = "sinks:budget=128,stride=32"
    plain, some = (
        cache_of(smollm2.model, policy, each)
        for each in ("plain", f"{form}{',' if ':' in form else ':'}group=16,residual=32")
    )
    expected = read(smollm2.model, plain, ids)
    found = read(smollm2.model, some, ids)
    assert expected is not None and found is not None
    assert plain.stored == some.stored and some.nbytes < 0.7 * plain.nbytes
    assert int(found.argmax()) == int(expected.argmax())


def test_generating_goes_through_a_packed_cache(tiny_llm: LocalLLM) -> None:
    ids = ids_of(tiny_llm, 70)
    cache = cache_of(tiny_llm.model, "full", f"int8:{SMALL}")
    with cache.attached(tiny_llm.model):
        tokens = tiny_llm.model.generate(
            ids,
            past_key_values=cache,
            prefill_chunk_size=cache.stride,
            max_new_tokens=20,
            min_new_tokens=20,
            do_sample=False,
        )
    assert tokens.shape == (1, 90) and packed(cache) == [64, 64]


@pytest.mark.parametrize("form", ["int4", "think"])
def test_a_layer_is_saved_and_goes_on_as_before(tiny_llm: LocalLLM, form: str) -> None:
    ids = ids_of(tiny_llm, 150)
    cache = cache_of(tiny_llm.model, "full", f"{form}:{SMALL}")
    read(tiny_llm.model, cache, ids[:, :110])
    fork = cache.fork()
    for layer, source in zip(fork.layers, cache.layers, strict=True):
        assert isinstance(layer, NearLayer)
        layer.store = cache.form.storage(cache.rope.pairing, cache.rope.width)
        layer.store.restore({name: x.clone() for name, x in source.store.state().items()})
    ends = [read(tiny_llm.model, each, ids[:, 110:]) for each in (cache, fork)]
    assert ends[0] is not None and ends[1] is not None and torch.equal(ends[0], ends[1])


def test_a_text_is_read_exactly_and_packed_on_a_fork(tiny_llm: LocalLLM) -> None:
    ids = ids_of(tiny_llm, 100)
    plain = cache_of(tiny_llm.model, "full", "plain")
    read(tiny_llm.model, plain, ids[:, :64])
    keys = plain.layers[1].store.keys().clone()
    fork = plain.fork(form=open_format(f"int8:{SMALL}"))
    read(tiny_llm.model, fork, ids[:, 64:])
    assert packed(fork) == [80, 80]
    found = fork.layers[1].store.keys()[:, :, :64]
    assert 0 < float((found - keys).abs().max()) < 0.02 * float(keys.abs().max())
    assert torch.equal(plain.layers[1].store.keys(), keys) and plain.seen == 64
    again = fork.fork(form=open_format("plain"))
    torch.testing.assert_close(
        read(tiny_llm.model, again, ids[:, :5]), read(tiny_llm.model, fork, ids[:, :5])
    )


def test_a_policy_that_hands_keys_on_takes_no_packed_form(tiny_llm: LocalLLM) -> None:
    with pytest.raises(ConfigError, match="form='int4' packs keys"):
        cache_of(tiny_llm.model, "lm_infinite", "int4")
    plain = cache_of(tiny_llm.model, "lm_infinite", "plain")
    with pytest.raises(ConfigError, match="form='int4' packs keys"):
        plain.fork(form=open_format("int4"))


def test_a_pass_that_broke_off_leaves_packed_tokens_as_they_were(tiny_llm: LocalLLM) -> None:
    ids = ids_of(tiny_llm, 100)
    cache, expected = (cache_of(tiny_llm.model, "full", f"int4:{SMALL}") for _ in range(2))
    for each in (cache, expected):
        read(tiny_llm.model, each, ids[:, :90])
    with cache.attached(tiny_llm.model), torch.no_grad():
        stopped = tiny_llm.model.model.layers[1].register_forward_pre_hook(_stop)
        with pytest.raises(KeyboardInterrupt):
            tiny_llm.model(input_ids=ids[:, :4], past_key_values=cache)
        stopped.remove()
    ends = [read(tiny_llm.model, each, ids[:, 90:]) for each in (cache, expected)]
    assert ends[0] is not None and ends[1] is not None and torch.equal(ends[0], ends[1])


def _stop(*_: object) -> None:
    raise KeyboardInterrupt
