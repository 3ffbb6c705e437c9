"""What a model makes of a prompt at several depths, for gates that know a set of prompts.

Raw states all point one way. So each dimension is standardised by sentences about nothing in
particular, what varies together among these is whitened, and of what is left only the direction
counts. The early layers tell most: words and names still show there, while the middle ones show of
a question that it is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize

from ...errors import ConfigError
from ...llm.twin import blocks
from .features import background, kept_in, pooled, rows_of
from .scorers.gaussian import spectrum

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LAYERS = 6

SHRINKAGE = 0.1
"""How far the background's correlations are drawn to none before they are whitened."""

LEAST_SPREAD = 1e-4
"""Of a dimension, as a share of the mean one: a constant dimension says nothing."""


class LayerFeatures:
    """A function from texts to features [N, L, D], float32 on the CPU, in one forward pass.

    Args:
        model: a twin, used by nobody else at the same time, with nothing attached.
        layers: whose inputs are pooled, in ascending order; by default six, from the second one to
            a third of the depth.
        kept: a file to keep in what takes seconds to compute, and depends on the model and on
            these settings.
        whitened: whether more is done than to standardise each dimension.

    Raises:
        ConfigError: the model has no such layers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        layers: Sequence[int] | None = None,
        kept: Path | None = None,
        *,
        whitened: bool = True,
    ) -> None:
        depth = len(blocks(model)[1])
        self._model, self._tokenizer, self._kept = model, tokenizer, kept
        self._whitened = whitened
        self.layers = spread_over(depth) if layers is None else tuple(layers)
        inside = all(0 <= layer < depth for layer in self.layers)
        if not self.layers or not inside or list(self.layers) != sorted(set(self.layers)):
            raise ConfigError(
                f"layers={list(self.layers)} must be ascending numbers within 0..{depth - 1};"
                " leave it out for six evenly spread ones"
            )

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Features [N, L, D] of texts."""
        return self.of(self.raw(texts))

    def of(self, states: Tensor) -> Tensor:
        """Features of mean states [N, L, D], as `raw` gives them."""
        return self._seen(states, self._known)

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
        other = LayerFeatures(
            model, self._tokenizer, self.layers, self._kept, whitened=self._whitened
        )
        if "_known" in self.__dict__:
            other.__dict__["_known"] = self._known
        return other

    @cached_property
    def _known(self) -> dict[str, Tensor]:
        """What was learnt of the background, and its features."""
        found = kept_in(self._kept, self._learn)
        same = found["layers"].tolist() == list(self.layers)
        return found if same and ("directions" in found) == self._whitened else self._learn()

    def _learn(self) -> dict[str, Tensor]:
        states = self.raw(background())
        mean, spread = states.mean(0), states.std(0)
        spread = spread.clamp_min(LEAST_SPREAD * float(spread.mean()))
        known = {"mean": mean, "spread": spread, "layers": torch.tensor(self.layers)}
        if self._whitened:
            known |= _common((states - mean) / spread)
        return known | {"background": self._seen(states, known)}

    def _seen(self, states: Tensor, known: Mapping[str, Tensor]) -> Tensor:
        found: Tensor = (states - known["mean"]) / known["spread"]
        if not self._whitened:
            return found
        along = torch.einsum("nld,lrd->nlr", found, known["directions"]) * known["removed"]
        found = found - torch.einsum("nlr,lrd->nld", along, known["directions"])
        return normalize(found, dim=-1) * math.sqrt(found.shape[-1])


def _common(points: Tensor) -> dict[str, Tensor]:
    """Directions [L, R, D] in which points [N, L, D] vary together, and the share [L, R] of each
    that whitening removes. All others are left as they are, so nothing [D, D] is needed."""
    parts = [spectrum(points[:, at]) for at in range(points.shape[1])]
    variance = (1 - SHRINKAGE) * torch.stack([values for values, _ in parts]) + SHRINKAGE
    directions = torch.stack([directions for _, directions in parts])
    return {"directions": directions, "removed": 1 - (SHRINKAGE / variance).sqrt()}


def spread_over(depth: int, count: int = LAYERS) -> tuple[int, ...]:
    """Layers from the second one to a third of the depth, evenly."""
    first = min(1, depth - 1)
    last = max(first, depth // 3)
    steps = max(1, min(count, last - first + 1) - 1)
    return tuple(sorted({first + round(at * (last - first) / steps) for at in range(steps + 1)}))
