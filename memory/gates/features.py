"""What a model makes of a prompt, as one whitened vector: the mean of an early layer's states.

Raw states of a decoder all point one way (cosines of unrelated prompts are near .9); centred and
whitened by those of sentences about nothing in particular, they tell prompts apart.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        name, layers = blocks(model)
        self.layer = max(1, round(len(layers) / 8)) if layer is None else layer
        self._block = f"{name}.{self.layer}"

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Features [N, D] of texts."""
        encoded = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        rows = [ids or [self._start] for ids in encoded]
        mean, whitening = self._background
        return (self._pool(rows) - mean) @ whitening

    def with_model(self, model: PreTrainedModel) -> PromptFeatures:
        """The same features by another twin, for another thread."""
        other = PromptFeatures(model, self._tokenizer, self.layer, self._kept)
        if "_background" in self.__dict__:
            other.__dict__["_background"] = self._background
        return other

    @property
    def _start(self) -> int:
        for id in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id):
            if isinstance(id, int):
                return id
        return 0

    def _pool(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Mean state of each row, without its first token, whose state is the same in all."""
        pooled = [self._mean(rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]
        return torch.cat(pooled)

    @torch.no_grad()
    def _mean(self, rows: Sequence[Sequence[int]]) -> Tensor:
        ids, mask = padded(rows, self._model.device)
        with up_to_block(self._model, self.layer), inputs_of(self._model, self._block) as seen:
            self._model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        counted = mask.clone()
        counted[:, 0] = mask[:, 1] == 0 if mask.shape[1] > 1 else 1
        weights = counted[..., None].float()
        states = seen[self._block].float()
        return ((states * weights).sum(1) / weights.sum(1)).cpu()

    @cached_property
    def _background(self) -> tuple[Tensor, Tensor]:
        """Mean [D] and whitening [D, D] of sentences about nothing in particular."""
        if self._kept is None or not self._kept.exists():
            mean, whitening = self._whitening()
            if self._kept is not None:
                self._kept.parent.mkdir(parents=True, exist_ok=True)
                new = self._kept.with_name(self._kept.name + ".new")
                save_file({"mean": mean, "whitening": whitening}, new)
                new.replace(self._kept)
            return mean, whitening
        kept = load_file(self._kept)
        return kept["mean"], kept["whitening"]

    def _whitening(self) -> tuple[Tensor, Tensor]:
        encoded = self._tokenizer(list(background()), add_special_tokens=False)
        states = self._pool(encoded["input_ids"])
        mean = states.mean(0)
        spread = (states - mean).T @ (states - mean) / len(states)
        even = torch.eye(len(spread)) * spread.trace() / len(spread)
        values, vectors = torch.linalg.eigh(((1 - SHRINKAGE) * spread + SHRINKAGE * even).double())
        # As it lies in the file, since products are rounded by how a matrix lies in memory.
        return mean, (vectors * values.rsqrt()).float().contiguous()


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
