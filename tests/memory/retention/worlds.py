"""Small random models, and what one layer of them must answer, computed by hand in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from palimpsest.memory.retention import RetentionCache, open_policy
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

VOCABULARY = 97

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
}


def made(model: type[Any], config: Any) -> PreTrainedModel:
    """A random model, always the same one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built: PreTrainedModel = model(config).eval()
    return built


@cache
def llama(layers: int = 2) -> PreTrainedModel:
    """A Llama with two query heads to a KV head, whose attention is far from flat."""
    model = made(LlamaForCausalLM, LlamaConfig(**{**SIZES, "num_hidden_layers": layers}))
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data *= 12
        layer.self_attn.k_proj.weight.data *= 12
    return model


def text(length: int, rows: int = 1, seed: int = 1) -> Tensor:
    """Random ids [rows, length]."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (rows, length), generator=rng)


def logits_of(model: PreTrainedModel, cache: RetentionCache, ids: Tensor, chunk: int) -> Tensor:
    """Logits at every token [B, T, V], read in chunks of at most `chunk`, and observed."""
    parts, done = [], 0
    with torch.no_grad(), cache.attached(model):
        while done < ids.shape[1]:
            most = chunk if cache.room is None else min(chunk, cache.room)
            some = ids[:, done : done + most]
            logits = model(input_ids=some, past_key_values=cache).logits
            cache.observe(some, logits)
            parts.append(logits)
            done += some.shape[1]
    return torch.cat(parts, dim=1)


def opened(model: PreTrainedModel, spec: str, **options: Any) -> RetentionCache:
    """An empty cache with the policy of a spec."""
    return RetentionCache(model, open_policy(spec, **options))


def by_hand(model: PreTrainedModel, ids: Tensor, distance: Tensor) -> Tensor:
    """Logits [T, V] of a model of one layer, in which query i reads key j at `distance[i, j]`, and
    not at all where that is negative. In float64, with angles as the model makes them."""
    layer, core = model.model.layers[0], model.model
    attention = layer.self_attn
    with torch.no_grad():
        hidden = core.embed_tokens(ids)
        normed = layer.input_layernorm(hidden)
        t = ids.shape[1]

        def heads(x: Tensor) -> Tensor:
            return x.view(t, -1, attention.head_dim).transpose(0, 1).double()

        q, k, v = (
            heads(p(normed)[0]) for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        group = len(q) // len(k)
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        angle = distance.clamp(min=0).double()[..., None] * core.rotary_emb.inv_freq.double()
        first, second = q.chunk(2, -1)
        a, b = k.chunk(2, -1)
        same = torch.einsum("htc,hsc->htsc", first, a) + torch.einsum("htc,hsc->htsc", second, b)
        cross = torch.einsum("htc,hsc->htsc", second, a) - torch.einsum("htc,hsc->htsc", first, b)
        scores = (same * angle.cos() - cross * angle.sin()).sum(-1) * attention.scaling
        weights = scores.masked_fill(distance < 0, -torch.inf).softmax(-1)
        mixed = (weights @ v).transpose(0, 1).reshape(1, t, -1).float()
        hidden = hidden + attention.o_proj(mixed)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        logits: Tensor = model.lm_head(core.norm(hidden))[0]
    return logits


def causal(t: int) -> Tensor:
    """Distances [T, T] of a text read in full."""
    at = torch.arange(t)
    return at[:, None] - at[None, :]


def positions(cache: RetentionCache) -> Sequence[int]:
    """Positions of the tokens near, of the first row."""
    kept: list[int] = cache.tokens.position[0].tolist()
    return kept


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file may become longer than that inside the block."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
