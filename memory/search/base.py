"""What is searched for and what is found: entries, filters, queries, hits.

Knows nothing of tables, of vectors or of how a score comes about.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ...errors import ConfigError, InputError
from ..record import Scope, clean_text

Scalar = str | int | float | bool
Where = Mapping[str, Scalar | Sequence[Scalar]]
"""Metadata key -> the value an entry must have, or several of which it must have one."""

FILTER_KEYS = frozenset({"form", "kind", "role", "session", "source", "speaker"})
"""What a search may filter by: the session, or one of these metadata keys."""

SIGNALS = (
    "bm25",
    "bm25 window",
    "bm25 session",
    "quote",
    "cosine",
    "maxsim",
    "maxsim window",
    "speaker",
    "time",
    "question",
    "length",
)
"""What a hit's score is made of; see `signals` for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A text to be found again.

    Args:
        id: 1 to 128 printable characters; unique in its index.
        text: as `clean_text` takes it.
        created: an aware datetime.
        meta: small values. `speaker` is the name of who said it and `role` theirs; entries of one
            session and one `form` are neighbours of each other in the order of time.
        past: it holds no longer: only a search of the past finds it.

    Raises:
        InputError: one of them is not as it should be.
    """

    id: str
    text: str
    scope: Scope
    created: datetime
    meta: Mapping[str, Scalar] = field(default_factory=dict)
    past: bool = False

    def __post_init__(self) -> None:
        if not 0 < len(self.id) <= 128 or not self.id.isprintable():
            raise InputError(f"id={self.id!r} must be 1 to 128 printable characters")
        clean_text(self.text)
        if self.created.tzinfo is None:
            raise InputError(f"created={self.created!r} has no time zone; use datetime.now(UTC)")
        for key, value in self.meta.items():
            finite = not isinstance(value, float) or math.isfinite(value)
            if not isinstance(value, Scalar) or not finite:
                raise InputError(f"meta[{key!r}]={value!r} must be text, a bool or a finite number")

    @property
    def owner(self) -> str:
        """Whose it is, as one key."""
        return owner_of(self.scope, past=self.past)

    def line(self) -> str:
        """The entry as one line of JSON: equal lines, equal entries."""
        return json.dumps(self.canonical(), ensure_ascii=False, sort_keys=True)

    def canonical(self) -> dict[str, Any]:
        """The entry as plain JSON values."""
        return {
            "id": self.id,
            "text": self.text,
            "owner": json.loads(self.owner),
            "session": self.scope.session,
            "created": stamp(self.created),
            "meta": dict(self.meta),
        }

    @classmethod
    def from_canonical(cls, values: Mapping[str, Any]) -> Entry:
        """The entry that `canonical` described."""
        tenant, user, agent, *past = values["owner"]
        return cls(
            id=values["id"],
            text=values["text"],
            scope=Scope(tenant, user, agent, values["session"]),
            created=datetime.fromisoformat(values["created"]),
            meta=values["meta"],
            past=bool(past),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """An entry that a search found, and why.

    Args:
        score: the probability that it bears on the query, in [0, 1].
        signals: signal -> its share of the score: how much it adds to the log odds; with "bias",
            what these are where nothing speaks for an entry.
        cosine: of the query's and the entry's vectors.
    """

    entry: Entry
    score: float
    signals: Mapping[str, float]
    cosine: float


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries a search may see: one owner's, of one session or all, of some time, with some
    metadata.

    The keys of `where` are allow-listed by `Filter.of`; every value is bound, none is spliced in.
    """

    owner: str
    session: str | None = None
    where: tuple[tuple[str, tuple[Scalar, ...]], ...] = ()
    since: str | None = None
    until: str | None = None

    @classmethod
    def of(
        cls,
        scope: Scope,
        where: Where | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        past: bool = False,
    ) -> Filter:
        """Bind a search to `scope`.

        Args:
            since, until: entries created from the first to just before the second.
            past: entries that hold no longer, and no others.

        Raises:
            ConfigError: a key of `where` is not allowed, none of its values could match, or a time
                has no zone.
        """
        for name, time in (("since", since), ("until", until)):
            if time is not None and time.tzinfo is None:
                raise ConfigError(f"{name}={time} has no time zone; give it one, UTC for choice")
        return cls(
            owner_of(scope, past=past),
            scope.session,
            bound(where or {}),
            stamp(since) if since else None,
            stamp(until) if until else None,
        )

    @property
    def narrow(self) -> bool:
        """Whether it sees less than all of its owner."""
        return bool(self.session is not None or self.where or self.since or self.until)


def bound(where: Where) -> tuple[tuple[str, tuple[Scalar, ...]], ...]:
    """Each key with the values of which an entry must have one, in order of the keys.

    Raises:
        ConfigError: a key is not allowed, or none of its values could match.
    """
    found: list[tuple[str, tuple[Scalar, ...]]] = []
    for key, value in sorted(where.items()):
        if key not in FILTER_KEYS:
            raise ConfigError(f"where has key {key!r}; it may have {sorted(FILTER_KEYS)}")
        values = (value,) if isinstance(value, Scalar) else tuple(value)
        if not values or not all(isinstance(one, Scalar) for one in values):
            raise ConfigError(
                f"where[{key!r}]={value!r} must be a value, or several of which one may match"
            )
        found.append((key, values))
    return tuple(found)


def owner_of(scope: Scope, *, past: bool = False) -> str:
    """Tenant, user and agent as one key: a JSON list, so that no name can imitate a separator.
    What is past has an owner of its own, so that it costs a search of the present nothing."""
    names = [scope.tenant, scope.user, scope.agent, *(["past"] if past else [])]
    return json.dumps(names, ensure_ascii=False)


def stamp(time: datetime) -> str:
    """A time in UTC as text that sorts as the times do."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")
