"""Two scores, each in units of what the background gets, and their mean.

The relative Mahalanobis distance knows how a set spreads, the nearest neighbours what is in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from .base import Scorer, State, nested, part_of
from .knn import Knn
from .mahalanobis import Mahalanobis

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Fused:
    """See the module.

    Args:
        shrinkage, k: of its parts.
    """

    name: ClassVar[str] = "fused"
    shrinkage: float = 0.5
    k: int = 3

    @property
    def parts(self) -> dict[str, Scorer]:
        """What is fused."""
        return {"far": Mahalanobis(shrinkage=self.shrinkage), "near": Knn(k=self.k)}

    def fit(self, inside: Tensor, background: Tensor) -> State:
        """Both parts, and where each is centred."""
        state: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            learnt = part.fit(inside, background)
            state |= nested(name, learnt)
            usual = part.score(learnt, background)
            state[f"{name}.scale"] = torch.stack([usual.mean(), usual.std().clamp_min(1e-6)])
        return state

    def score(self, state: State, features: Tensor) -> Tensor:
        """The mean of both [n]."""
        total = torch.zeros(len(features))
        for name, part in self.parts.items():
            own = part_of(state, name)
            centre, scale = own["scale"]
            total += (part.score(own, features) - centre) / scale
        return total / len(self.parts)
