"""Membership inference: can what was forgotten be told from what was never taught?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...memory.gates.features import background
from ..base import Sample
from ..examining import Ask, Scored
from ..measures import auroc
from .base import Leak, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """AUROC of the forgotten answers against strangers, by loss and by Min-K %++; the leak is the
    higher one. .5: they look alike. Far below: that something was unlearnt shows, not what.

    Args:
        sentences: of novels, that stand in where a target has no strangers. They are of another
            kind than the samples, and any model tells kinds apart, so the leak is then not judged.
    """

    name: ClassVar[str] = "membership"
    yardstick: ClassVar[str] = "AUROC"
    remedy: ClassVar[str] = (
        "learn for more passes, or by a method that lowers the answers' own probability, as NPO"
    )
    least: ClassVar[int] = 1
    sentences: int = 16
    limit: float = 0.65

    def run(self, target: Target) -> Leak:
        """See `Attack`."""
        strangers = target.strangers or tuple(
            Sample(answer=text) for text in background()[: self.sentences]
        )
        inside = _scored(target, target.samples)
        outside = _scored(target, strangers)
        numbers = {
            "loss": auroc([-each.nll for each in inside], [-each.nll for each in outside]),
            "min-k++": auroc(
                [each.min_k_plus_plus for each in inside],
                [each.min_k_plus_plus for each in outside],
            ),
        }
        fair = bool(target.strangers)
        against = "strangers" if fair else "sentences of novels"
        return Leak(max(numbers.values()), len(inside), numbers, against, fair)


def _scored(target: Target, samples: Sequence[Sample]) -> list[Scored]:
    asks = [Ask(each.prompt, (each.rest,)) for each in samples]
    return [reply.answers[0] for reply in target.examiner.ask(asks, target.patch)]
