"""Reading a model without sampling from it: log-probabilities, entropy, hidden states.

Knows nothing of text or of messages; everything here takes ids.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .attach import new_cache
from .decoding import read

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import Cache, PreTrainedModel

_BATCH = 8
"""Continuations scored together; each has its own copy of the prompt's KV cache."""

_WINDOW = 128
"""Positions whose logits are kept at once: [B, 128, V] float32 is what scoring takes at most."""

_PADDED_TOKENS = 4096
"""Tokens, padding included, that one pass for hidden states reads at most."""


def next_logprobs(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """ln P of every token after `ids`, [V], in nats."""
    import torch

    with torch.no_grad():
        logits = read(model, torch.tensor([ids], device=model.device), new_cache(model))
        assert logits is not None
        return logits[0].log_softmax(-1)


def sequence_logprobs(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """ln P(ids[t] | ids[:t]) for t = 1 .. T - 1: [T - 1] float32 on the CPU, in nats."""
    import torch

    row = torch.tensor([ids], device=model.device)
    with torch.no_grad():
        return _following(model, row, new_cache(model))[0].cpu()


def continuation_logprobs(
    model: PreTrainedModel, prompt: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[float]:
    """ln P(continuation | prompt) in nats for each; the prompt is read once for all of them."""
    import torch

    cache = new_cache(model)
    with torch.no_grad():
        first = read(model, torch.tensor([prompt], device=model.device), cache)
        assert first is not None
        first = first[0].log_softmax(-1)
        sums: list[float] = []
        for start in range(0, len(continuations), _BATCH):
            batch = continuations[start : start + _BATCH]
            last = start + _BATCH >= len(continuations)
            sums += _batch_logprobs(model, first, batch, cache if last else copy.deepcopy(cache))
        return sums


def _batch_logprobs(
    model: PreTrainedModel, first: Tensor, batch: Sequence[Sequence[int]], cache: Cache
) -> list[float]:
    """`first` [V] are the log-probabilities of what follows the prompt in `cache`, used up here."""
    import torch

    # Padding stands to the right, where causal attention keeps it out of what is scored.
    rows, mask = _padded(batch, model.device)
    if len(batch) > 1:
        cache.batch_repeat_interleave(len(batch))
    scores = torch.cat([first[rows[:, :1]], _following(model, rows, cache)], dim=1)
    sums: list[float] = scores.where(mask, 0.0).sum(1).tolist()
    return sums


def _following(model: PreTrainedModel, rows: Tensor, cache: Cache) -> Tensor:
    """ln P(rows[:, t] | cache, rows[:, :t]) for t >= 1: rows [B, T] -> [B, T - 1]."""
    import torch

    scores = [rows.new_zeros(rows.shape[0], 0, dtype=torch.float32)]
    for start in range(0, rows.shape[1] - 1, _WINDOW):
        inputs = rows[:, start : min(start + _WINDOW, rows.shape[1] - 1)]
        targets = rows[:, start + 1 : start + 1 + inputs.shape[1], None]
        logits = model(input_ids=inputs, past_key_values=cache, use_cache=True).logits.float()
        scores.append((logits.gather(2, targets) - logits.logsumexp(-1, True))[..., 0])
    return torch.cat(scores, dim=1)


def hidden_states(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], layers: Sequence[int] | None
) -> list[Tensor]:
    """For each row of T ids [T, D] of the last layer, or [L, T, D] of `layers`; float32, CPU."""
    import torch

    found: list[Tensor] = [torch.empty(0)] * len(rows)
    longest_first = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    while longest_first:
        size = max(1, _PADDED_TOKENS // max(1, len(rows[longest_first[0]])))
        group, longest_first = longest_first[:size], longest_first[size:]
        ids, _ = _padded([rows[index] for index in group], model.device)
        with torch.no_grad():
            states = _states(model, ids, layers).float().cpu()
        for place, index in enumerate(group):
            # A copy, so that a row does not keep its whole batch alive.
            found[index] = states[place, ..., : len(rows[index]), :].clone()
    return found


def _states(model: PreTrainedModel, ids: Tensor, layers: Sequence[int] | None) -> Tensor:
    """[B, T, D], or [B, L, T, D] for given layers."""
    import torch

    body = model.base_model
    if layers is None:
        last: Tensor = body(input_ids=ids, use_cache=False).last_hidden_state
        return last
    states = body(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    return torch.stack([states[layer] for layer in layers], dim=1)


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows as one [B, T >= 1], padded with 0 on the right, and a mask [B, T] of what is theirs."""
    import torch

    width = max(1, *map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long)
    sizes = torch.tensor([len(row) for row in rows])
    mask = torch.arange(width)[None] < sizes[:, None]
    return ids.to(device), mask.to(device)
