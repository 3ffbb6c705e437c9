"""FT-L: fine-tune one feed-forward matrix on the fact, no entry moving further than a clamp.

Zhu et al. 2020, arXiv 2012.00363; Meng et al., NeurIPS 2022, arXiv 2202.05262, appendix E.1. Adam
on the whole difference of a down-projection, projected after each step onto |x|_inf <= clamp.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, ClassVar

import torch

from ..llm.twin import patched
from .base import Change, Edit, Learnt, Patch, Progress
from .descent import descend
from .rules import least, obey, positive, share
from .side_memory import Dense
from .weight_change import WeightChanges, adding, installed, whole

if TYPE_CHECKING:
    from .workbench import Workbench


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTune:
    """Hyper-parameters, tuned for small models.

    Args:
        depth: where the edited matrix lies, as a share of the model's depth.
        steps, rate, until: Adam's, and the loss at which it ends.
        clamp: most that one edit may change an entry; 0: no limit.
    """

    name: ClassVar[str] = "ft_l"
    mergeable: ClassVar[bool] = True
    batch: ClassVar[int] = 1
    applied: ClassVar[frozenset[str]] = frozenset()
    depth: float = 0.86
    steps: int = 25
    rate: float = 0.002
    until: float = 0.02
    clamp: float = 0.01

    def __post_init__(self) -> None:
        obey(
            self,
            share(self, "depth"),
            *(positive(self, name) for name in ("steps", "rate")),
            *(least(self, name) for name in ("until", "clamp")),
        )

    def lane(self, edit: Edit) -> str:
        """One for all: each is learnt on top of those before it."""
        return ""

    def learn(
        self,
        bench: Workbench,
        edits: Sequence[Edit],
        before: Sequence[Learnt],
        progress: Progress,
        cancel: Event,
    ) -> list[Change]:
        """Learn one edit; see `Method.learn`."""
        began = time.perf_counter()
        [edit] = edits
        layer = bench.layer(self.depth)
        name = bench.down(layer)
        difference = torch.zeros_like(bench.weight(name)).requires_grad_()

        def clamped() -> None:
            if self.clamp:
                difference.clamp_(-self.clamp, self.clamp)

        with installed(bench, before):
            told = [
                bench.capture(rows, layer)
                for rows in bench.lessons(edit, (edit.prompt, *edit.paraphrases))
            ]
            with patched(bench.model, {name: adding(Dense(difference))}):
                curve = descend(
                    [difference],
                    lambda: bench.losses(told, layer).mean(),
                    steps=self.steps,
                    rate=self.rate,
                    until=self.until,
                    progress=progress,
                    cancel=cancel,
                    project=clamped,
                )
        return [
            Change(
                tensors=whole(name, difference), curve=curve, seconds=time.perf_counter() - began
            )
        ]

    def patch(self, bench: Workbench, learnt: Sequence[Learnt]) -> Patch:
        """The sum of the differences."""
        return WeightChanges(bench, learnt)
