"""SimNPO: NPO without a reference model (Fan et al., arXiv 2410.07163)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..editors.rules import Rule, least, positive
from .contrast import Contrast, Step, preference
from .student import Student


@dataclass(frozen=True, slots=True, kw_only=True)
class SimNpo(Contrast):
    """L = -gamma (2 / beta) mean log sigmoid(beta (NLL(x_f) / |x_f| - delta)) + retain L_r.

    L_r = mean NLL(x_r) / |x_r|. NLL is divided by how many tokens an answer has, so that long ones
    are not forgotten first (equation 4). See `Contrast` for the other settings.

    Args:
        beta: the higher, the sooner the pull ends.
        delta: nats per token at which half of the pull is left.
        gamma, retain: weights of the two parts.
    """

    name: ClassVar[str] = "simnpo"
    beta: float = 4.5
    delta: float = 0.0
    gamma: float = 0.125
    retain: float = 1.0

    def rules(self) -> tuple[Rule, ...]:
        """See `Contrast.rules`."""
        return (
            *Contrast.rules(self),
            *(positive(self, name) for name in ("beta", "gamma")),
            *(least(self, name) for name in ("delta", "retain")),
        )

    def loss(self, student: Student, step: Step) -> Tensor:
        """See the class."""
        forget = preference(student.losses(step.forget) - self.delta, self.beta)
        return self.gamma * forget + self.retain * self.kept(student, step)
