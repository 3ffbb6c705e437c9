"""The scorer of O3 (Gao et al. 2025, arXiv 2407.10223, equations 10 and 11, and its official code).

For each layer s_l = -1/2 d_l - gamma c_l as coded, d the squared Mahalanobis distance and c the
cosine to the nearest prompt of the set; a linear one-class SVM makes one number of the layers. Two
signs are odd: a large cosine lowers s_l, and as all s_l are negative, the SVM, which separates
prompts from the origin, takes low ones for inside. `sign="fixed"` has +gamma c_l, and the origin
where the background lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn.functional import normalize

from ....errors import ConfigError
from .base import State
from .gaussian import distance, learn
from .knn import neighbours

if TYPE_CHECKING:
    from torch import Tensor

SIGNS = {"coded": -1.0, "fixed": 1.0}


@dataclass(frozen=True, slots=True)
class O3:
    """See the module.

    Args:
        sign: `coded` or `fixed`.
        shrinkage: kappa within 0..1; 0 is the pseudo-inverse, as coded.
        gamma: weight of the cosine.
        nu: share of the set's prompts that the SVM takes for outliers, within 0..1.
    """

    name: ClassVar[str] = "o3"
    sign: str = "coded"
    shrinkage: float = 0.0
    gamma: float = 1000.0
    nu: float = 0.1

    def __post_init__(self) -> None:
        if self.sign not in SIGNS:
            raise ConfigError(f"sign={self.sign!r} is not known; use one of {sorted(SIGNS)}")
        if not 0 <= self.shrinkage <= 1 or not 0 < self.nu <= 1:
            raise ConfigError(
                f"shrinkage={self.shrinkage} and nu={self.nu} must lie within 0..1, nu above 0"
            )

    def fit(self, inside: Tensor, background: Tensor) -> State:
        """A Gaussian and the prompts' directions for each layer, and the SVM as w [L] and rho."""
        from sklearn.svm import OneClassSVM

        state = learn(inside, self.shrinkage, rank=len(inside))
        state["bank"] = normalize(inside, dim=-1)
        layers = self.layers(state, inside)
        other = self.layers(state, background).mean(0)
        state["origin"] = other if self.sign == "fixed" else torch.zeros_like(other)
        layers = layers - state["origin"]
        scale = layers.abs().mean().clamp_min(1e-6)
        svm = OneClassSVM(kernel="linear", nu=self.nu).fit((layers / scale).numpy())
        weights = torch.tensor(svm.coef_[0].tolist()) / scale
        return state | {"w": weights, "rho": torch.tensor(-float(svm.intercept_[0]))}

    def layers(self, state: State, features: Tensor) -> Tensor:
        """Scores [n, L] before they are made one."""
        cosine = neighbours(state["bank"], features, 1)[..., 0]
        return -0.5 * distance(state, features) + SIGNS[self.sign] * self.gamma * cosine

    def score(self, state: State, features: Tensor) -> Tensor:
        """The SVM's decision function [n]."""
        layers = self.layers(state, features) - state["origin"]
        return layers @ state["w"] - state["rho"]
