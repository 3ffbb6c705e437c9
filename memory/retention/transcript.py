"""What was said in each session, in the order of the ledger: what a cache is read from.

A function of the records alone, whatever order they came and left in. Every method works in the
transaction it is given. Knows nothing of caches or of models.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    and_,
    delete,
    exists,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session

from ..journal import chunks
from ..record import Record, RecordId, Scope

FIELDS = (
    *("id", "tenant", "user", "agent", "session", "kind", "role", "title"),
    *("supersedes", "until", "text"),
)
"""Columns of a row but for its place."""


class Line(NamedTuple):
    """One message of a session."""

    id: RecordId
    kind: str
    role: str
    title: str | None
    text: str


class Transcript:
    """Rows of all scopes. Held is every message, fact, correction and document; no summary.

    Args:
        prefix: in front of every table's name, so that several can share a server's database.
    """

    def __init__(self, prefix: str = "") -> None:
        self.metadata = MetaData()
        self.rows = Table(
            f"{prefix}rows",
            self.metadata,
            Column("seq", Integer, primary_key=True),
            Column("id", String(64), nullable=False, unique=True),
            Column("tenant", String(128), nullable=False),
            Column("user", String(128), nullable=False),
            Column("agent", String(128), nullable=False),
            Column("session", String(128)),
            Column("kind", String(32), nullable=False),
            Column("role", String(32), nullable=False),
            Column("title", Text),
            Column("supersedes", String(64)),
            Column("until", String(40)),
            Column("text", Text, nullable=False),
            Index(f"{prefix}rows_session", "tenant", "user", "agent", "session", "seq"),
            Index(f"{prefix}rows_supersedes", "supersedes"),
        )
        self.parents = Table(
            f"{prefix}parents",
            self.metadata,
            Column("child", String(64), primary_key=True),
            Column("parent", String(64), primary_key=True, index=True),
            Column("place", Integer, nullable=False),
        )
        self._holding = self._holds()

    def create(self, connection: Connection) -> None:
        """Make what is missing."""
        self.metadata.create_all(connection)

    def put(self, session: Session, records: Iterable[Record]) -> tuple[list[RecordId], bool]:
        """Take records in, in ledger order.

        Returns:
            The ids of those that are held, and whether what was held before may hold no longer.
        """
        r, p = self.rows, self.parents
        wanted = {record.id: record for record in records if record.kind != "summary"}
        known: set[str] = set()
        for part in chunks(wanted):
            known.update(session.scalars(select(r.c.id).where(r.c.id.in_(part))))
        for record in (record for id, record in wanted.items() if id not in known):
            session.execute(insert(r), [_row(record)])
            edges = [
                {"child": record.id, "parent": parent, "place": place}
                for place, parent in enumerate(dict.fromkeys(record.parents))
            ]
            if edges:
                session.execute(insert(p), edges)
        for id in sorted(known):
            session.execute(
                update(r).where(r.c.id == id).values(until=_until(wanted[RecordId(id)]))
            )
        self._revive(session, wanted.values())
        ends = any(record.supersedes or record.valid_to for record in wanted.values())
        return list(wanted), ends or bool(known)

    def _revive(self, session: Session, records: Iterable[Record]) -> None:
        """Where what ended a record is held, its end is not kept: forgetting that one undoes it."""
        r = self.rows
        heir = r.alias()
        held = exists().where(heir.c.supersedes == r.c.id)
        touched = {id for record in records for id in (record.id, record.supersedes) if id}
        for part in chunks(touched):
            session.execute(update(r).where(r.c.id.in_(part), held).values(until=None))

    def drop(self, session: Session, ids: Collection[RecordId]) -> frozenset[RecordId]:
        """Hold nothing of these records; returns those that were held."""
        r, p = self.rows, self.parents
        gone: set[RecordId] = set()
        for part in chunks(ids):
            gone.update(map(RecordId, session.scalars(select(r.c.id).where(r.c.id.in_(part)))))
        for part in chunks(gone):
            session.execute(delete(r).where(r.c.id.in_(part)))
            session.execute(delete(p).where(p.c.child.in_(part)))
        return frozenset(gone)

    def clear(self, session: Session) -> None:
        """Hold nothing."""
        session.execute(delete(self.rows))
        session.execute(delete(self.parents))

    def end(self, session: Session, scope: Scope, before: RecordId | None) -> int:
        """The last place of a session in front of a record, if that is held; else its last."""
        r = self.rows
        if before is not None:
            point = session.scalar(select(r.c.seq).where(r.c.id == before))
            if point is not None:
                return int(point) - 1
        last = select(r.c.seq).where(self._of(scope)).order_by(r.c.seq.desc()).limit(1)
        return int(session.scalar(last) or 0)

    def line(
        self,
        session: Session,
        scope: Scope,
        end: int,
        known: Collection[str] = (),
        *,
        after: int = 0,
    ) -> list[Line]:
        """What holds of a session from behind place `after` up to `end`, in order, without what is
        known."""
        r = self.rows
        query = select(r.c.id).where(self._of(scope), r.c.seq > after, r.c.seq <= end)
        query = query.where(self._holding).order_by(r.c.seq)
        wanted = [id for id in session.scalars(query) if id not in known]
        found: dict[str, Line] = {}
        for part in chunks(wanted):
            columns = select(r.c.id, r.c.kind, r.c.role, r.c.title, r.c.text)
            rows = session.execute(columns.where(r.c.id.in_(part)))
            found |= {row.id: Line(RecordId(row.id), *row[1:]) for row in rows}
        return [found[id] for id in wanted]

    def stands(self, session: Session, ids: Collection[RecordId], scope: Scope, end: int) -> bool:
        """Whether all of these are held and hold, and none of a session comes behind a place."""
        r = self.rows
        standing = 0
        for part in chunks(ids):
            query = select(r.c.id).where(r.c.id.in_(part), self._holding)
            standing += len(session.scalars(query).all())
        if standing < len(set(ids)):
            return False
        later = session.scalars(select(r.c.id).where(self._of(scope), r.c.seq > end))
        return set(ids).isdisjoint(later)

    def held(self, session: Session) -> frozenset[RecordId]:
        """Ids of all records, those that were superseded included."""
        return frozenset(map(RecordId, session.scalars(select(self.rows.c.id))))

    def empty(self, session: Session) -> bool:
        """Whether there is none."""
        return session.scalar(select(self.rows.c.id).limit(1)) is None

    def dump(self, session: Session) -> Iterator[dict[str, Any]]:
        """Every row with its parents, in order."""
        r, p = self.rows, self.parents
        query = select(*(r.c[name] for name in FIELDS)).order_by(r.c.seq)
        for row in session.execute(query):
            made = select(p.c.parent).where(p.c.child == row.id).order_by(p.c.place)
            yield dict(row._mapping) | {"parents": list(session.scalars(made))}

    def restore(self, session: Session, dumped: Iterable[Mapping[str, Any]]) -> None:
        """Hold exactly what `dump` gave."""
        self.clear(session)
        for values in dumped:
            row = dict(values)
            parents = row.pop("parents")
            session.execute(insert(self.rows), [{name: row[name] for name in FIELDS}])
            edges = [
                {"child": row["id"], "parent": parent, "place": place}
                for place, parent in enumerate(parents)
            ]
            if edges:
                session.execute(insert(self.parents), edges)

    def _of(self, scope: Scope) -> ColumnElement[bool]:
        r = self.rows
        owned = (r.c.tenant == scope.tenant, r.c.user == scope.user, r.c.agent == scope.agent)
        return and_(*owned, r.c.session == scope.session)

    def _holds(self) -> ColumnElement[bool]:
        """Neither ended nor superseded, and made from nothing that is."""
        r, p, ground = self.rows, self.parents, self.rows.alias()
        made_from_the_past = exists().where(
            p.c.child == r.c.id, ground.c.id == p.c.parent, self._over(ground)
        )
        return and_(~self._over(r), ~made_from_the_past)

    def _over(self, row: Any) -> ColumnElement[bool]:
        heir = self.rows.alias()
        elsewhere = and_(heir.c.kind == "message", heir.c.session != row.c.session)  # in a branch
        superseded = exists().where(heir.c.supersedes == row.c.id, ~elsewhere)
        return or_(row.c.until.is_not(None), superseded)


def digest_lines(dumped: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """Rows in canonical form."""
    return (json.dumps(each, sort_keys=True).encode() for each in dumped)


def _row(record: Record) -> dict[str, Any]:
    scope = record.scope
    values: Sequence[Any] = (
        *(record.id, scope.tenant, scope.user, scope.agent, scope.session, record.kind),
        *(record.role, record.meta.get("title") or record.meta.get("name")),
        *(record.supersedes, _until(record), record.text),
    )
    return dict(zip(FIELDS, values, strict=True))


def _until(record: Record) -> str | None:
    return record.valid_to.isoformat() if record.valid_to else None
