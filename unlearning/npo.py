"""NPO: negative preference optimisation (Zhang et al., COLM 2024, arXiv 2404.05868)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..editors.rules import Rule, least, positive
from .contrast import Contrast, Step, preference
from .student import Student


@dataclass(frozen=True, slots=True, kw_only=True)
class Npo(Contrast):
    """L = -gamma (2 / beta) mean log sigmoid(beta (NLL(x_f) - NLL_ref(x_f))) + retain L_r.

    L_r = mean NLL(x_r). The first two NLL are sums over an answer's tokens (equation 3). The
    reference is the model as it was before this request, earlier ones in place. What is forgotten
    already pulls no more, so no limit is needed. See `Contrast` for the other settings.

    Args:
        beta: 0 would be gradient ascent; the higher, the sooner the pull ends.
        gamma, retain: weights of the two parts.
    """

    name: ClassVar[str] = "npo"
    beta: float = 0.1
    gamma: float = 1.0
    retain: float = 1.0

    def rules(self) -> tuple[Rule, ...]:
        """See `Contrast.rules`."""
        return (
            *Contrast.rules(self),
            *(positive(self, name) for name in ("beta", "gamma")),
            least(self, "retain"),
        )

    def known(self, student: Student, step: Step, seed: int) -> tuple[Tensor, ...]:
        """NLL_ref, [N]."""
        return (sums(student, step),)

    def loss(self, student: Student, step: Step) -> Tensor:
        """See the class."""
        [reference] = step.known
        forget = preference(sums(student, step) - reference, self.beta)
        return self.gamma * forget + self.retain * self.kept(student, step)


def sums(student: Student, step: Step) -> Tensor:
    """[N]: NLL in nats, summed over the tokens of each answer that is to be forgotten."""
    return student.losses(step.forget) * step.forget.lengths
