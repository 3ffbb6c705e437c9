"""What was forgotten may come back through a memory: by the prompt, whatever the weights hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..base import Sample
from ..measures import rouge_l_recall
from .base import Leak, Target

Recalled = Callable[[str], Sequence[str]]
"""A question -> the texts that memories would put before the model."""

STANDS = 0.5
"""ROUGE-L recall above which an answer stands in a text."""


def backflow(recalled: Recalled, samples: Sequence[Sample]) -> Leak:
    """Share of samples whose answer stands in a text that its question, or a paraphrase, brings."""
    highest = [
        max(
            (
                rouge_l_recall(text, each.rest)
                for question in (each.prompt, *each.paraphrases)
                for text in recalled(question)
            ),
            default=0.0,
        )
        for each in samples
    ]
    share = sum(each > STANDS for each in highest) / len(highest)
    return Leak(share, len(highest), {"highest recall": max(highest)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Backflow:
    """The same as an attack on memories; a patch of the model is nothing to it."""

    name: ClassVar[str] = "backflow"
    yardstick: ClassVar[str] = "share of answers that a memory brings"
    remedy: ClassVar[str] = "forget the records that hold it first (`palimpsest forget`)"
    least: ClassVar[int] = 1
    recalled: Recalled
    limit: float = 0.0

    def run(self, target: Target) -> Leak:
        """See `Attack`."""
        return backflow(self.recalled, target.samples)
