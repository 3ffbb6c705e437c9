"""What an index holds, and the one place where a query is bound to a scope.

Knows nothing of SQLite's tables, of Chroma or of embedders: it only says which entries may be seen,
in the words of each of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ..errors import ConfigError, InputError
from .record import Scope, clean_text

Scalar = str | int | float | bool
Where = Mapping[str, Scalar | Sequence[Scalar]]
"""Metadata key -> the value an entry must have, or several of which it must have one."""

FILTER_KEYS = frozenset({"form", "kind", "role", "source"})
"""Metadata keys that a search may filter by, unless an index is given others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A text to be found again.

    Args:
        id: 1 to 128 printable characters; unique in its index.
        text: as `clean_text` takes it.
        created: an aware datetime.
        meta: small values; the ones whose key the index filters by can be searched by.

    Raises:
        InputError: one of them is not as it should be.
    """

    id: str
    text: str
    scope: Scope
    created: datetime
    meta: Mapping[str, Scalar] = field(default_factory=dict)

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

    def line(self) -> str:
        """The entry as one line of JSON: equal lines, equal entries."""
        return json.dumps(self.canonical(), ensure_ascii=False, sort_keys=True)

    def canonical(self) -> dict[str, Any]:
        """The entry as plain JSON values."""
        return {
            "id": self.id,
            "text": self.text,
            "owner": [self.scope.tenant, self.scope.user, self.scope.agent],
            "session": self.scope.session,
            "created": self.created.astimezone(UTC).isoformat(),
            "meta": dict(self.meta),
        }

    @classmethod
    def from_canonical(cls, values: Mapping[str, Any]) -> Entry:
        """The entry that `canonical` described."""
        tenant, user, agent = values["owner"]
        return cls(
            id=values["id"],
            text=values["text"],
            scope=Scope(tenant, user, agent, values["session"]),
            created=datetime.fromisoformat(values["created"]),
            meta=values["meta"],
        )


def owner_of(scope: Scope) -> str:
    """Tenant, user and agent as one key: a JSON list, so that no name can imitate a separator."""
    return json.dumps([scope.tenant, scope.user, scope.agent], ensure_ascii=False)


VISIBLE = """
    owner = :owner
    AND (:session IS NULL OR session = :session)
    AND (:where = '{}' OR NOT EXISTS (
        SELECT 1 FROM json_each(:where) AS asked WHERE NOT EXISTS (
            SELECT 1 FROM json_each(asked.value) AS one
            WHERE one.value = json_extract(meta, '$."' || asked.key || '"')
        )
    ))
"""
"""What a `Filter` lets through, in SQL: a condition on the columns owner, session and meta. It is
one constant text, whatever is asked; only its parameters change."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries a query may see: one owner's, of one session or all, with some metadata.

    The keys of `where` are allow-listed by `Filter.of`; every value is bound, none is spliced in.
    """

    owner: str
    session: str | None
    where: tuple[tuple[str, tuple[Scalar, ...]], ...] = ()

    @classmethod
    def of(
        cls, scope: Scope, where: Where | None = None, allowed: Collection[str] = FILTER_KEYS
    ) -> Filter:
        """Bind a query to `scope`.

        Raises:
            ConfigError: a key of `where` is not in `allowed`, or none of its values could match.
        """
        bound: list[tuple[str, tuple[Scalar, ...]]] = []
        for key, value in sorted((where or {}).items()):
            if key not in allowed:
                raise ConfigError(f"where has key {key!r}; it may have {sorted(allowed)}")
            values = (value,) if isinstance(value, Scalar) else tuple(value)
            if not values or not all(isinstance(one, Scalar) for one in values):
                raise ConfigError(
                    f"where[{key!r}]={value!r} must be a value, or several of which one may match"
                )
            bound.append((key, values))
        return cls(owner_of(scope), scope.session, tuple(bound))

    def sql(self) -> dict[str, str | None]:
        """The parameters of `VISIBLE`."""
        where = json.dumps(dict(self.where), ensure_ascii=False)
        return {"owner": self.owner, "session": self.session, "where": where}

    def chroma(self) -> dict[str, Any] | None:
        """Chroma's `where` inside the owner's own collection; None when it needs none."""
        terms: list[dict[str, Any]] = []
        if self.session is not None:
            terms.append({"session": {"$eq": self.session}})
        terms += [{f"meta.{key}": {"$in": list(allowed)}} for key, allowed in self.where]
        if len(terms) > 1:
            return {"$and": terms}
        return terms[0] if terms else None


def chroma_metadata(entry: Entry, keys: Collection[str]) -> dict[str, Scalar | None]:
    """What Chroma is told of an entry: what `Filter.chroma` asks for, and never its text.

    A key that the entry lacks is None, which makes Chroma drop the value it had before.
    """
    return {"session": entry.scope.session} | {
        f"meta.{key}": entry.meta.get(key) for key in sorted(keys)
    }
