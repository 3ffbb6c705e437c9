"""InfLLM's blocks: what stands for them, which are found, and where they lie."""

from __future__ import annotations

import pytest
import torch
from palimpsest.errors import ConfigError
from palimpsest.llm.local import LocalLLM
from palimpsest.memory.retention import RetentionCache, open_policy, read
from palimpsest.memory.retention.base import FarShape, Leaving
from palimpsest.memory.retention.far.blocks import BlockMemory, Heads, Lookup
from palimpsest.memory.retention.far.pool import Pool
from palimpsest.memory.retention.far.slots import Slots
from torch import Tensor

CPU = torch.device("cpu")


def memory(
    rows: int = 1, *, k: int = 2, heads: Heads = "kv_head", cached: int | None = None, r: int = 2
) -> BlockMemory:
    return BlockMemory(
        FarShape(rows, 2, 4, 16, torch.float32, CPU), Lookup(16, r, k, heads, cached)
    )


def leaving(n: int, rows: int = 1, *, seed: int = 0, padded: int = 0) -> Leaving:
    """The last row's first `padded` tokens are padding."""
    some = torch.Generator().manual_seed(seed)
    real = torch.ones(rows, n, dtype=torch.bool)
    real[-1, :padded] = False
    return Leaving(
        torch.randn(rows, 2, n, 16, generator=some),
        torch.randn(rows, 2, n, 16, generator=some),
        real,
        torch.randn(rows, 4, n, generator=some),
    )


def query(rows: int = 1, t: int = 3, *, seed: int = 9) -> Tensor:
    return torch.randn(rows, 4, t, 16, generator=torch.Generator().manual_seed(seed))


def test_a_block_stands_for_the_mean_of_the_keys_its_heads_wanted_most() -> None:
    given = leaving(32)
    far = memory()
    far.add(given)
    summary = far.state()["summaries"]
    for block in range(2):
        for head in range(2):
            some = slice(16 * block, 16 * block + 16)
            wanted = given.wanted[0, 2 * head : 2 * head + 2, some].sum(dim=0)
            best = wanted.topk(2).indices
            expected = given.keys[0, head, some][best].mean(dim=0)
            torch.testing.assert_close(summary[block, 0, head], expected)


def test_each_query_head_may_choose_its_own() -> None:
    given = leaving(16)
    far = memory(heads="query_head", r=1)
    far.add(given)
    for head in range(4):
        best = int(given.wanted[0, head].argmax())
        expected = given.keys[0, head // 2, best]
        torch.testing.assert_close(far.state()["summaries"][0, 0, head], expected)


@pytest.mark.parametrize("heads", ["kv_head", "query_head"])
def test_blocks_are_found_by_the_mean_query_over_all_heads(heads: Heads) -> None:
    far = memory(heads=heads)
    for seed in range(4):
        far.add(leaving(32, seed=seed))
    q = query(t=5)
    summary = far.state()["summaries"][:, 0]
    summary = summary.repeat_interleave(4 // summary.shape[1], dim=1)
    best = torch.einsum("thd,mhd->m", q[0].transpose(0, 1), summary).topk(2).indices
    assert far.find(q).tolist() == [sorted(best.tolist())]


def test_a_block_of_padding_is_never_found_and_a_part_of_one_is_read_in_part() -> None:
    far = memory(rows=2, k=3)
    given = leaving(64, rows=2, padded=40)
    far.add(given)
    lengths = far.state()["lengths"].view(4, 2)
    assert lengths.T.tolist() == [[16, 16, 16, 16], [16, 8, 0, 0]]
    assert far.state()["summaries"][2:, 1].isnan().all()
    assert set(far.find(query(2))[1].tolist()) == {0, 1, -1}
    assert len(far) == 64
    read = far.read(query(2), 0.25)
    assert read is not None
    keys, values = (x[1, :, 40:].repeat_interleave(2, 0) for x in (given.keys, given.values))
    logits = query(2)[1] @ keys.mT * 0.25
    torch.testing.assert_close(read.out[1], logits.softmax(-1) @ values)
    torch.testing.assert_close(read.lse[1], logits.logsumexp(-1) / torch.log(torch.tensor(2.0)))


@pytest.mark.parametrize("t", [1, 100])
def test_blocks_on_a_device_read_as_blocks_in_place_and_copies_are_counted(t: int) -> None:
    here, there = memory(k=2), memory(k=2, cached=3)
    for seed in range(6):
        for far in (here, there):
            far.add(leaving(32, seed=seed))
    for seed in range(20):
        one, other = (far.read(query(t=t, seed=seed), 0.25) for far in (here, there))
        assert one is not None and other is not None
        assert torch.equal(one.out, other.out) and torch.equal(one.lse, other.lse)
    assert here.slots is None and there.slots is not None
    assert there.slots.hits + there.slots.loads == 40
    assert there.slots.hits > 0 and there.slots.loads > 3
    again = there.slots.loads
    there.read(query(t=t, seed=19), 0.25)
    assert there.slots.loads == again


def test_forks_share_the_device_blocks_and_never_read_each_others() -> None:
    far = memory(k=2, cached=4)
    far.add(leaving(32))
    far.read(query(), 0.25)
    fork = far.fork()
    plain, plain_fork = memory(k=2), memory(k=2)
    for each in (plain, plain_fork):
        each.add(leaving(32))
    for one, seed in ((far, 1), (plain, 1), (fork, 2), (plain_fork, 2)):
        one.add(leaving(32, seed=seed))
    for seed in range(10):
        for one, alike in ((far, plain), (fork, plain_fork)):
            read, expected = one.read(query(seed=seed), 0.25), alike.read(query(seed=seed), 0.25)
            assert read is not None and expected is not None
            assert torch.equal(read.out, expected.out)
    assert fork.slots is far.slots


def test_blocks_whose_copy_to_the_device_broke_off_are_copied_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    far, plain = memory(k=2, cached=3), memory(k=2)
    for each in (far, plain):
        each.add(leaving(32))

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Slots, "_copy", fail)
        far.read(query(), 0.25)
    read, expected = far.read(query(), 0.25), plain.read(query(), 0.25)
    assert read is not None and expected is not None
    assert torch.equal(read.out, expected.out)


def test_a_fork_copies_nothing_until_both_have_gone_on() -> None:
    pool = Pool()
    pool.append(torch.zeros(4, 2))
    pool.append(torch.ones(1, 2))  # there is room for one more
    copy = pool.copy()
    assert copy.view().data_ptr() == pool.view().data_ptr()
    copy.append(torch.full((1, 2), 2.0))
    assert copy.view().data_ptr() == pool.view().data_ptr()
    pool.append(torch.full((1, 2), 3.0))
    assert copy.view().data_ptr() != pool.view().data_ptr()
    assert copy.view()[:, 0].tolist() == [0, 0, 0, 0, 1, 2]
    assert pool.view()[:, 0].tolist() == [0, 0, 0, 0, 1, 3]


def test_a_device_cache_that_cannot_hold_one_pass_is_refused() -> None:
    with pytest.raises(ConfigError, match="cached=3 must be at least 4: each of 2 rows"):
        memory(rows=2, k=2, cached=3)


def test_part_of_a_block_cannot_leave() -> None:
    with pytest.raises(ConfigError, match="block=16 does not divide"):
        memory().add(leaving(24))


def test_what_a_block_is_wanted_for_is_the_mean_logit_of_the_window_after_it(
    smollm2: LocalLLM,
) -> None:
    """Equation 2, by the definition: true distances, a full window of later queries."""
    policy = open_policy("infllm", window=64, sinks=4, block=16, stride=32, k=2)
    cache = RetentionCache(smollm2.model, policy)
    heard: list[Leaving] = []
    asked: list[Tensor] = []
    ids = torch.randint(1000, 40_000, (1, 160), generator=torch.Generator().manual_seed(1))
    layer = cache.layers[3]
    read(smollm2.model, cache, ids[:, :1])
    far, attend = layer.far, layer.attend
    assert isinstance(far, BlockMemory)
    add = far.add
    keys: list[Tensor] = []

    def hear(leaving: Leaving) -> None:
        heard.append(leaving)
        add(leaving)

    def listen(q: Tensor, k: Tensor, *rest: object) -> object:
        asked.append(q)
        keys.append(k)
        return attend(q, k, *rest)

    far.add = hear  # type: ignore[method-assign]
    layer.attend = listen
    read(smollm2.model, cache, ids[:, 1:])
    q, k = torch.cat(asked, dim=2), torch.cat(keys, dim=2)  # from position 1 on
    first = 4  # the first that left, behind the sinks
    angles = cache.rope.angles(torch.arange(160)[None])
    cos, sin = angles
    turned_q = cache.rope.turn(q, (cos[:, :, 1:], sin[:, :, 1:])).double()
    turned_k = cache.rope.turn(k, (cos[:, :, 1:], sin[:, :, 1:])).double()
    for offset in (0, 7, 31):
        at = first + offset - 1
        group = q.shape[1] // k.shape[1]
        key = turned_k[0, :, at].repeat_interleave(group, dim=0)
        logits = torch.einsum("htd,hd->ht", turned_q[0, :, at + 1 : at + 65], key)
        expected = logits.mean(dim=1).float()
        torch.testing.assert_close(heard[0].wanted[0, :, offset], expected, atol=2e-2, rtol=1e-3)


def test_a_real_model_reads_on_as_with_full_attention_if_all_is_retrieved_within_the_window(
    smollm2: LocalLLM,
) -> None:
    """Far keys stand at the ceiling, so logits differ; the likeliest word need not."""
    text = "The capital of France is Paris. " * 40 + "The capital of France is"
    ids = torch.tensor([smollm2.tokenizer.encode(text)])
    policy = open_policy("infllm", window=64, sinks=8, block=16, stride=32, k=4)
    logits = read(smollm2.model, RetentionCache(smollm2.model, policy), ids)
    assert logits is not None
    assert smollm2.tokenizer.decode([int(logits.argmax())]) == " Paris"
