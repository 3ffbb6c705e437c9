"""The contract of an attack: it tries to get back what was to be forgotten, and tells how much.

What it tells is numbers and names of its own, never a text of whom it attacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from threading import Event
from typing import TYPE_CHECKING, ClassVar, Protocol

from ...errors import InputError
from ..base import Sample
from ..examining import Ask, Examiner
from ..measures import rouge_l_recall

if TYPE_CHECKING:
    from ...editors.base import Patch
    from ...editors.workbench import Workbench

RECALL = "ROUGE-L recall"
"""The yardstick of attacks that look at what the model says."""

RECALL_LIMIT = 0.4
"""Recall of an answer up to which it counts as forgotten; one who never knew it says so much of it
by the words of the question alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is attacked.

    Args:
        patch: what is to have made the model forget; None: the model before.
        samples: what is to be forgotten.
        strangers: samples of the same kind that the model was never taught.
        tokens: of a reply, at most.
        cancel: set from another thread to end early.
    """

    bench: Workbench
    patch: Patch | None
    samples: tuple[Sample, ...]
    strangers: tuple[Sample, ...] = ()
    tokens: int = 48
    cancel: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        if not self.samples:
            raise InputError("samples=() leaves nothing to attack; give at least one sample")

    @property
    def examiner(self) -> Examiner:
        """Asks the bench's own model."""
        return Examiner(self.bench.model, self.bench.tokenizer, self.cancel)


@dataclass(frozen=True, slots=True)
class Leak:
    """What came back.

    Args:
        leak: by the attack's yardstick; higher is worse.
        samples: on how many.
        numbers: of its parts, by name.
        against: whom the samples were told from, where it matters.
        fair: False where one who never knew may exceed the limit, so that it is told, not judged.
    """

    leak: float
    samples: int
    numbers: Mapping[str, float] = field(default_factory=dict)
    against: str = ""
    fair: bool = True


class Attack(Protocol):
    """A frozen dataclass of settings. Deterministic."""

    name: ClassVar[str]
    yardstick: ClassVar[str]
    remedy: ClassVar[str]
    """What to do where it succeeds; goes on a sentence, without its end."""
    least: ClassVar[int]
    """Samples that it needs."""

    @property
    def limit(self) -> float:
        """The leak up to which it was stood."""

    def run(self, target: Target) -> Leak:
        """Try.

        Raises:
            Cancelled: the target's event was set.
        """


@dataclass(frozen=True, slots=True)
class Try:
    """One question of an attack.

    Args:
        kind: which of its ways.
        wanted: what is not to be said.
    """

    kind: str
    ask: Ask
    wanted: str


def tried(target: Target, tries: Sequence[Try], examiner: Examiner | None = None) -> Leak:
    """Ask; the leak is the mean recall of the way that brought most."""
    asks = [each.ask for each in tries]
    replies = (examiner or target.examiner).ask(asks, target.patch, target.tokens)
    by: dict[str, list[float]] = {}
    for each, reply in zip(tries, replies, strict=True):
        by.setdefault(each.kind, []).append(rouge_l_recall(reply.text, each.wanted))
    numbers = {kind: fmean(found) for kind, found in by.items()}
    return Leak(max(numbers.values()), len(target.samples), numbers)


def directly(samples: Sequence[Sample], kind: str = "asked") -> list[Try]:
    """Each asked as it is."""
    return [Try(kind, Ask(each.prompt), each.rest) for each in samples]
