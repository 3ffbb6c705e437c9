"""The tables of the stream: records as they are kept, and which of them hold.

Knows nothing of items, or of when a row is written.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Index,
    MetaData,
    String,
    Table,
    Text,
    and_,
    exists,
    or_,
    true,
)
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from ..record import Record, Scope


class StreamTables:
    """Records, what each was made from, items whose index entries are out of date, and settings.

    Args:
        prefix: in front of every name, so that several stores can share a server's database.
    """

    def __init__(self, prefix: str = "") -> None:
        self.metadata = MetaData()
        self.records = Table(
            f"{prefix}records",
            self.metadata,
            Column("id", String(64), primary_key=True),
            Column("item", String(64), nullable=False),
            Column("tenant", String(128), nullable=False),
            Column("user", String(128), nullable=False),
            Column("agent", String(128), nullable=False),
            Column("created", String(40), nullable=False),
            Column("since", String(40), nullable=False),
            Column("until", String(40)),
            Column("kind", String(32), nullable=False),
            Column("supersedes", String(64)),
            Column("body", Text, nullable=False),
            Index(f"{prefix}records_item", "item"),
            Index(f"{prefix}records_supersedes", "supersedes"),
            Index(f"{prefix}records_owner", "tenant", "user", "agent", "created", "id"),
        )
        self.parents = Table(
            f"{prefix}parents",
            self.metadata,
            Column("child", String(64), primary_key=True),
            Column("parent", String(64), primary_key=True, index=True),
        )
        self.stale = Table(
            f"{prefix}stale", self.metadata, Column("item", String(64), primary_key=True)
        )
        self.settings = Table(
            f"{prefix}settings",
            self.metadata,
            Column("name", String(64), primary_key=True),
            Column("value", Text, nullable=False),
        )
        self._live = self._holding(None)  # once, as making it takes a millisecond

    def create(self, connection: Connection) -> None:
        """Make what is missing."""
        self.metadata.create_all(connection)

    def live(self, at: str | None = None) -> ColumnElement[bool]:
        """Neither ended nor superseded, and made from nothing that is; now, or at a time."""
        return self._live if at is None else self._holding(at)

    def _holding(self, at: str | None) -> ColumnElement[bool]:
        r, p, ground = self.records, self.parents, self.records.alias()
        made_from_the_past = exists().where(
            p.c.child == r.c.id, ground.c.id == p.c.parent, self._over(ground.c, at)
        )
        begun = true() if at is None else r.c.since <= at
        return and_(begun, ~self._over(r.c, at), ~made_from_the_past)

    def _over(
        self, record: ReadOnlyColumnCollection[str, Any], at: str | None
    ) -> ColumnElement[bool]:
        """Whether a record has ended or was superseded; by now, or by a time."""
        heir = self.records.alias()
        superseded = heir.c.supersedes == record.id
        if at is None:
            return or_(record.until.is_not(None), exists().where(superseded))
        ended = and_(record.until.is_not(None), record.until <= at)
        return or_(ended, exists().where(superseded, heir.c.since <= at))

    def owned(self, scope: Scope) -> ColumnElement[bool]:
        """Of the scope's tenant, user and agent, in any session."""
        r = self.records
        mine = (r.c.tenant == scope.tenant, r.c.user == scope.user, r.c.agent == scope.agent)
        return and_(*mine)


def stamp(time: datetime) -> str:
    """A time in UTC as text that sorts as the times do."""
    return time.astimezone(UTC).isoformat()


def dump(record: Record) -> str:
    """The record but for its end, which is kept beside it."""
    values = {field.name: getattr(record, field.name) for field in fields(Record)}
    values |= {"valid_to": None, "scope": asdict(record.scope), "meta": dict(record.meta)}
    return json.dumps(values, default=datetime.isoformat, sort_keys=True, ensure_ascii=False)


def load(body: str) -> Record:
    """The record that `dump` described."""
    values = json.loads(body)
    times = {name: datetime.fromisoformat(values[name]) for name in ("created", "valid_from")}
    scope, parents = Scope(**values["scope"]), tuple(values["parents"])
    return Record(**(values | times | {"scope": scope, "parents": parents}))
