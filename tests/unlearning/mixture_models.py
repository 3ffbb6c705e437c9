"""Random mixtures of experts over the byte-level vocabulary of the tiny Llama."""

from __future__ import annotations

import torch
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # so that routers choose
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
FAMILIES = ("mixtral", "olmoe", "qwen2_moe")


def mixture(family: str, vocabulary: int) -> PreTrainedModel:
    """Three layers; of qwen2_moe the first is dense."""
    shape = {**SHAPE, "vocab_size": vocabulary}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "mixtral":
            return MixtralForCausalLM(
                MixtralConfig(**shape, intermediate_size=48, num_local_experts=4)
            ).eval()
        if family == "olmoe":
            return OlmoeForCausalLM(
                OlmoeConfig(**shape, intermediate_size=48, num_experts=4)
            ).eval()
        return Qwen2MoeForCausalLM(
            Qwen2MoeConfig(
                **shape,
                intermediate_size=48,
                moe_intermediate_size=48,
                shared_expert_intermediate_size=48,
                num_experts=4,
                mlp_only_layers=[0],
            )
        ).eval()
