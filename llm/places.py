"""The four places where memory enters a transformer, and how contributions compose.

A contribution is what one memory hands over for one turn. It knows the memory's name and the
records behind it, and nothing of the ledger or of the agent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from ..errors import ConflictError, PlaceError

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from torch import Tensor
    from transformers import Cache as TransformersCache
    from transformers import PreTrainedModel

Place = Literal["prompt", "cache", "weights", "logits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What a memory gives to one turn.

    Args:
        place: set by each kind of contribution.
        memory: name of the memory, as shown in errors and traces.
        records: ids of the records behind it, most relevant first.
        explain: why, as plain JSON values; kept in the turn's trace. Ids and numbers, never texts.
    """

    place: Place
    memory: str
    records: tuple[str, ...] = ()
    explain: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One piece of remembered text.

    Args:
        text: as the model will read it, without fence or label. Of several lines, those after the
            first are indented; a memory marks what others said in several lines (`pieces.quoted`).
        records: ids of the records it was made from.
        score: relevance; comparable within one memory only.
        tokens: length of `text` under the model's tokenizer.
        form: `raw` text or a `summary` of it.
        source: who said it ("user", "assistant", "document", "tool"); where several speak, the
            first, and the text says who the others are.
        when: time of the record, UTC.
    """

    text: str
    records: tuple[str, ...]
    score: float
    tokens: int
    form: Literal["raw", "summary"] = "raw"
    source: str = "user"
    when: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt(Contribution):
    """Text for the prompt: notes (background, best first) and turns (messages, in order)."""

    place: Literal["prompt"] = "prompt"
    notes: tuple[Note, ...] = ()
    turns: tuple[BaseMessage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache(Contribution):
    """A KV cache for this turn: an eviction policy, or one that already holds entries.

    A model has one KV cache, so a turn takes one of these.

    Args:
        build: called once per request, before the prompt is read; returns the cache that
            generation then owns.
        earlier: ids of the records that it has read in earlier turns; `records` are those that it
            reads in this one. They are as many as the session is long, and no part of its trace.
        holds: the conversation so far is in it, or in `turns`; the prompt is what comes after.
        turns: messages of the conversation that it has not read yet, oldest first.
        seen: tokens it has read; with 0 it is empty, and the prompt begins with the system message.
        unread: ids that come before the prompt; they were given or sampled, and not read.
        endless: it may read more than the model's window.
        done: takes the cache back after a request, however that ended, and the ids that have to be
            read before anything else. It may then add numbers to `explain`.
    """

    place: Literal["cache"] = "cache"
    build: Callable[[PreTrainedModel], TransformersCache] = field(compare=False)
    earlier: tuple[str, ...] = ()
    holds: bool = False
    turns: tuple[BaseMessage, ...] = ()
    seen: int = 0
    unread: tuple[int, ...] = ()
    endless: bool = False
    done: Callable[[TransformersCache, Sequence[int]], None] | None = field(
        default=None, compare=False
    )


@runtime_checkable
class LiveCache(Protocol):
    """A KV cache that takes part in reading: it owns attention, and decides what it keeps."""

    def attached(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """`model` reads and writes it inside the block."""

    @property
    def room(self) -> int | None:
        """Tokens that may be read at once, at least 1; None: any number."""

    @property
    def observes(self) -> bool:
        """Whether it must see the logits of every token."""

    def observe(self, ids: Tensor, logits: Tensor) -> None:
        """The tokens just read [B, T], and the logits at them [B, T, V]."""

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens, those of a pass that broke off."""


Delta = Callable[["Tensor", "Tensor"], "Tensor"]
"""(input [B, T, D_in], output [B, T, D_out]) of a linear layer -> its new output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights(Contribution):
    """A patch on named linear layers; the base weights are never touched.

    `open(prompt_ids [B, T])` is called once per request and decides the gate from the prompt alone;
    it returns a delta for each layer that is to be patched, or an empty mapping (gate closed: the
    model is then bit-identical to its base). `layers` names every module it may patch. A patch that
    `adds` goes with any other on the same layer; one that replaces a layer's output wants it alone.
    """

    place: Literal["weights"] = "weights"
    layers: frozenset[str]
    adds: bool = False
    open: Callable[[Tensor], Mapping[str, Delta]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Logits(Contribution):
    """A change to the next-token distribution, before sampling options apply.

    `process(ids [B, T], logits [B, V]) -> [B, V]`, with `ids` the prompt and all tokens so far.
    Several apply one after the other, in the order in which the memories were given.
    """

    place: Literal["logits"] = "logits"
    process: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Composition:
    """The contributions of one turn, sorted by place and free of conflicts."""

    prompts: tuple[Prompt, ...] = ()
    cache: Cache | None = None
    weights: tuple[Weights, ...] = ()
    logits: tuple[Logits, ...] = ()

    @property
    def attachments(self) -> tuple[Contribution, ...]:
        """Everything the model itself must attach: all but the prompts."""
        return (*((self.cache,) if self.cache else ()), *self.weights, *self.logits)


def compose(contributions: Sequence[Contribution]) -> Composition:
    """Sort contributions by place.

    Raises:
        ConflictError: two KV caches, or two patches that replace one layer; names both memories.
    """
    caches = [c for c in contributions if isinstance(c, Cache)]
    if len(caches) > 1:
        raise ConflictError(
            f"memories {caches[0].memory!r} and {caches[1].memory!r} both bring a KV cache, and a"
            " turn has one; keep one of them"
        )
    owner: dict[str, str] = {}
    patches = [c for c in contributions if isinstance(c, Weights)]
    weights = tuple(sorted(patches, key=lambda patch: patch.adds))  # what is added comes last
    for patch in weights:
        for layer in sorted(patch.layers):
            if layer in owner and not patch.adds:
                raise ConflictError(
                    f"memories {owner[layer]!r} and {patch.memory!r} both patch layer {layer!r};"
                    " move one of them to another layer"
                )
            owner[layer] = patch.memory
    return Composition(
        prompts=tuple(c for c in contributions if isinstance(c, Prompt)),
        cache=caches[0] if caches else None,
        weights=weights,
        logits=tuple(c for c in contributions if isinstance(c, Logits)),
    )


def check_place(memory: str, place: Place, model: str, accepts: frozenset[Place]) -> None:
    """Raise PlaceError when `model` has no such place; called when an agent is built."""
    if place not in accepts:
        raise PlaceError(
            f"memory {memory!r} enters at {place!r}, but model {model!r} accepts"
            f" {sorted(accepts)}; serve the model in this process to use it"
        )
