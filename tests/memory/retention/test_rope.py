"""Models of other families: taken over to the last digit, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as t
from palimpsest.errors import CapabilityError
from palimpsest.memory.retention import RetentionCache, open_policy
from palimpsest.memory.retention.rope import Rope

from .worlds import SIZES, logits_of, made, opened, text

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
PHI = {"partial_rotary_factor": 0.5}

FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (t.LlamaForCausalLM, t.LlamaConfig, {}),
    "llama3 scaling": (t.LlamaForCausalLM, t.LlamaConfig, {"rope_parameters": LLAMA3}),
    "yarn": (t.LlamaForCausalLM, t.LlamaConfig, {"rope_parameters": YARN}),
    "qwen2": (t.Qwen2ForCausalLM, t.Qwen2Config, {}),
    "qwen3": (t.Qwen3ForCausalLM, t.Qwen3Config, {"head_dim": 32}),
    "mistral": (t.MistralForCausalLM, t.MistralConfig, {"sliding_window": None}),
    "phi, partial": (
        t.PhiForCausalLM,
        t.PhiConfig,
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    "cohere, interleaved": (t.CohereForCausalLM, t.CohereConfig, {}),
    "glm, interleaved and partial": (
        t.GlmForCausalLM,
        t.GlmConfig,
        {"head_dim": 16, "pad_token_id": 0},
    ),
    "gpt-neox, partial": (t.GPTNeoXForCausalLM, t.GPTNeoXConfig, {}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_cache_gives_the_models_own_logits(family: str) -> None:
    model_class, config_class, options = FAMILIES[family]
    model = made(model_class, config_class(**{**SIZES, **options}))
    ids = text(40)
    with torch.no_grad():
        stock = model(input_ids=ids).logits
    for chunk in (40, 7):
        ours = logits_of(model, opened(model, "full"), ids, chunk)
        assert float((ours - stock).abs().max()) < 2e-5


def test_the_pairing_is_found_out_from_the_models_own_code() -> None:
    found = {}
    for family in ("llama", "cohere, interleaved", "glm, interleaved and partial"):
        model_class, config_class, options = FAMILIES[family]
        found[family] = Rope.of(made(model_class, config_class(**{**SIZES, **options}))).pairing
    assert list(found.values()) == ["half", "interleaved", "interleaved"]


def test_raw_keys_at_a_constant_distance_have_the_factor_of_a_scaled_embedding() -> None:
    """YaRN multiplies cosines and sines: a query that reads raw keys has the factor twice."""
    model = made(t.LlamaForCausalLM, t.LlamaConfig(**SIZES, rope_parameters=YARN))
    rope = Rope.of(model)
    assert rope.scaling > 1.1
    from palimpsest.memory.retention.plan import _at

    cos, sin = _at(rope, 5)
    assert torch.allclose(cos**2 + sin**2, torch.full_like(cos, rope.scaling**4))


REFUSED: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "learned positions": (
        t.GPT2LMHeadModel,
        t.GPT2Config,
        {"n_embd": 64, "n_layer": 1, "n_head": 4, "vocab_size": 97},
        "no rotary embedding",
    ),
    "dynamic scaling": (
        t.LlamaForCausalLM,
        t.LlamaConfig,
        {**SIZES, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "rope_type='dynamic'",
    ),
    "sliding layers": (
        t.Qwen2ForCausalLM,
        t.Qwen2Config,
        {**SIZES, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        "sliding_attention",
    ),
    "a window in every layer": (
        t.MistralForCausalLM,
        t.MistralConfig,
        {**SIZES, "sliding_window": 8},
        "sliding",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_taken_over_is_refused_by_name(kind: str) -> None:
    model_class, config_class, options, message = REFUSED[kind]
    model = made(model_class, config_class(**options))
    with pytest.raises(CapabilityError, match=message):
        RetentionCache(model, open_policy("full"))
