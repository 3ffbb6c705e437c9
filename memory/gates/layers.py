"""What a model makes of a prompt at several depths, for gates that know a set of prompts.

Early layers show words, later ones what they are about; a scorer sees both. Each dimension is
standardised by sentences about nothing in particular, since raw states all point one way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...errors import ConfigError
from ...llm.twin import blocks
from .features import background, kept_in, pooled, rows_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LAYERS = 6
LEAST_SPREAD = 1e-4
"""Of a dimension, as a share of the mean one: a constant dimension says nothing."""


class LayerFeatures:
    """A function from texts to features [N, L, D], float32 on the CPU, in one forward pass.

    Args:
        model: a twin, used by nobody else at the same time, with nothing attached.
        layers: whose inputs are pooled, in ascending order; by default six, from a third of the
            depth to the end.
        kept: a file to keep in what takes seconds to compute, and depends on model and layers.

    Raises:
        ConfigError: the model has no such layers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        layers: Sequence[int] | None = None,
        kept: Path | None = None,
    ) -> None:
        depth = len(blocks(model)[1])
        self._model, self._tokenizer, self._kept = model, tokenizer, kept
        self.layers = spread_over(depth) if layers is None else tuple(layers)
        inside = all(0 <= layer < depth for layer in self.layers)
        if not self.layers or not inside or list(self.layers) != sorted(set(self.layers)):
            raise ConfigError(
                f"layers={list(self.layers)} must be ascending numbers within 0..{depth - 1};"
                " leave it out for six evenly spread ones"
            )

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Features [N, L, D] of texts."""
        return (self.raw(texts) - self._known["mean"]) / self._known["spread"]

    @property
    def background(self) -> Tensor:
        """[M, L, D]: of the sentences that are about nothing in particular."""
        return self._known["background"]

    def raw(self, texts: Sequence[str]) -> Tensor:
        """Mean states [N, L, D] as the model has them."""
        if not texts:
            return torch.empty(0, len(self.layers), self._model.config.hidden_size)
        rows = rows_of(self._tokenizer, texts)
        # Rows of one length stand together: less padding to compute.
        order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
        means = pooled(self._model, [rows[at] for at in order], self.layers)
        return means[torch.tensor(order).argsort()]

    def with_model(self, model: PreTrainedModel) -> LayerFeatures:
        """The same features by another twin, for another thread."""
        other = LayerFeatures(model, self._tokenizer, self.layers, self._kept)
        if "_known" in self.__dict__:
            other.__dict__["_known"] = self._known
        return other

    @cached_property
    def _known(self) -> dict[str, Tensor]:
        """Mean and spread [L, D] of the background, and its features."""
        found = kept_in(self._kept, self._standard)
        return found if found["layers"].tolist() == list(self.layers) else self._standard()

    def _standard(self) -> dict[str, Tensor]:
        states = self.raw(background())
        mean, spread = states.mean(0), states.std(0)
        spread = spread.clamp_min(LEAST_SPREAD * float(spread.mean()))
        layers = torch.tensor(self.layers)
        features = (states - mean) / spread
        return {"mean": mean, "spread": spread, "background": features, "layers": layers}


def spread_over(depth: int, count: int = LAYERS) -> tuple[int, ...]:
    """Layers from a third of the depth to the last one, evenly."""
    first = depth // 3
    steps = max(1, min(count, depth - first) - 1)
    return tuple(
        sorted({first + round(at * (depth - 1 - first) / steps) for at in range(steps + 1)})
    )
