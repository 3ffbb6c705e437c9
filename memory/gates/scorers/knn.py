"""Cosine to the nearest prompts of the set.

Sun et al. 2022 (arXiv 2204.06507) take the k-th nearest; the mean of all k knows an odd prompt of
the set when it is asked again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch.nn.functional import normalize

from ....errors import ConfigError
from .base import State

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Knn:
    """See the module; the mean over layers.

    Args:
        k: how many neighbours, at most a quarter of the set: of a handful of prompts, the nearest.
    """

    name: ClassVar[str] = "knn"
    k: int = 3

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"k={self.k} must be 1 or more: how many neighbours count")

    def fit(self, inside: Tensor, background: Tensor) -> State:
        """The prompts' features, of length 1."""
        return {"bank": normalize(inside, dim=-1)}

    def score(self, state: State, features: Tensor) -> Tensor:
        """The mean cosine [n]."""
        bank = state["bank"]
        k = min(self.k, max(1, len(bank) // 4))
        return neighbours(bank, features, k).mean((1, 2))


def neighbours(bank: Tensor, features: Tensor, k: int) -> Tensor:
    """Cosines [n, L, k] to the k nearest of unit points [N, L, D], the nearest first."""
    cosines = normalize(features, dim=-1).transpose(0, 1) @ bank.permute(1, 2, 0)
    return cosines.topk(min(k, len(bank)), dim=-1).values.transpose(0, 1)
