"""The bench of endless text, on a model of random weights: only its mechanics matter here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from palimpsest.apps.bench import stream
from palimpsest.apps.bench.setting import Setting
from palimpsest.apps.bench.streaming import Chunk, binned, nll, streamed, within
from palimpsest.errors import InputError
from palimpsest.llm.local import LocalLLM
from palimpsest.memory.retention import RetentionCache, open_policy, read, score

PLAN = stream.Plan(length=1_280, mark=768, stretch=256, size=256, budget=256, steps=16)


@pytest.fixture
def setting(tmp_path: Path, tiny_llm: LocalLLM) -> Iterator[Setting]:
    made = Setting(seed=0, full=False, data=None, scratch=tmp_path)
    made.__dict__["llm"] = tiny_llm
    with closing(made):
        yield made


def chunk(start: int, nlls: list[float]) -> Chunk:
    end = start + len(nlls) + (start == 0)
    return Chunk(start, end, torch.tensor(nlls), 1.0, 0.0, 0.0, 0)


def test_a_bin_is_the_mean_of_its_own_tokens_and_the_first_of_all_is_in_none() -> None:
    chunks = [chunk(0, [1.0, 2.0, 3.0]), chunk(4, [4.0, 5.0]), chunk(6, [6.0, 7.0])]
    assert list(binned(chunks, 4)) == [(4, 2.0), (8, 5.5)]
    assert nll(chunks, 5, 7) == 5.5
    assert [each.start for each in within(chunks, 4, 6)] == [4]


def test_chunks_are_the_whole_text_each_token_once(tiny_llm: LocalLLM) -> None:
    ids = torch.randint(2, 258, (1, 300), generator=torch.Generator().manual_seed(0))
    chunks = list(streamed(tiny_llm.model, open_policy("sinks:budget=64"), ids))
    assert [each.start for each in chunks[1:]] == [each.end for each in chunks[:-1]]
    assert chunks[-1].end == 300 and sum(len(each.nll) for each in chunks) == 299
    assert chunks[-1].stored <= 64 and chunks[-1].cache < chunks[0].cache * 1.2
    with torch.no_grad():
        logits = tiny_llm.model(ids[:, :64]).logits
    expected = -logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:64, None])[:, 0]
    assert torch.cat([each.nll for each in chunks])[:63] == pytest.approx(expected, abs=1e-4)


def test_a_text_scored_in_two_parts_joins_where_a_token_is_given_again(
    tiny_llm: LocalLLM,
) -> None:
    ids = torch.randint(2, 258, (2, 40), generator=torch.Generator().manual_seed(1))
    whole = score(tiny_llm.model, RetentionCache(tiny_llm.model, open_policy("full")), ids)
    cache = RetentionCache(tiny_llm.model, open_policy("full"))
    read(tiny_llm.model, cache, ids[:, :29])
    assert score(tiny_llm.model, cache, ids[:, 29:]) == pytest.approx(whole[:, 29:], abs=1e-4)


def test_a_fork_under_another_policy_is_that_policy_from_the_start(tiny_llm: LocalLLM) -> None:
    ids = torch.randint(2, 258, (1, 200), generator=torch.Generator().manual_seed(2))
    model = tiny_llm.model
    shared = RetentionCache(model, open_policy("sirllm:budget=500"))
    read(model, shared, ids[:, :60])
    for spec in ("sirllm:budget=64,decay=0.5", "random:budget=64", "window:budget=64", "full"):
        fork, alone = (
            shared.fork(policy=open_policy(spec)),
            RetentionCache(model, open_policy(spec)),
        )
        read(model, alone, ids[:, :60])
        logits = [read(model, cache, ids[:, 60:]) for cache in (fork, alone)]
        assert torch.equal(fork.tokens.position, alone.tokens.position), spec
        assert logits[0] == pytest.approx(logits[1], abs=1e-4)
    assert shared.policy.name == "sirllm" and shared.seen == 60


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("h2o:budget=64", "was not noted"),
        ("lm_infinite:window=64", "has a reach"),
        ("sinks:budget=32", "60 tokens were read, and its budget=32"),
    ],
)
def test_a_policy_that_cannot_take_over_is_refused(tiny_llm: LocalLLM, spec: str, why: str) -> None:
    shared = RetentionCache(tiny_llm.model, open_policy("sirllm:budget=500"))
    read(tiny_llm.model, shared, torch.arange(2, 62)[None])
    with pytest.raises(InputError, match=why):
        shared.fork(policy=open_policy(spec))


def test_crop_takes_what_generate_gives(tiny_llm: LocalLLM) -> None:
    cache = RetentionCache(tiny_llm.model, open_policy("full"))
    read(tiny_llm.model, cache, torch.arange(2, 42)[None])
    cache.crop(-5)
    assert cache.get_seq_length() == len(cache.tokens) == 35


def test_every_table_has_every_policy_and_its_baselines(setting: Setting) -> None:
    tables = list(stream.stream(setting, dtype="float32", plan=PLAN))
    perplexity, cost, memory, decoded, exactness, checks = tables
    names = list(stream.policies(PLAN.budget))
    assert {stream.FULL, stream.WINDOW, *stream.BOUND} >= set(names) >= {stream.FULL, "sirllm"}
    for table in (perplexity, cost, memory, decoded):
        assert [row["policy"] for row in table.rows] == names
    assert {str(point["policy"]) for point in perplexity.points} == set(names)
    ends = {row["policy"]: row["tokens"] for row in perplexity.rows}
    assert ends["sinks + window"] == 1_280 and ends[stream.FULL] == 768
    assert "ratio to afresh" not in perplexity.rows[0]
    differences = [value for row in exactness.rows for value in list(row.values())[1:]]
    assert 0 < max(map(float, differences)) < 1e-4  # type: ignore[arg-type]
    assert checks.rows[-1]["held"] is True
    stored = {row["policy"]: row["tokens stored"] for row in memory.rows}
    assert stored["sirllm"] == stored["sinks + window"] == 256
    assert all(math.isfinite(float(row["of all"])) for row in perplexity.rows[1:])  # type: ignore[arg-type]


def test_a_text_that_is_too_short_is_an_error(setting: Setting) -> None:
    plan = stream.Plan(100_000, 8_000, 4_000, 1_000, 1_024, 8)
    with pytest.raises(InputError, match="100000 are to be read; name a folder"):
        next(stream.stream(setting, dtype="float32", plan=plan))
