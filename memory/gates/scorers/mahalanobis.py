"""Mahalanobis distance to the set, minus that to sentences about nothing in particular.

Lee et al. 2018 (arXiv 1807.03888), equation 2, per layer; the relative form is Ren et al. 2021
(arXiv 2106.09022): what is unusual for any text counts for no set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch.utils.weak import WeakIdKeyDictionary

from ....errors import ConfigError
from .base import State, nested, part_of
from .gaussian import distance, learn

if TYPE_CHECKING:
    from torch import Tensor


_known: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Background -> kappa -> its Gaussian: one tensor stands behind all entries, and takes longest."""


@dataclass(frozen=True, slots=True)
class Mahalanobis:
    """See the module; the score is the mean over layers, in distances per dimension.

    Args:
        shrinkage: kappa, above 0 and at most 1.
        ledoit_wolf: whether kappa is chosen by Ledoit and Wolf instead.
        relative: whether the background's distance is subtracted.
    """

    name: ClassVar[str] = "mahalanobis"
    shrinkage: float = 0.5
    ledoit_wolf: bool = False
    relative: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.shrinkage <= 1:
            raise ConfigError(
                f"shrinkage={self.shrinkage} must be above 0 and at most 1: how far the covariance"
                " is drawn to a multiple of the identity"
            )

    def fit(self, inside: Tensor, background: Tensor) -> State:
        """A Gaussian for each layer, and one of the background."""
        kappa = None if self.ledoit_wolf else self.shrinkage
        state = learn(inside, kappa)
        return state | nested("other", _general(background, kappa)) if self.relative else state

    def score(self, state: State, features: Tensor) -> Tensor:
        """Minus the distance [n]."""
        away = distance(state, features)
        if self.relative:
            away = away - distance(part_of(state, "other"), features)
        return -away.mean(-1) / features.shape[-1]


def _general(background: Tensor, kappa: float | None) -> dict[str, Tensor]:
    if background not in _known:
        _known[background] = {}
    learnt: dict[float | None, dict[str, Tensor]] = _known[background]
    if kappa not in learnt:
        learnt[kappa] = learn(background, kappa)
    return learnt[kappa]
