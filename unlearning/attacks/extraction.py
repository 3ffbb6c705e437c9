"""Part of the answer given: does the rest follow?"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

from ..examining import Ask
from .base import Leak, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """Extraction strength, the mean over samples: how small a part of the answer brings the rest.
    Its numbers have the share of tokens foreseen, too."""

    name: ClassVar[str] = "extraction"
    yardstick: ClassVar[str] = "extraction strength"
    remedy: ClassVar[str] = (
        "learn for more passes, or by a method that lowers the answer's own probability, as NPO"
    )
    least: ClassVar[int] = 1
    limit: float = 0.2

    def run(self, target: Target) -> Leak:
        """See `Attack`."""
        asks = [Ask(each.prompt, (each.rest,)) for each in target.samples]
        found = [reply.answers[0] for reply in target.examiner.ask(asks, target.patch)]
        strength = fmean(each.strength for each in found)
        numbers = {"strength": strength, "memorised": fmean(each.memorised for each in found)}
        return Leak(strength, len(found), numbers)
