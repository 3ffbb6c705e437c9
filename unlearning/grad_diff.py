"""GradDiff: ascent on what is to be forgotten, descent on what is to stay (Liu et al., CoLLAs 2022,
arXiv 2203.12817)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..editors.rules import Rule, least, positive
from .contrast import Contrast, Step, ascent
from .student import Student


@dataclass(frozen=True, slots=True, kw_only=True)
class GradDiff(Contrast):
    """L = -gamma mean NLL(x_f) + retain mean NLL(x_r). See `Contrast` for the other settings.

    Args:
        gamma, retain: weights of the two parts.
        limit: see `GradAscent`.
    """

    name: ClassVar[str] = "grad_diff"
    gamma: float = 1.0
    retain: float = 1.0
    limit: float = 10.0

    def rules(self) -> tuple[Rule, ...]:
        """See `Contrast.rules`."""
        return (
            *Contrast.rules(self),
            *(positive(self, name) for name in ("gamma", "limit")),
            least(self, "retain"),
        )

    def loss(self, student: Student, step: Step) -> Tensor:
        """See the class."""
        forget = ascent(student.losses(step.forget), self.limit)
        return self.gamma * forget + self.retain * self.kept(student, step)
