"""Free energy of a small classifier (Liu et al. 2020, arXiv 2010.03759).

Its classes are clusters of the set; score = T logsumexp(f / T), equation 4. The background is what
the paper calls auxiliary outliers: the loss pushes its energy above a margin and that of the set
below one, equation 9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn.functional import cross_entropy, normalize

from ....errors import ConfigError
from .base import State
from .clusters import centres

if TYPE_CHECKING:
    from torch import Tensor

INSIDE, OUTSIDE = 5.0, -5.0
"""Least score of the set and greatest of the background that cost nothing."""


@dataclass(frozen=True, slots=True)
class Energy:
    """See the module.

    Args:
        classes: clusters at most; a quarter of a small set.
        steps, rate, decay: of Adam, on all prompts at once.
        push: weight of the energies in the loss.
    """

    name: ClassVar[str] = "energy"
    classes: int = 4
    steps: int = 100
    rate: float = 0.05
    decay: float = 1e-4
    push: float = 0.1

    def __post_init__(self) -> None:
        if self.classes < 1 or self.steps < 1:
            raise ConfigError(f"classes={self.classes} and steps={self.steps} must be 1 or more")

    def fit(self, inside: Tensor, background: Tensor) -> State:
        """One linear layer, [K, L D] and [K]."""
        own, other = _flat(inside), _flat(background)
        count = min(self.classes, max(1, len(own) // 4))
        start, owner = centres(own, count)
        weight = (start * own.norm(dim=-1).mean()).requires_grad_()
        bias = torch.zeros(len(start), requires_grad=True)
        optimiser = torch.optim.AdamW([weight, bias], lr=self.rate, weight_decay=self.decay)
        with torch.enable_grad():
            for _ in range(self.steps):
                logits, others = own @ weight.T + bias, other @ weight.T + bias
                low = (INSIDE - logits.logsumexp(-1)).relu().square().mean()
                high = (others.logsumexp(-1) - OUTSIDE).relu().square().mean()
                loss = cross_entropy(logits, owner) + self.push * (low + high)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return {"weight": weight.detach(), "bias": bias.detach()}

    def score(self, state: State, features: Tensor) -> Tensor:
        """Minus the free energy [n], at temperature 1."""
        return (_flat(features) @ state["weight"].T + state["bias"]).logsumexp(-1)


def _flat(features: Tensor) -> Tensor:
    """[n, L D], each layer of length 1."""
    return normalize(features, dim=-1).flatten(1)
