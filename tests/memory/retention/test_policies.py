"""What each policy keeps, and why."""

from __future__ import annotations

import math

import pytest
import torch
from palimpsest.errors import ConfigError, InputError
from palimpsest.llm.local import LocalLLM
from palimpsest.memory.retention import RetentionCache, open_policy, read
from palimpsest.memory.retention.policies.sirllm import SirLLM
from palimpsest.memory.retention.tokens import Tokens
from torch import Tensor

from .worlds import llama, logits_of, opened, positions, text


def table(scores: list[float], turns: list[int] | None = None) -> Tokens:
    """Tokens of one row at positions 0, 1, 2, ..."""
    tokens = Tokens.empty(1)
    tokens.append(torch.arange(len(scores))[None], 0)
    tokens.score = torch.tensor([scores])
    if turns is not None:
        tokens.turn = torch.tensor([turns])
    return tokens


def kept(policy: SirLLM, tokens: Tokens, keep: int, turn: int = 0) -> list[int]:
    order = policy.priority(tokens, turn)[0].argsort(descending=True, stable=True)[:keep]
    return sorted(order.tolist())


def test_a_window_keeps_the_newest_and_sinks_the_first_as_well() -> None:
    for spec, expected in (
        ("window:budget=12,stride=4", [*range(32, 40)]),
        ("sinks:budget=12,stride=4,sinks=3", [0, 1, 2, *range(35, 40)]),
        ("lm_infinite:window=6,sinks=2,stride=4", [0, 1, *range(34, 40)]),
    ):
        cache = opened(llama(), spec)
        logits_of(llama(), cache, text(40), 40)
        cache.settle()
        assert positions(cache) == expected, spec


def test_surprisal_is_minus_log_p_of_each_token_given_those_before_it() -> None:
    model, ids = llama(), text(30)
    cache = opened(model, "sirllm:budget=40")
    logits = logits_of(model, cache, ids, 7)
    expected = -logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    assert torch.allclose(cache.tokens.score[0, 1:], expected, atol=1e-4)
    assert cache.tokens.score[0, 0] == pytest.approx(math.log(97))


def test_the_public_codes_score_is_the_surprise_of_the_predecessor_coming_again() -> None:
    model, ids = llama(), text(30)
    cache = opened(model, "sirllm:budget=40,code_compat=true")
    logits = logits_of(model, cache, ids, 7)
    again = -logits.log_softmax(-1)[0].gather(1, ids[0, :, None])[:, 0]
    assert torch.allclose(cache.tokens.score[0, 1:], again[:-1], atol=1e-4)


def test_sirllm_keeps_sinks_the_newest_and_the_most_surprising() -> None:
    policy = SirLLM(budget=8, stride=2, sinks=1, recent=2)
    assert kept(policy, table([0.1, 5, 1, 6, 2, 7, 0.5, 0.2]), 6) == [0, 1, 3, 5, 6, 7]


def test_decay_lets_old_turns_fade() -> None:
    tokens = table([8, 8, 3, 3, 2, 2], turns=[0, 0, 4, 4, 5, 5])
    best = {}
    for decay in (1.0, 0.7, 0.5):
        policy = SirLLM(budget=8, stride=1, sinks=0, recent=0, decay=decay)
        best[decay] = kept(policy, tokens, 2, turn=5)
    assert best == {1.0: [0, 1], 0.7: [2, 3], 0.5: [4, 5]}


def test_decay_changes_no_order_within_a_turn_and_turns_begin_where_they_are_told() -> None:
    model, ids = llama(), text(40)
    cache = opened(model, "sirllm:budget=48,decay=0.5")
    for part in torch.split(ids, 10, dim=1):
        cache.begin_turn()
        read(model, cache, part)
    assert cache.tokens.turn[0].tolist() == [turn for turn in (1, 2, 3, 4) for _ in range(10)]


def test_spread_keeps_words_whole() -> None:
    scores = [1.0, 9, 1, 1, 5, 1, 1]
    policy = SirLLM(budget=8, stride=1, sinks=0, recent=0, spread=1)
    assert kept(policy, table(scores), 3) == [0, 1, 2]


def test_the_first_of_a_turn_has_the_turns_highest_score_in_the_public_code() -> None:
    tokens = table([1, 2, 9, 1, 3, 4], turns=[0, 0, 0, 1, 1, 1])
    policy = SirLLM(budget=8, stride=1, sinks=0, recent=0, code_compat=True)
    assert kept(policy, tokens, 3) == [0, 2, 3]


def test_pinned_tokens_stay_whatever_they_are_worth() -> None:
    cache = opened(llama(), "window:budget=16,stride=4")
    logits_of(llama(), cache, text(10), 10)
    cache.pin(3, 6)
    logits_of(llama(), cache, text(60, seed=3), 60)
    cache.settle()
    assert positions(cache)[:3] == [3, 4, 5] and len(positions(cache)) <= 16
    with pytest.raises(InputError, match="are not near"):
        cache.pin(0, 2)


def test_more_pinned_tokens_than_stay_are_refused() -> None:
    cache = opened(llama(), "window:budget=16,stride=4")
    logits_of(llama(), cache, text(16), 16)
    cache.pin(0, 14)
    with pytest.raises(InputError, match="14 tokens are pinned"):
        read(llama(), cache, text(4))


def test_tokens_that_were_never_observed_cannot_be_ranked_by_surprisal() -> None:
    cache = opened(llama(), "sirllm:budget=16,stride=4")
    with torch.no_grad(), cache.attached(llama()):
        llama()(input_ids=text(16), past_key_values=cache)
        with pytest.raises(InputError, match="16 tokens were never observed"):
            llama()(input_ids=text(1), past_key_values=cache)


def test_random_keeps_a_uniform_sample_that_the_seed_decides() -> None:
    counts = torch.zeros(200)
    for seed in range(40):
        cache = opened(llama(1), f"random:budget=60,stride=10,sinks=0,seed={seed}")
        logits_of(llama(1), cache, text(200), 200)
        cache.settle()
        counts[positions(cache)] += 1
    assert counts.sum() == 40 * 50
    early, late = counts[:90].mean(), counts[100:190].mean()
    assert abs(float(early - late)) < 3  # of 10 expected each
    assert counts.max() < 40


def test_h2o_ranks_by_all_the_attention_there_was() -> None:
    model, ids = llama(), text(30)
    cache = opened(model, "h2o:budget=40")
    logits_of(model, cache, ids, 7)
    heads, layers = 4, 2
    assert float(cache.tokens.score.sum()) == pytest.approx(30 * heads * layers, rel=1e-4)
    with torch.no_grad():
        model.set_attn_implementation("eager")
        weights = model(input_ids=ids, output_attentions=True).attentions
        model.set_attn_implementation("sdpa")
    expected = sum(layer.sum(dim=(1, 2)) for layer in weights)
    assert isinstance(expected, Tensor)
    assert torch.allclose(cache.tokens.score, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sirllm:decay=0", "decay=0"),
        ("sirllm:spread=-1", "spread=-1"),
        ("sinks:stride=-3", "stride"),
    ],
)
def test_options_that_make_no_sense_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_policy(spec)


@pytest.mark.model
def test_on_a_real_model_surprising_words_outlive_the_others(smollm2: LocalLLM) -> None:
    told = "I want you to buy the grocery: [dragonfruit]. " + "The grass is green. " * 40
    ids = torch.tensor([smollm2._prompts.text(told)])
    shares = {}
    for name in ("sirllm", "random", "sinks"):
        cache = RetentionCache(smollm2.model, open_policy(f"{name}:budget=64,stride=16"))
        read(smollm2.model, cache, ids)
        cache.settle()
        said = smollm2.tokenizer.decode(cache.tokens.id[0].tolist())
        shares[name] = "fruit" in said
    assert shares == {"sirllm": True, "random": False, "sinks": False}
