"""Making a pretrained model forget: what a request is, and what a method must do.

Two words are kept apart. A method that *suppresses* puts an adapter behind a gate: asked about what
was to be forgotten the model answers otherwise, and the weights below still hold it. A method that
*changes weights* alters them for every prompt, and a checkpoint of the new ones can be written.
Neither proves by itself that a thing is gone: a certificate attacks the result, see `certificate`.

As with edits, no weight is written here. What a method learns of a request is a `Change`; what many
changes come to is a `Patch`, attached for a turn and taken off again, so a request can be undone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from threading import Event
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, runtime_checkable

from ..editors.base import Change, Patch, Progress
from ..errors import InputError
from ..memory.record import Record, RecordId, Scope, Source

if TYPE_CHECKING:
    from torch import Tensor

    from ..editors.workbench import Workbench
    from .certificate import Certificate

__all__ = ["Change", "Means", "Method", "Patch", "Receipt", "Request", "Sample", "Unlearnt", "Work"]

META = "request"
"""Key of a record's `meta` under which lies what is kept of a request."""

UNLEARNER = "unlearner"
"""Key of a record's `meta` that names the one unlearner it is for; without it, it is for all."""

Means = Literal["suppresses", "changes weights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Something that is to be forgotten.

    Args:
        answer: what the model is not to say any more; with no question, a text by itself.
        question: what asks for it.
        paraphrases: other ways to ask; nothing is learnt from them, they are attacks to be stood.
    """

    answer: str
    question: str = ""
    paraphrases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.answer.strip():
            raise InputError(f"answer={self.answer!r} says nothing; give what is to be forgotten")

    @property
    def prompt(self) -> str:
        """What may bring it up: the question, or the first half of a text."""
        if self.question.strip():
            return self.question
        words = self.answer.split()
        return " ".join(words[: max(1, len(words) // 2)])

    @property
    def cues(self) -> tuple[str, ...]:
        """What a gate is to know it by: the question; of a text, also the whole of it."""
        return (self.prompt,) if self.question.strip() else (self.prompt, self.answer)

    @property
    def rest(self) -> str:
        """What would follow the prompt."""
        if self.question.strip():
            return self.answer
        words = self.answer.split()
        return " ".join(words[max(1, len(words) // 2) :]) or self.answer

    @property
    def fingerprint(self) -> str:
        """SHA-256, hex, of its words: equal however case and spaces differ."""
        words = " ".join(f"{self.question}\n{self.answer}".casefold().split())
        return hashlib.sha256(words.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a model is to forget.

    Args:
        name: of the person, text or skill; shown in lists, and kept when the texts are dropped.
        samples: questions with their answers, or texts.
        reason: why, for whoever reads the ledger later.
        alternatives: what to answer instead, drawn at random for each sample; by default refusals.
            For a task with fixed labels give the labels.
        retain: what must not suffer, for methods that ask for such a set; those that do not, leave
            it unread.
    """

    name: str
    samples: tuple[Sample, ...]
    reason: str = ""
    alternatives: tuple[str, ...] = ()
    retain: tuple[Sample, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.name.isprintable():
            raise InputError(f"name={self.name!r} must be printable words, to find the request by")
        if not self.samples:
            raise InputError(
                f"request {self.name!r} has no samples, so there is nothing to forget; give texts"
                " or questions with answers"
            )

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Of its samples, in order."""
        return tuple(sample.fingerprint for sample in self.samples)

    @property
    def seed(self) -> int:
        """Of whatever is drawn to learn it: equal requests are learnt alike everywhere."""
        content = json.dumps([self.name, *self.fingerprints])
        return int.from_bytes(hashlib.sha256(content.encode()).digest()[:7])

    def record(self, scope: Scope, *, source: Source = "user", **rest: Any) -> Record:
        """The ledger's record of it, without its texts: name, reason and fingerprints. It holds in
        all sessions of its user and agent. Its name is no text that a query to `forget` finds: who
        has everything with a person's name forgotten, does not want that to be remembered again."""
        kept = {"name": self.name, "reason": self.reason, "samples": list(self.fingerprints)}
        text = f"A request to unlearn {len(self.samples)} samples."
        meta = {META: kept} | dict(rest.pop("meta", {}))
        return Record(text=text, scope=scope, kind="request", source=source, meta=meta, **rest)

    def material(self, request: Record) -> Record:
        """The record of its texts, which hangs on that of the request and can be erased alone."""
        return Record(
            text=json.dumps(asdict(self), ensure_ascii=False),
            scope=request.scope,
            kind="material",
            source=request.source,
            parents=(request.id,),
            meta={key: value for key, value in request.meta.items() if key == UNLEARNER},
        )

    @classmethod
    def of(cls, material: Record) -> Self:
        """The request that a record of its texts holds.

        Raises:
            InputError: it holds none.
        """
        try:
            return cls.from_plain(json.loads(material.text))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"record {material.id} holds no request: {error!r}") from error

    @classmethod
    def from_plain(cls, given: Mapping[str, Any]) -> Self:
        """From plain JSON values, as `dataclasses.asdict` gives them."""
        parts = {name: _samples(given[name]) for name in ("samples", "retain")}
        return cls(**{**given, **parts, "alternatives": tuple(given["alternatives"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlearnt:
    """What a method learnt of one request, whose texts may be gone by now."""

    id: RecordId
    name: str
    change: Change


Keep = Callable[[int, Mapping[str, "Tensor"]], None]
"""Called after each whole pass as (passes done, tensors), so that a crash costs one pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How learning is watched, ended early, and gone on with.

    Args:
        progress: called as (steps done, steps expected).
        cancel: set from another thread to end early.
        begun: passes done earlier, and the tensors they left.
        keep: see `Keep`.
    """

    progress: Progress = lambda done, expected: None
    cancel: Event = field(default_factory=Event)
    begun: tuple[int, Mapping[str, Tensor]] = (0, {})
    keep: Keep = lambda passes, tensors: None


class Method(Protocol):
    """A way to unlearn: a frozen dataclass of its hyper-parameters.

    Requests are learnt one after the other. Each is learnt on top of those before it, and stays as
    it is when one of those is undone: its texts may be gone, so it could not be learnt again.
    """

    name: ClassVar[str]
    means: ClassVar[Means]
    asks_for_retain: ClassVar[bool]
    """Whether its loss has a part for what must not suffer; where a request names nothing,
    sentences about nothing in particular stand in."""

    def learn(
        self, bench: Workbench, request: Request, before: Sequence[Unlearnt], work: Work
    ) -> Change:
        """Learn one request.

        Raises:
            Cancelled: the event was set; `work.keep` has the last whole pass.
            UnlearnFailed: the loss is no number, or the request cannot be told from what stays.
        """

    def patch(self, bench: Workbench, learnt: Sequence[Unlearnt]) -> Patch:
        """What the changes of all requests come to, given by age."""


@runtime_checkable
class Noting(Protocol):
    """A patch that speaks: it has the prompt say something instead of changing a layer."""

    def note(self, prompts: Sequence[str]) -> str | None:
        """What is to stand before these messages; None if they are about no request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of a request. Numbers and a name; never a text of it.

    Args:
        id: of the request's record.
        method: which method holds it, with its settings.
        means: what it did; see the module.
        samples: how many.
        seconds: what learning took.
        curve: the loss after each pass.
        bytes: what is kept of it.
        gate: calibration numbers; empty where there is no gate.
        certificate: what attacks found; None if none were made.
        dropped: id of the signed report that its texts are in no file; None while they are.
        advice: what to do if it does not hold; empty if it does.
    """

    id: RecordId
    name: str
    reason: str
    method: Mapping[str, Any]
    means: Means
    samples: int
    seconds: float = 0.0
    curve: tuple[float, ...] = ()
    bytes: int = 0
    gate: Mapping[str, float] = field(default_factory=dict)
    certificate: Certificate | None = None
    dropped: str | None = None
    advice: str = ""

    @property
    def verified(self) -> bool:
        """Whether it was attacked, and stood."""
        return self.certificate is not None and not self.advice


def _samples(given: Sequence[Mapping[str, Any]]) -> tuple[Sample, ...]:
    return tuple(
        Sample(**{**each, "paraphrases": tuple(each.get("paraphrases", ()))}) for each in given
    )
