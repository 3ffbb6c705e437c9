"""A few of the samples are taught again: do the others come back with them?

What is hidden and not gone returns in a few steps (Hu et al., ICLR 2025, arXiv 2406.13356).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ...llm.twin import patched
from ..base import Sample, Work
from ..examining import Examiner
from ..lessons import row
from ..student import Lesson, Shape, Student, Study
from .base import RECALL, RECALL_LIMIT, Leak, Target, directly, tried

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ...llm.places import Delta

BATCH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Relearn:
    """A LoRA on all layers, on top of the patch, learns the first samples; the rest are asked. Of a
    model before unlearning nothing is taught: it knows.

    Args:
        share: of the samples that are taught, one at least.
        passes, rate, rank: of learning.
    """

    name: ClassVar[str] = "relearn"
    yardstick: ClassVar[str] = RECALL
    remedy: ClassVar[str] = (
        "let nobody train the model on these texts, and unlearn again after any fine-tuning"
    )
    least: ClassVar[int] = 2
    share: float = 0.25
    passes: int = 8
    rate: float = 5e-4
    rank: int = 8
    limit: float = RECALL_LIMIT

    def run(self, target: Target) -> Leak:
        """See `Attack`."""
        count = max(1, round(self.share * len(target.samples)))
        taught, rest = target.samples[:count], target.samples[count:]
        without = tried(target, directly(rest)).leak
        if target.patch is None:
            return Leak(without, len(rest), {"without": without})
        student = self._taught(target, taught)
        examiner = Examiner(student.model, target.bench.tokenizer, target.cancel)
        found = tried(target, directly(rest), examiner).leak
        numbers = {"without": without, "rise": found - without, "taught": float(count)}
        return Leak(found, len(rest), numbers)

    def _taught(self, target: Target, samples: Sequence[Sample]) -> Student:
        shape = Shape(depth=0.0, rank=self.rank, alpha=2.0 * self.rank, dropout=0.0)
        student = Student(target.bench, shape, seed=0)

        def loss(lesson: tuple[Lesson, Mapping[str, Delta]]) -> Tensor:
            with patched(student.model, lesson[1]):
                return student.losses(lesson[0]).mean()

        by_length = sorted(samples, key=lambda each: len(each.prompt) + len(each.rest))
        parts = [by_length[at : at + BATCH] for at in range(0, len(by_length), BATCH)]
        lessons = [_lesson(student, target, part) for part in parts]
        study = Study(lessons=lessons, loss=loss, passes=self.passes, rate=self.rate)
        study.run(student, Work(cancel=target.cancel), seed=0)
        return student


@torch.no_grad()
def _lesson(
    student: Student, target: Target, samples: Sequence[Sample]
) -> tuple[Lesson, Mapping[str, Delta]]:
    """A batch, and the patch as it opens for its rows."""
    assert target.patch is not None
    rows = [row(target.bench, each.prompt, each.rest) for each in samples]
    opened = target.patch.open([each.prompt for each in samples])
    return student.read(rows), opened.deltas
