"""The contract of a store: records in, contributions out, and exact forgetting.

A store is a projection of the ledger: everything it holds is derived from records and can be
rebuilt from them. It knows nothing of the agent, and of the model only what `StoreContext` gives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

from ..errors import ConfigError
from ..llm.places import Contribution, Place
from .record import Kind, Record, RecordId, Role, Scope, Source, Turn
from .search.base import Where, bound

if TYPE_CHECKING:
    from ..llm.base import LLM, Capability
    from .vectors import Embedder

__all__ = ["Artefact", "Capabilities", "Cue", "Erasure", "Lens", "Memory", "StoreContext"]

CHOICES = {"kind": get_args(Kind), "role": get_args(Role), "source": get_args(Source)}
"""What a record can have, by key."""


TOLD: frozenset[Kind] = frozenset(get_args(Kind)) - {"edit", "request", "material"}
"""What stands for itself as text; the others are orders to change the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lens:
    """What a recall is narrowed to; by default nothing is left out.

    Args:
        where: "form", "kind", "role", "session", "source" or "speaker" -> the value that a record
            must have, or several of which it must have one.
        since, until: when it must have begun to hold: from the first to just before the second.
        as_of: a time from which to look: what held then, superseded since or not, and nothing
            newer.
        k: most notes; by default what the memory is configured to.

    Raises:
        ConfigError: `where` has another key, no value, or one that no record has; a time has no
            zone; or k is below 1.
    """

    where: Where = field(default_factory=dict)
    since: datetime | None = None
    until: datetime | None = None
    as_of: datetime | None = None
    k: int | None = None

    def __post_init__(self) -> None:
        for key, values in bound(self.where):
            for value in values:
                if value not in CHOICES.get(key, values):
                    raise ConfigError(f"{key}={value!r} must be one of {CHOICES[key]}")
        for name in ("since", "until", "as_of"):
            time = getattr(self, name)
            if time is not None and time.tzinfo is None:
                raise ConfigError(f"{name}={time} has no time zone; give it one, UTC for choice")
        if self.k is not None and self.k < 1:
            raise ConfigError(f"k={self.k} must be at least 1")

    @property
    def end(self) -> datetime | None:
        """The first time that is too late, by `until` and `as_of`."""
        just_after = self.as_of and self.as_of + timedelta(microseconds=1)
        return min((time for time in (self.until, just_after) if time), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cue:
    """What a recall may look at.

    Args:
        message: the user's new message.
        scope: whose memories; its session is the one that is speaking.
        recent: turns of this session before the message, oldest first; at most as many as the
            largest `Capabilities.recent_turns` among the agent's memories.
        budget: tokens this memory may put into the prompt; a hard limit.
        now: time of the turn, UTC.
        lens: what is to be left out.
        record: id of the message's record; what was said from it on does not count. None: nothing
            is being answered.
    """

    message: str
    scope: Scope
    recent: tuple[Turn, ...] = ()
    budget: int
    now: datetime
    lens: Lens = Lens()
    record: RecordId | None = None


@dataclass(frozen=True, slots=True)
class Artefact:
    """A thing a store holds, and a record it was made from: one edge of the lineage."""

    record: RecordId
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What one store's `forget` did.

    Args:
        erased: ids it held something of, and now holds nothing of.
        unknown: ids it held nothing of.
        rebuilt: keys of artefacts that mixed a forgotten record with others and were made anew.
    """

    store: str
    erased: frozenset[RecordId]
    unknown: frozenset[RecordId]
    rebuilt: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What the core needs to know of a store; it never asks for a store's name.

    Args:
        recent_turns: turns of the session it wants in its cue.
        needs: what the model must be able to do.
        derives: `derive` has slow work to do between turns.
        reversible: `forget` restores the state from before the write, by digest.
        endless: with it, a message may be longer than the model's window.
        kinds: the records it is given; by default all that was said, told, read or derived.
    """

    recent_turns: int = 0
    needs: frozenset[Capability] = frozenset()
    derives: bool = False
    reversible: bool = True
    endless: bool = False
    kinds: frozenset[Kind] = TOLD


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreContext:
    """What a store is opened with: a folder of its own, the model, a lazily loaded embedder, and
    servers in place of the folder: a database for tables, Chroma for vectors. With `read_only` it
    makes and changes nothing, as another process may be writing."""

    folder: Path
    llm: LLM
    embedder: Callable[[], Embedder]
    database_url: str | None = None
    chroma_url: str | None = None
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class NoConfig:
    """The configuration of a store that has nothing to configure."""


class Memory(ABC):
    """One store. Subclasses set `place` and `Config`, and are opened by `Memory.open`."""

    name: str
    place: ClassVar[Place]
    lasting: ClassVar[frozenset[str]] = frozenset()
    """Names in its folder of what the ledger could not make again; it stays where the store is made
    anew."""
    Config: ClassVar[type[Any]] = NoConfig
    capabilities: Capabilities = Capabilities()

    @classmethod
    def open(cls, name: str, context: StoreContext, options: Mapping[str, Any]) -> Self:
        """Open the store in `context.folder`, with `options` as fields of `cls.Config`."""
        known = [f.name for f in fields(cls.Config)]
        for option in options:
            if option not in known:
                raise ConfigError(f"memory {name!r} has no option {option!r}; it has {known}")
        return cls(name, context, cls.Config(**options))

    @abstractmethod
    def __init__(self, name: str, context: StoreContext, config: Any) -> None: ...

    def check_model(self, llm: LLM) -> None:
        """That `llm`, whose place and capabilities fit, can carry this memory; asked when an agent
        is built.

        Raises:
            CapabilityError: it cannot.
        """
        return

    @abstractmethod
    def write(self, records: Sequence[Record]) -> list[Artefact]:
        """Take records in, in ledger order. Idempotent by record id; calls no model but the
        embedder. Returns an edge for each thing now held of each record; what it has no use for
        it leaves out. Durable when it returns."""

    @abstractmethod
    def recall(self, cue: Cue) -> Contribution:
        """What this memory gives to a turn. Pure: changes nothing, may be called twice."""

    @abstractmethod
    def forget(self, ids: Collection[RecordId]) -> Erasure:
        """Hold nothing of these records any more. Exact: `write(A); write(B); forget(B)` leaves
        the digest of `write(A)`. Unknown ids are reported, not raised. Idempotent."""

    def rebuild(self, records: Iterable[Record]) -> list[Artefact]:
        """Become what `write(records)` on an empty store would be."""
        self.clear()
        return self.write(list(records))

    @abstractmethod
    def clear(self) -> None:
        """Hold nothing."""

    @abstractmethod
    def held(self) -> frozenset[RecordId]:
        """Ids of all records it holds something of; the doctor compares them with the lineage."""

    def empty(self) -> bool:
        """Whether it holds nothing; asked whenever it is opened, so an override may be faster."""
        return not self.held()

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of what it holds, in canonical order: equal if and only if the contents are."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write everything held into the folder `path`, as safetensors and JSON."""

    @abstractmethod
    def load(self, path: Path) -> None:
        """Replace everything held by what `save` wrote."""

    def derive(self, cancel: Event) -> Iterator[Record]:
        """Slow work between turns: new records (summaries) for the ledger, one at a time. Stops
        soon after `cancel` is set; what is left is done the next time."""
        yield from ()

    def due(self) -> Sequence[Scope]:
        """Sessions of which it wants to read something again between turns."""
        return ()

    def purge(self, *, rewrite: bool = True) -> None:
        """Leave nothing of what was forgotten in the files: deleted rows, old segments, logs. Done
        at the end of an erasure. Idempotent.

        Args:
            rewrite: write the files anew, in a time that grows with them; else overwrite what is
                known to be deleted, which may leave a stale copy of a row that was moved.
        """
        return

    def marks(self, ids: Collection[RecordId] | None = None) -> Iterable[bytes]:
        """Byte strings on disk that stand for these records, or all it holds, and say something of
        them, as a vector's bytes do, or stand beside their texts; the longer, the better told from
        chance. Asked before records are forgotten: none may be found in the files after `purge`.
        Texts are searched for in any case."""
        return ()

    def close(self) -> None:
        """Release files and handles. May be called twice."""
        return
