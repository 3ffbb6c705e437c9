"""Task vectors: what learning a task adds to the weights is taken away from them (Ilharco et al.,
ICLR 2023, arXiv 2212.04089)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..editors.rules import Rule, positive
from .contrast import Contrast, Step
from .student import Student


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskVector(Contrast):
    """W - scale D, where D is what fine-tuning on the forget set would add: L = mean NLL(x_f).

    What is learnt lowers the loss, and its opposite is applied (section 3). See `Contrast` for the
    other settings.

    Args:
        scale: how much of it is taken away. The paper chooses it on held-out data for each task;
            there is none here.
    """

    name: ClassVar[str] = "task_vector"
    asks_for_retain: ClassVar[bool] = False
    scale: float = 1.0

    def rules(self) -> tuple[Rule, ...]:
        """See `Contrast.rules`."""
        return (*Contrast.rules(self), positive(self, "scale"))

    def loss(self, student: Student, step: Step) -> Tensor:
        """See the class."""
        return student.losses(step.forget).mean()

    def outcome(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The opposite: NAME/up is the one that is scaled."""
        return {
            name: -self.scale * tensor if name.endswith("/up") else tensor
            for name, tensor in Contrast.outcome(self, tensors).items()
        }
