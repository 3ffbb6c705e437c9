"""What a model makes of a prompt, as one whitened vector: the mean of an early layer's states.

Raw states of a decoder all point one way (cosines of unrelated prompts are near .9); centred and
whitened by those of sentences about nothing in particular, they tell prompts apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from ...llm.twin import blocks, inputs_of, up_to_block

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHRINKAGE = 0.1
"""How far the background's covariance is drawn to a multiple of the identity."""

BATCH = 32


class PromptFeatures:
    """A function from texts to features [N, D], float32 on the CPU.

    Args:
        model: a twin, used by nobody else at the same time.
        layer: whose input is pooled; by default an eighth of the way up, where words still show.
        kept: a file to keep in what takes seconds to compute, and depends on the model alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        layer: int | None = None,
        kept: Path | None = None,
    ) -> None:
        self._model, self._tokenizer, self._kept = model, tokenizer, kept
        depth = len(blocks(model)[1])
        self.layer = max(1, round(depth / 8)) if layer is None else layer

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Features [N, D] of texts."""
        mean, whitening = self._background
        return (self._pool(texts) - mean) @ whitening

    def with_model(self, model: PreTrainedModel) -> PromptFeatures:
        """The same features by another twin, for another thread."""
        other = PromptFeatures(model, self._tokenizer, self.layer, self._kept)
        if "_background" in self.__dict__:
            other.__dict__["_background"] = self._background
        return other

    def _pool(self, texts: Sequence[str]) -> Tensor:
        rows = rows_of(self._tokenizer, texts)
        return pooled(self._model, rows, (self.layer,))[:, 0]

    @cached_property
    def _background(self) -> tuple[Tensor, Tensor]:
        """Mean [D] and whitening [D, D] of sentences about nothing in particular."""
        found = kept_in(self._kept, self._whitening)
        return found["mean"], found["whitening"]

    def _whitening(self) -> dict[str, Tensor]:
        states = self._pool(background())
        mean = states.mean(0)
        spread = (states - mean).T @ (states - mean) / len(states)
        even = torch.eye(len(spread)) * spread.trace() / len(spread)
        values, vectors = torch.linalg.eigh(((1 - SHRINKAGE) * spread + SHRINKAGE * even).double())
        # As it lies in the file, since products are rounded by how a matrix lies in memory.
        return {"mean": mean, "whitening": (vectors * values.rsqrt()).float().contiguous()}


def rows_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text; a text without any is one token that starts or ends texts."""
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    start = next((id for id in ends if isinstance(id, int)), 0)
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [ids or [start] for ids in encoded]


@torch.no_grad()
def pooled(model: PreTrainedModel, rows: Sequence[Sequence[int]], layers: Sequence[int]) -> Tensor:
    """Mean input of some layers [N, L, D] over each row's tokens, without the first one, whose
    state is the same in all."""
    batches = [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]
    return torch.cat([means(model, batch, layers).cpu() for batch in batches])


def means(model: PreTrainedModel, rows: Sequence[Sequence[int]], layers: Sequence[int]) -> Tensor:
    """Likewise of one batch, on the model's device, and with gradients."""
    ids, mask = padded(rows, model.device)
    name, _ = blocks(model)
    names = [f"{name}.{layer}" for layer in layers]
    with up_to_block(model, max(layers)), inputs_of(model, *names) as seen:
        model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    counted = mask.clone()
    counted[:, 0] = mask[:, 1] == 0 if mask.shape[1] > 1 else 1
    weights = counted[..., None].float()
    found = [(seen[name].float() * weights).sum(1) / weights.sum(1) for name in names]
    return torch.stack(found, dim=1)


def kept_in(path: Path | None, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What a file holds; computed and kept in it where there is none."""
    if path is not None and path.exists():
        return load_file(path)
    found = compute()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        save_file(found, new)
        new.replace(path)
    return found


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask [N, T], padded on the right."""
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(list(tokens))
        mask[row, : len(tokens)] = 1
    return ids.to(device), mask.to(device)


@cache
def background() -> tuple[str, ...]:
    """Sentences that are about nothing in particular, from novels in the public domain."""
    text = resources.files(__package__).joinpath("background.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())
