"""Facts changed in the weights, and changed back: what an edit is, and what a method must do.

A method never writes a weight of the model. What it learns of an edit is a `Change`, a few tensors;
what it makes of many changes is a `Patch` on named layers, attached for a turn and taken off again.
So the base model is bit-identical without them, and undoing an edit is leaving its change out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from threading import Event
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from ..errors import InputError
from ..llm.places import Delta
from ..memory.gates.base import Verdict
from ..memory.record import Record, RecordId, Scope, Source

if TYPE_CHECKING:
    from torch import Tensor

    from .workbench import Workbench

META = "edit"
"""Key of a record's `meta` under which an edit lies."""

EDITOR = "editor"
"""Key of a record's `meta` that names the one editor it is for; without it, it is for all."""

Progress = Callable[[int, int], None]
"""Called as (steps done, steps expected)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A fact as it shall be from now on.

    Args:
        prompt: what asks for it: a question, or the beginning of a sentence.
        target: the answer, or how the sentence goes on.
        subject: whom or what it is about; has to occur in the prompt.
        paraphrases: other ways to ask; learnt from, and checked.
        locality: prompts whose answers must not move, with those answers ("" if none is known).
    """

    prompt: str
    target: str
    subject: str | None = None
    paraphrases: tuple[str, ...] = ()
    locality: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name in ("prompt", "target"):
            if not getattr(self, name).strip():
                raise InputError(f"{name}={getattr(self, name)!r} says nothing; give it words")
        if self.subject is not None and self.subject.casefold() not in self.prompt.casefold():
            raise InputError(
                f"subject={self.subject!r} does not occur in prompt={self.prompt!r}; name it as"
                " the prompt does, or leave it out"
            )
        if not all(paraphrase.strip() for paraphrase in self.paraphrases):
            raise InputError("paraphrases has one that says nothing; leave it out")

    @property
    def asked(self) -> str:
        """What the prompt asks, however it is written: equal where case, spaces and punctuation at
        the ends are all that differs."""
        return _bare(self.prompt)

    @property
    def text(self) -> str:
        """As a statement."""
        return f"{self.prompt.rstrip()} {self.target.strip()}"

    def record(self, scope: Scope, *, source: Source = "user", **rest: Any) -> Record:
        """The ledger's record of it. It holds in all sessions of its user and agent."""
        meta = {META: {name: value for name, value in asdict(self).items() if value}}
        return Record(
            text=self.text, scope=scope, kind="edit", source=source, meta=_plain(meta), **rest
        )

    @classmethod
    def of(cls, record: Record) -> Self:
        """The edit that a record is of.

        Raises:
            InputError: it is of none.
        """
        try:
            given = record.meta[META]
            return cls(
                prompt=given["prompt"],
                target=given["target"],
                subject=given.get("subject"),
                paraphrases=tuple(given.get("paraphrases", ())),
                locality=tuple((prompt, answer) for prompt, answer in given.get("locality", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"record {record.id} is no edit: {error!r}") from error

    def contradicts(self, other: Edit) -> bool:
        """Whether they ask the same and answer differently."""
        return self.asked == other.asked and _bare(self.target) != _bare(other.target)

    @property
    def seed(self) -> int:
        """Of whatever is drawn to learn it: the same edit is learnt the same way everywhere."""
        content = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
        return int.from_bytes(hashlib.sha256(content.encode()).digest()[:7])


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a method learnt of one edit.

    Args:
        tensors: on the CPU, by names of the method's own.
        numbers: plain JSON numbers it needs beside them (a threshold, a radius).
        curve: loss after each step; empty for a closed form.
        seconds: what learning it took.
    """

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[float, ...] = ()
    seconds: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def finite(self) -> bool:
        """Whether all its values are numbers."""
        return all(bool(tensor.isfinite().all()) for tensor in self.tensors.values())

    @property
    def digest(self) -> str:
        """SHA-256, hex, of tensors and numbers: equal if and only if they are, bit for bit."""
        seal = hashlib.sha256(json.dumps(dict(self.numbers), sort_keys=True).encode())
        for name in sorted(self.tensors):
            seal.update(f"{name} {tuple(self.tensors[name].shape)}".encode())
            seal.update(_bytes(self.tensors[name]))
        return seal.hexdigest()

    @property
    def marks(self) -> list[bytes]:
        """What can be looked for in files to tell whether it is there."""
        return [_bytes(tensor)[:64] for tensor in self.tensors.values() if tensor.nbytes >= 64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """An edit with what was learnt of it."""

    id: RecordId
    edit: Edit
    change: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A patch as it answers some prompts.

    Args:
        deltas: by layer; the rows of a batch are in the order of the prompts. Empty: nothing fits,
            and the model is its base, bit for bit.
        verdicts: for each prompt the edit it was routed to, or None. A method without a gate, whose
            changes apply to everything, leaves them out.
    """

    deltas: Mapping[str, Delta]
    verdicts: tuple[Verdict | None, ...] = ()


class Patch(Protocol):
    """What many changes come to: made from them alone, so it can always be made again."""

    @property
    def adds(self) -> bool:
        """Whether it adds to what a layer gives, rather than replacing it; see `Weights.adds`."""

    @property
    def layers(self) -> frozenset[str]:
        """Every module it may change."""

    def open(self, prompts: Sequence[str]) -> Opened:
        """Decide for each prompt, from its text alone."""

    def explain(self, prompt: str) -> Mapping[str, Any]:
        """Why it opens or does not, as plain JSON values: ids and numbers, never texts."""

    def merged(self) -> Mapping[str, Tensor] | None:
        """Weight change [D_out, D_in] of each layer, for a checkpoint to be served elsewhere; None
        where a gate decides per prompt, which a checkpoint cannot hold."""


class Method(Protocol):
    """A way to edit: a frozen dataclass of its hyper-parameters.

    Edits are learnt in lanes. Within a lane each is learnt on top of those before it, by age, so
    undoing one has those after it learnt again; lanes know nothing of each other. Learning is
    deterministic: equal edits in a lane lead to equal changes.
    """

    name: ClassVar[str]
    applied: ClassVar[frozenset[str]]
    """Names of those that only matter when a patch is applied: changing them has nothing learnt
    again."""
    mergeable: ClassVar[bool]
    """Whether a checkpoint can hold its patches; see `Patch.merged`."""

    @property
    def batch(self) -> int:
        """Edits of a lane that are learnt together, at least 1."""

    def lane(self, edit: Edit) -> str:
        """Which lane an edit is in."""

    def learn(
        self,
        bench: Workbench,
        edits: Sequence[Edit],
        before: Sequence[Learnt],
        progress: Progress,
        cancel: Event,
    ) -> list[Change]:
        """Learn up to `batch` edits on top of those `before` in their lane: a change for each.

        Raises:
            Cancelled: `cancel` was set; nothing is kept.
            EditFailed: the loss is no number, or a target cannot be learnt.
        """

    def patch(self, bench: Workbench, learnt: Sequence[Learnt]) -> Patch:
        """What the changes of all lanes come to, given by age."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a model answers one prompt.

    Args:
        logprob: ln P(target | prompt), in nats, summed over the target's tokens.
        accuracy: share of the target's tokens that are the most likely ones, each given the right
            ones before it (teacher forcing).
        text: what it says by itself, greedily, as many tokens as the target has.
    """

    prompt: str
    logprob: float
    accuracy: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of an edit.

    Args:
        id: of the edit's record.
        method: which method holds it, with its settings.
        before, after: the edit's own prompt, without the edit and with it.
        paraphrases: with it; only those that the edit names.
        locality: for each prompt that must not move, the share of its answer's tokens that stay.
        gate: score and threshold for the edit's own prompt; None where there is no gate.
        seconds: what learning it took.
        curve: the loss after each step.
        bytes: what is kept of it.
        advice: what to do if it does not hold; empty if it does.
    """

    id: RecordId
    edit: Edit
    method: Mapping[str, Any]
    before: Answer
    after: Answer
    paraphrases: tuple[Answer, ...] = ()
    locality: tuple[float, ...] = ()
    gate: Verdict | None = None
    seconds: float = 0.0
    curve: tuple[float, ...] = ()
    bytes: int = 0
    advice: str = ""

    @property
    def verified(self) -> bool:
        """Whether the model now says the target, also when asked in the other ways, and whether
        what must not move has not moved."""
        return not self.advice


def _bytes(tensor: Tensor) -> bytes:
    import torch  # by now it is there; a command that only lists needs none

    # As bytes first, since numpy has no bfloat16.
    flat = tensor.detach().cpu().contiguous().flatten()
    plain: bytes = flat.view(torch.uint8).numpy().tobytes()
    return plain


def _bare(text: str) -> str:
    """Words only, so that case, spaces and punctuation at the ends do not matter."""
    return " ".join(text.casefold().split()).strip(" .?!:;,'\"")


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    plain: Any = json.loads(json.dumps(value))
    return plain
