"""Gradient ascent: training, backwards, on what is to be forgotten (Jang et al., ACL 2023,
arXiv 2210.01504)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..editors.rules import Rule, positive
from .contrast import Contrast, Step, ascent
from .student import Student


@dataclass(frozen=True, slots=True, kw_only=True)
class GradAscent(Contrast):
    """L = -mean NLL(x_f); nothing is held in place. See `Contrast` for the other settings.

    Args:
        limit: nats per token at which an answer is pushed no further. A vocabulary of 50,000 has
            ln 50,000 = 10.8: there an answer is as unlikely as one drawn at random, and going
            on would only break the model.
    """

    name: ClassVar[str] = "grad_ascent"
    asks_for_retain: ClassVar[bool] = False
    limit: float = 10.0

    def rules(self) -> tuple[Rule, ...]:
        """See `Contrast.rules`."""
        return (*Contrast.rules(self), positive(self, "limit"))

    def loss(self, student: Student, step: Step) -> Tensor:
        """See the class."""
        return ascent(student.losses(step.forget), self.limit)
