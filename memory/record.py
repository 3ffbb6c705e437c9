"""Records: the only things that are true. Everything else is derived from them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, NewType, get_args

from ulid import ULID

from ..errors import InputError

RecordId = NewType("RecordId", str)
"""A ULID: 26 characters, sorts by time of creation."""

Kind = Literal[
    "message", "fact", "correction", "document", "summary", "edit", "request", "material"
]
"""An edit and a request are orders to change the model; material is what a request is learnt from,
and can be erased alone."""

Role = Literal["user", "assistant", "tool", "system"]
Source = Literal["user", "assistant", "document", "tool"]

TRUST: Mapping[Source, float] = {"user": 1.0, "assistant": 0.5, "document": 0.3, "tool": 0.2}
"""Default trust by source, in [0, 1]: what a user stated outranks what a document or tool says."""

OWN_META = frozenset(
    {"editor", "finish", "kept", "key", "made", "model", "quarantined", "request", "unlearner"}
)
"""Keys of `meta` under which this software keeps words of its own; all others are of whoever told
the record: titles, names of files and speakers, what another system kept beside a memory."""

_ULID = re.compile("[0-7][0-9A-HJKMNP-TV-Z]{25}")

MAX_TEXT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose memory. `session=None` means all sessions of that user with that agent."""

    tenant: str = "default"
    user: str = "default"
    agent: str = "default"
    session: str | None = None

    def __post_init__(self) -> None:
        for name in ("tenant", "user", "agent", "session"):
            value = getattr(self, name)
            if name == "session" and value is None:
                continue
            if not isinstance(value, str) or not 0 < len(value) <= 128 or not value.isprintable():
                raise InputError(f"{name}={value!r} must be 1 to 128 printable characters")

    def across_sessions(self) -> Scope:
        """The same user and agent, in every session."""
        return replace(self, session=None)

    def covers(self, other: Scope) -> bool:
        """Whether a record of scope `other` may be seen from this scope."""
        mine = (self.tenant, self.user, self.agent)
        return mine == (other.tenant, other.user, other.agent) and self.session in (
            None,
            other.session,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Whose records an erasure is about; None for all of a kind. Wider than any scope can be, so
    it never serves to recall anything."""

    tenant: str
    user: str | None = None
    agent: str | None = None
    session: str | None = None

    def __str__(self) -> str:
        named = (("session", self.session), ("user", self.user), ("agent", self.agent))
        parts = [f"{name} {value!r}" for name, value in (*named, ("tenant", self.tenant)) if value]
        return ", ".join(parts)

    @classmethod
    def of(cls, scope: Scope) -> Reach:
        """What the scope covers."""
        return cls(tenant=scope.tenant, user=scope.user, agent=scope.agent, session=scope.session)

    def across_sessions(self) -> Reach:
        """The same, in every session."""
        return replace(self, session=None)


def new_id() -> RecordId:
    """A fresh ULID. Ids made by one process sort in the order of their making."""
    return RecordId(str(ULID()))


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Something said, told, read or derived. Immutable, but for `valid_to`, which the ledger sets
    when a newer record supersedes it.

    Args:
        text: Unicode without NUL or lone surrogates, at most 16 MiB in UTF-8; see `clean_text`.
        valid_from, valid_to: when it holds; `valid_to=None` means until further notice.
        trust: in [0, 1]; None takes the default of its source.
        supersedes: the record it replaces; that one stays readable in history.
        parents: records it was made from: a summary's turns; a reply's message first, then the
            records that the reply went by.
        meta: small JSON values; never text that `text` should hold.
    """

    text: str
    scope: Scope
    kind: Kind = "message"
    role: Role = "user"
    source: Source = "user"
    id: RecordId = field(default_factory=new_id)
    created: datetime = field(default_factory=now)
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    trust: float | None = None
    supersedes: RecordId | None = None
    parents: tuple[RecordId, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", clean_text(self.text))
        for name, allowed in (("kind", Kind), ("role", Role), ("source", Source)):
            if getattr(self, name) not in get_args(allowed):
                raise InputError(
                    f"{name}={getattr(self, name)!r} must be one of {get_args(allowed)}"
                )
        if self.valid_from is None:
            object.__setattr__(self, "valid_from", self.created)
        if self.trust is None:
            object.__setattr__(self, "trust", TRUST[self.source])

    @property
    def content_hash(self) -> str:
        """SHA-256 of the text, hex."""
        return content_hash(self.text)

    @property
    def current(self) -> bool:
        """Whether nothing has superseded it."""
        return self.valid_to is None


def next_id(id: RecordId) -> RecordId:
    """The id of what takes a record's place, if nothing but the record says what that is: of the
    same time, with 80 bits of the SHA-256 of its id. Whoever asks again finds it by that."""
    stamp = ULID.from_str(id).bytes[:6] if _ULID.fullmatch(id) else bytes(6)
    return RecordId(str(ULID(stamp + hashlib.sha256(id.encode()).digest()[:10])))


def vouched(record: Record, source: Source) -> Record:
    """The version of a record that is trusted as `source` is, and supersedes it."""
    meta = {key: value for key, value in record.meta.items() if key != "quarantined"}
    return replace(
        record, id=next_id(record.id), source=source, trust=None, supersedes=record.id, meta=meta
    )


def told_beside(meta: Mapping[str, Any]) -> Iterator[str]:
    """What a record's `meta` says of anybody: its strings, however deep, but for our own words."""
    yield from _strings([value for key, value in meta.items() if key not in OWN_META])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(each)


@dataclass(frozen=True, slots=True)
class Turn:
    """A message and its reply; no reply yet if the turn was cut short."""

    user: Record
    reply: Record | None = None


def content_hash(text: str) -> str:
    """SHA-256 of a text in UTF-8, hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def clean_text(text: str) -> str:
    """`text` if a record can hold it.

    Raises:
        InputError: it is empty or blank, has NUL bytes or lone surrogates, or is over 16 MiB.
    """
    if not isinstance(text, str):
        raise InputError(f"a text must be str, not {type(text).__name__}; decode it first")
    if not text.strip():
        raise InputError("the text is empty; a record needs something to remember")
    if "\0" in text:
        raise InputError(
            f"the text has a NUL at character {text.index(chr(0))}; remove it or read the file as"
            " the encoding it is in"
        )
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has a lone surrogate at character {error.start}, which is no Unicode text;"
            " decode the source with errors='replace'"
        ) from None
    if size > MAX_TEXT_BYTES:
        raise InputError(
            f"the text has {size:,} bytes and a record holds {MAX_TEXT_BYTES:,}; read it as a"
            " document instead"
        )
    return text
