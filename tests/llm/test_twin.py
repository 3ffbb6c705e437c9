"""A twin: the same weights in modules of its own, and running only a part of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from palimpsest.errors import CapabilityError
from palimpsest.llm.twin import (
    blocks,
    down_projection,
    from_block,
    inputs_of,
    matrix,
    patched,
    twin,
    up_to_block,
)
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
FAMILIES: dict[str, tuple[Callable[[], PretrainedConfig], str]] = {
    "Llama": (lambda: LlamaConfig(**SIZES), "model.layers.2.mlp.down_proj"),
    "Qwen": (lambda: Qwen3Config(**SIZES), "model.layers.2.mlp.down_proj"),
    "Gemma": (lambda: Gemma2Config(**SIZES), "model.layers.2.mlp.down_proj"),
    "GPT-2": (
        lambda: GPT2Config(vocab_size=97, n_embd=32, n_layer=4, n_head=4),
        "transformer.h.2.mlp.c_proj",
    ),
    "GPT-NeoX": (
        lambda: GPTNeoXConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=80,
            num_hidden_layers=4,
            num_attention_heads=4,
        ),
        "gpt_neox.layers.2.mlp.dense_4h_to_h",
    ),
}
IDS = torch.tensor([[5, 17, 42, 8, 3], [9, 9, 1, 60, 2]])


def model_of(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family][0]())
    assert isinstance(model, PreTrainedModel)
    return model.eval()


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_down_projection_is_found_by_its_shape(family: str) -> None:
    model = model_of(family)
    name = down_projection(model, 2)
    assert name == FAMILIES[family][1]
    weight = matrix(model.get_submodule(name))
    assert weight.shape[0] == 32 < weight.shape[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_from_a_layer_upwards_gives_what_a_whole_pass_gives(family: str) -> None:
    model = twin(model_of(family))
    whole = logits(model)
    name, _ = blocks(model)
    with inputs_of(model, f"{name}.2") as seen:
        logits(model)
    with from_block(model, 2, seen[f"{name}.2"]):
        assert torch.equal(logits(model), whole)
    assert torch.equal(logits(model), whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_patch_changes_a_twin_and_not_the_model(family: str) -> None:
    model = model_of(family)
    second = twin(model)
    before = logits(model)
    with patched(second, {down_projection(second, 2): lambda inputs, output: output + 1}):
        assert not torch.allclose(logits(second), before)
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(second), before)


def test_a_twin_shares_the_weights_and_none_of_the_hooks() -> None:
    model = model_of("Llama")
    handle = model.model.layers[0].register_forward_pre_hook(lambda *_: pytest.fail("called"))
    second = twin(model)
    handle.remove()
    for one, other in zip(model.parameters(), second.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()
        assert one.requires_grad and not other.requires_grad
    assert second.model.embed_tokens.weight is second.lm_head.weight or not (
        model.config.tie_word_embeddings
    )


def test_a_pass_up_to_a_layer_leaves_the_rest_out() -> None:
    model = twin(model_of("Llama"))
    whole = logits(model)
    with up_to_block(model, 1), inputs_of(model, "model.layers.1", "model.norm") as seen:
        logits(model)
    with torch.no_grad():
        rotary = model.model.rotary_emb(seen["model.layers.1"], torch.arange(5)[None])
        ended = model.model.layers[1](
            seen["model.layers.1"], position_embeddings=rotary, attention_mask=None
        )
    assert torch.allclose(seen["model.norm"], ended, atol=1e-6)
    assert torch.equal(logits(model), whole)


def test_a_mixture_of_experts_has_no_single_down_projection() -> None:
    config = MixtralConfig(**SIZES, num_local_experts=2)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(CapabilityError, match="no single down-projection"):
        down_projection(model, 1)


def test_a_layer_beyond_the_model_is_named() -> None:
    with pytest.raises(CapabilityError, match=r"layer=4 must lie within 0\.\.3"):
        down_projection(model_of("Llama"), 4)
