"""Where keys stand, against attention written out by hand for a model of one layer."""

from __future__ import annotations

import pytest
import torch
from palimpsest.memory.retention.rope import Rope
from torch import Tensor

from .worlds import by_hand, causal, llama, logits_of, opened, positions, text

CLOSE = 2e-5


def assert_reads(logits: Tensor, distance: Tensor, ids: Tensor) -> None:
    assert float((logits[0] - by_hand(llama(1), ids, distance)).abs().max()) < CLOSE


def test_the_hand_written_model_is_the_model() -> None:
    ids = text(30)
    with torch.no_grad():
        assert_reads(llama(1)(input_ids=ids).logits, causal(30), ids)


@pytest.mark.parametrize("spec", ["sinks:budget=16,stride=4,sinks=2", "random:budget=16,stride=4"])
def test_kept_tokens_stand_at_their_slots_as_if_nothing_lay_between(spec: str) -> None:
    """StreamingLLM: originals 0, 1, 2, 3, 6, 7, 8 and a new token 9 are numbered 0 to 7."""
    ids, model = text(50), llama(1)
    cache = opened(model, spec)
    logits_of(model, cache, ids[:, :47], 47)
    logits = logits_of(model, cache, ids[:, 47:48], 1)
    kept = positions(cache)
    assert len(kept) < 48
    distance = torch.full((48, 48), -1)
    distance.fill_diagonal_(0)  # rows that are not looked at
    distance[47, kept] = torch.arange(len(kept) - 1, -1, -1)
    by = by_hand(model, ids[:, :48], distance)
    assert float((logits[0, 0] - by[47]).abs().max()) < CLOSE


@pytest.mark.parametrize(
    ("window", "sinks", "stride"), [(8, 2, 4), (7, 3, 5), (12, 0, 1), (5, 9, 3)]
)
@pytest.mark.parametrize("chunk", [60, 1, 6])
def test_lm_infinite_is_a_lambda_mask_with_a_ceiling(
    window: int, sinks: int, stride: int, chunk: int
) -> None:
    ids, t = text(60), 60
    cache = opened(llama(1), f"lm_infinite:window={window},sinks={sinks},stride={stride}")
    distance = causal(t)
    far = (distance >= window) & (torch.arange(t)[None] < sinks)
    distance = torch.where(far, window, torch.where(distance >= window, -1, distance))
    assert_reads(logits_of(llama(1), cache, ids, chunk), distance, ids)


def test_angles_are_the_models_own_where_it_was_trained_and_exact_beyond() -> None:
    rope = Rope.of(llama())
    trained = llama().config.max_position_embeddings
    at = torch.tensor([[0, 7, trained - 1, trained, 1_000_003]])
    cos, _ = rope.angles(at)
    rounded = (at[0].float()[:, None] * rope.frequencies).cos()
    exact = (at[0].double()[:, None] * rope.frequencies.double()).cos().float()
    assert torch.equal(cos[0, 0, :3], rounded[:3])
    assert torch.equal(cos[0, 0, 3:], exact[3:])
    assert float((rounded[-1] - exact[-1]).abs().max()) > 1e-3
