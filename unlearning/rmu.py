"""RMU: states of what is to be forgotten are steered to nowhere (Li et al., WMDP, ICML 2024,
arXiv 2403.03218)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from ..editors.rules import Rule, least, positive, share
from ..errors import ConfigError
from ..llm.twin import blocks
from .base import Request
from .contrast import Contrast, Step
from .student import Lesson, Student

if TYPE_CHECKING:
    from ..editors.workbench import Workbench


@dataclass(frozen=True, slots=True, kw_only=True)
class Rmu(Contrast):
    """L = |h(x_f) - c u|^2 / D + retain |h(x_r) - h_ref(x_r)|^2 / D, the mean over tokens.

    h [D] are states that one layer gives, of the tokens of an answer and of the one before it, u a
    unit vector drawn by the request's seed, c its length (equations 1 and 2). So layers above that
    one are left alone, and training ends there. See `Contrast` for the other settings.

    Args:
        layer: whose states are steered, as a share of the model's depth; not the last one.
        steer: c, as a multiple of the mean length of h_ref(x_f), so that one setting suits models
            whose states differ in length (as in Dang et al., arXiv 2408.06223).
        retain: weight of the second part.
    """

    name: ClassVar[str] = "rmu"
    depth: float = 0.3
    layer: float = 0.45
    steer: float = 2.0
    retain: float = 1.0

    def rules(self) -> tuple[Rule, ...]:
        """See `Contrast.rules`."""
        return (
            *Contrast.rules(self),
            ("layer", self.depth <= self.layer < 1, f"within [depth={self.depth}, 1)"),
            share(self, "layer"),
            positive(self, "steer"),
            least(self, "retain"),
        )

    def steps(self, bench: Workbench, student: Student, request: Request) -> list[Step]:
        """See `Contrast.steps`.

        Raises:
            ConfigError: the layer is the model's last one, above which no states can be seen.
        """
        if bench.layer(self.layer) >= bench.depth - 1:
            raise ConfigError(
                f"rmu: layer={self.layer} is the last of {bench.depth} layers; choose a lower share"
            )
        return Contrast.steps(self, bench, student, request)

    def known(self, student: Student, step: Step, seed: int) -> tuple[Tensor, ...]:
        """c u [D], and h_ref(x_r) [K, D]."""
        assert step.retain is not None
        forget = self._states(student, step.forget)
        draw = torch.Generator().manual_seed(seed)
        u = torch.randn(forget.shape[-1], generator=draw).to(forget.device)
        length = self.steer * forget.norm(dim=-1).mean()
        return length * u / u.norm(), self._states(student, step.retain)

    def loss(self, student: Student, step: Step) -> Tensor:
        """See the class."""
        aim, before = step.known
        assert step.retain is not None
        forget = self._states(student, step.forget)
        stay = mse_loss(self._states(student, step.retain), before)
        return mse_loss(forget, aim.expand_as(forget)) + self.retain * stay

    def _states(self, student: Student, lesson: Lesson) -> Tensor:
        """[K, D], of the tokens of the answers and those before which they begin."""
        counted = lesson.rows.target.clone()
        counted[:, :-1] |= lesson.rows.target[:, 1:]
        return student.states(lesson, self._at(student))[counted].float()

    def _at(self, student: Student) -> int:
        return round(self.layer * (len(blocks(student.model)[1]) - 1))
