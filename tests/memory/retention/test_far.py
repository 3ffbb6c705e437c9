"""Far memory as a whole: whatever is near, far or retrieved, each key counts once, and at its
distance; a dense reference in float64 says so, which shares nothing with the cache but angles."""

from __future__ import annotations

import pytest
import torch
from palimpsest.errors import ConfigError
from palimpsest.memory.retention.base import FarShape, RetentionPolicy
from palimpsest.memory.retention.cache import RetentionCache
from palimpsest.memory.retention.policies.infllm import InfLLM
from palimpsest.memory.retention.policies.registry import open_policy
from palimpsest.memory.retention.policies.retrieval import Retrieval
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

INFLLM = InfLLM(window=40, sinks=8, block=16, k=99, stride=32)
POLICIES: dict[str, RetentionPolicy] = {
    "infllm": INFLLM,
    "infllm, representatives by query head": InfLLM(
        window=40, sinks=8, block=16, k=99, stride=32, heads="query_head"
    ),
    "infllm, blocks on a device": InfLLM(window=40, sinks=8, block=16, k=20, stride=32, cached=40),
    "retrieval": Retrieval(window=40, sinks=8, k=4096, stride=32),
    "retrieval, taught": Retrieval(window=40, sinks=8, k=4096, stride=32, index="taught"),
}
NAMES = sorted(POLICIES)
SHAPE = FarShape(1, 2, 4, 16, torch.float32, torch.device("cpu"))


def llama(*, dim: int = 16, heads: int = 4, kv_heads: int = 2) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=heads * dim,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=dim,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    return model


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return llama()


Text = tuple[Tensor, Tensor, Tensor]


def text(n: int, rows: int = 1, *, dim: int = 16, seed: int = 0) -> Text:
    """q [B, 4, n, D], keys and values [B, 2, n, D]."""
    some = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, 4, n, dim, generator=some)
    keys, values = (torch.randn(rows, 2, n, dim, generator=some) for _ in range(2))
    return q, keys, values


def part(words: Text, start: int, end: int) -> Text:
    q, keys, values = (x[:, :, start:end] for x in words)
    return q, keys, values


def dense(cache: RetentionCache, words: Text, window: int, real: Tensor | None = None) -> Tensor:
    """[B, Hq, T, D] float64: nearer than `window` at the true distance, else at `window - 1`."""
    q, keys, values = (x.double() for x in words)
    b, hq, n, d = q.shape
    group = hq // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    real = torch.ones(b, n, dtype=torch.bool) if real is None else real
    place = (real.cumsum(1) - 1).clamp(min=0)

    def turned(x: Tensor, at: Tensor) -> Tensor:
        angle = at.double()[..., None] * cache.rope.frequencies.double()
        cos, sin = angle.cos(), angle.sin()
        first, second = x[..., : d // 2], x[..., d // 2 :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    at = place[:, None].expand(b, hq, n)
    near = turned(q, at) @ turned(keys, at).mT
    far = turned(q, torch.full_like(at, window - 1)) @ keys.mT
    distance = (place[:, :, None] - place[:, None, :])[:, None]
    logits = torch.where(distance < window, near, far) / d**0.5
    logits = logits.masked_fill((distance < 0) | ~real[:, None, None], -torch.inf)
    read: Tensor = logits.softmax(-1).nan_to_num(nan=0.0) @ values
    return read


def feed(cache: RetentionCache, words: Text, most: int = 999, real: Tensor | None = None) -> Tensor:
    """[B, Hq, T, D], what the second layer reads, in chunks of at most `most`."""
    parts, done, n = [], 0, words[0].shape[2]
    while done < n:
        room = cache.room
        assert room is not None
        end = min(n, done + min(most, room))
        q, keys, values = (x[:, :, done:end] for x in words)
        there = None if real is None else real[:, done:end]
        for layer in range(2):
            read = cache.attend(layer, q, keys, values, there, 16**-0.5)
        parts.append(read)
        done = end
    return torch.cat(parts, dim=2)


@pytest.mark.parametrize("most", [1, 7, 999])
@pytest.mark.parametrize("name", NAMES)
def test_all_that_is_far_retrieved_is_dense_attention(
    model: LlamaForCausalLM, name: str, most: int
) -> None:
    words, cache = text(300), RetentionCache(model, POLICIES[name])
    read = feed(cache, words, most)
    assert len(cache.layers[0].far) > 150
    torch.testing.assert_close(read.double(), dense(cache, words, 40), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_padding_on_the_left_changes_nothing(model: LlamaForCausalLM, name: str) -> None:
    words = text(300, rows=2)
    real = torch.ones(2, 300, dtype=torch.bool)
    real[1, :103] = False
    cache = RetentionCache(model, POLICIES[name])
    read = feed(cache, words, real=real)
    expected = dense(cache, words, 40, real)
    for row, start in ((0, 0), (1, 103)):
        torch.testing.assert_close(
            read[row, :, start:].double(), expected[row, :, start:], atol=2e-5, rtol=0
        )


@pytest.mark.parametrize("name", NAMES)
def test_each_key_is_counted_once(name: str) -> None:
    """A key's value names it: what is read is then how much of each key is in the softmax."""
    n = 256
    words = text(n, dim=n, seed=1)
    tagged = (words[0], words[1], torch.eye(n).expand(1, 2, n, n))
    cache = RetentionCache(llama(dim=n), POLICIES[name])
    read = feed(cache, tagged)
    torch.testing.assert_close(read.double(), dense(cache, tagged, 40), atol=1e-5, rtol=0)
    assert (read.sum(-1) - 1).abs().max() < 1e-5
    assert (read[0, :, -1] > 0).all()


def test_a_chunk_inside_the_boundary_reads_no_key_twice(model: LlamaForCausalLM) -> None:
    """The public code shows keys just inside the window twice to the first rows of a block."""
    words, cache = text(130), RetentionCache(model, INFLLM)
    read = feed(cache, words)
    first = slice(96, 128)  # the first pass after an eviction
    expected = dense(cache, words, 40)
    torch.testing.assert_close(read[:, :, first].double(), expected[:, :, first], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["infllm", "retrieval"])
def test_chunks_that_end_where_blocks_end_read_the_same(model: LlamaForCausalLM, name: str) -> None:
    policy = open_policy(name, window=40, sinks=8, k=2, stride=32, **_block(name))
    words = text(304)
    whole, parts = (RetentionCache(model, policy) for _ in range(2))
    once = feed(whole, words)
    first = feed(parts, part(words, 0, 128))
    second = feed(parts, part(words, 128, 304))
    assert torch.equal(once, torch.cat([first, second], dim=2))
    assert not torch.allclose(once.double(), dense(whole, words, 40), atol=1e-3)


def _block(name: str) -> dict[str, int]:
    return {"block": 16} if name == "infllm" else {}


def tokens(n: int) -> Tensor:
    return torch.randint(64, (1, n), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", NAMES)
def test_a_fork_and_what_it_came_from_go_their_own_ways(model: LlamaForCausalLM, name: str) -> None:
    policy = POLICIES[name]
    words, other, more = text(200), text(150, seed=5), text(150, seed=6)
    cache = RetentionCache(model, policy)
    feed(cache, words)
    fork = cache.fork()
    read = {"fork": feed(fork, other), "cache": feed(cache, more)}
    for one, added in (("fork", other), ("cache", more)):
        together: Text = tuple(torch.cat(pair, dim=2) for pair in zip(words, added, strict=True))  # type: ignore[assignment]
        expected = dense(cache, together, 40)[:, :, 200:]
        torch.testing.assert_close(read[one].double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_made_anew_from_its_state_reads_and_goes_on_alike(
    model: LlamaForCausalLM, name: str
) -> None:
    cache = RetentionCache(model, POLICIES[name])
    feed(cache, text(200))
    copy = cache.fork()
    for layer in copy.layers:
        state = {name: tensor.clone() for name, tensor in layer.state().items()}
        layer.restore(state, SHAPE.query_heads, cache.rope.angles(cache.tokens.position))
    more = text(150, seed=7)
    assert copy.nbytes <= cache.nbytes + 2 * 40 * 16 * 2 * 2 * 16 * 4
    assert copy.stored == cache.stored == 200
    assert torch.equal(feed(copy, more), feed(cache, more))


def test_a_far_memory_of_nothing_can_be_made_anew(model: LlamaForCausalLM) -> None:
    for name in NAMES:
        far = POLICIES[name].far(SHAPE)
        assert far is not None
        far.restore(far.state())
        assert len(far) == 0 and far.read(torch.randn(1, 4, 3, 16), 0.25) is None


@pytest.mark.parametrize("name", NAMES)
def test_a_model_generates_past_the_window(model: LlamaForCausalLM, name: str) -> None:
    cache = RetentionCache(model, POLICIES[name])
    with cache.attached(model):
        ids = model.generate(
            tokens(200),
            past_key_values=cache,
            prefill_chunk_size=cache.stride,
            max_new_tokens=60,
            do_sample=False,
        )
    assert ids.shape[1] == 260 and cache.stored == 259


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ("infllm:block=100", "block=100 must be one of"),
        ("infllm:stride=200", "stride=200 must be a multiple of block=128"),
        ("infllm:k=32,cached=16", "cached=16 must be at least k=32"),
        ("infllm:sinks=0", "sinks=0 must be at least 1"),
        ("infllm:window=1", "window=1 must be at least 2"),
        ("infllm:block=16,stride=32,representatives=17", "representatives=17 must be at most"),
        ("infllm:heads=all", "heads='all' must be one of"),
        ("retrieval:k=0", "k=0 must be at least 1"),
        ("retrieval:index=graph", "index='graph' must be one of"),
        ("retrieval:scan=0.0", r"scan=0.0 must be within \(0, 1]"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(spec: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        open_policy(spec)


@pytest.mark.parametrize("spec", ["lm_infinite", "infllm", "retrieval", "infllm:sinks=1,window=2"])
def test_chunks_of_one_stride_never_cross_an_eviction(spec: str) -> None:
    policy = open_policy(spec)
    assert policy.budget is not None and policy.budget % policy.stride == 0
    assert policy.reach is not None
    assert policy.budget - policy.stride >= policy.reach.window
