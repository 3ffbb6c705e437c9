"""The contract of a gate: it decides once per request and row, on the prompt's tokens only.

What a gate opens (a side memory, an adapter) it does not know. One that needs features of a prompt
is given a function that makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..record import RecordId

if TYPE_CHECKING:
    from torch import Tensor

Features = Callable[[Sequence[str]], "Tensor"]
"""Texts -> one row of features each, [N, D] float32 on the CPU; of a text alone, whatever stands
beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is to be recognised.

    Args:
        id: of the record it stands for.
        inside: prompts that are about it.
        outside: prompts that are not, as its user named them.
        subject: what it is about; a prompt without it is not.
    """

    id: RecordId
    inside: tuple[str, ...]
    outside: tuple[str, ...] = ()
    subject: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How near a prompt comes to an entry.

    Args:
        entry: the entry's id.
        score: higher means more surely inside.
        threshold: the score above which it opens.
        vetoed: it would have opened, and the entry's subject is not in the prompt.
    """

    entry: RecordId
    score: float
    threshold: float
    vetoed: bool = False

    @property
    def margin(self) -> float:
        """How far above the threshold."""
        return self.score - self.threshold

    @property
    def open(self) -> bool:
        """Whether the prompt is about the entry."""
        return self.margin > 0 and not self.vetoed


class Gate(Protocol):
    """Many entries, each with a score for any prompt and a threshold of its own.

    What it holds of an entry depends on that entry alone, so entries come and go in any order.
    """

    def fit(self, entries: Sequence[Entry]) -> None:
        """Hold these entries and no others."""

    def score(self, prompts: Sequence[str]) -> Tensor:
        """[N, E]: of each prompt for each entry; -inf where an entry's subject is missing."""

    @property
    def thresholds(self) -> Tensor:
        """[E]: the score above which an entry opens."""

    def explain(self, prompt: str, k: int = 3) -> list[Verdict]:
        """The entries that come nearest, by margin, the nearest first."""


def route(gate: Gate, entries: Sequence[Entry], prompts: Sequence[str]) -> list[Verdict | None]:
    """For each prompt the entry it is most surely about, or None."""
    if not entries:
        return [None] * len(prompts)
    scores, thresholds = gate.score(prompts), gate.thresholds
    nearest = (scores - thresholds).argmax(dim=1).tolist()
    verdicts = [
        Verdict(
            entry=entries[best].id,
            score=float(scores[row, best]),
            threshold=float(thresholds[best]),
        )
        for row, best in enumerate(nearest)
    ]
    return [verdict if verdict.open else None for verdict in verdicts]
