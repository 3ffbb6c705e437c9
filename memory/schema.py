"""The ledger's tables, as SQLAlchemy models, and the one place where a query is bound to a scope.

Knows nothing of transactions, of files, or of when a row is written. The tables are made by the
migrations beside it; a test holds that models and migrations agree.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    Select,
    String,
    Text,
    TypeDecorator,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from .record import Kind, Reach, Record, RecordId, Role, Scope, Source

SCHEMA = "0002"
"""The newest migration: the schema that this code reads and writes."""

Position = BigInteger().with_variant(Integer(), "sqlite")
"""A place in the order of events; in SQLite an INTEGER key is the table's own order."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, always UTC in Python; SQLite, which has no time zones, stores UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC. The ledger refuses naive times before they get here."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Naive only from SQLite, where it is UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """What the ledger's tables have in common."""

    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: JSON}  # noqa: RUF012


def _name(**options: Any) -> Mapped[Any]:
    return mapped_column(String(128), **options)


def _record_key(**options: Any) -> Mapped[Any]:
    return mapped_column(ForeignKey("records.id", ondelete="CASCADE"), **options)


class SessionRow(Base):
    """A conversation. A fork reads on from another one, up to and with position `forked_at`."""

    __tablename__ = "sessions"

    tenant: Mapped[str] = _name(primary_key=True)
    user: Mapped[str] = _name(primary_key=True)
    agent: Mapped[str] = _name(primary_key=True)
    session: Mapped[str] = _name(primary_key=True)
    title: Mapped[str | None] = mapped_column(Text)
    created: Mapped[datetime]
    forked_from: Mapped[str | None] = _name()
    forked_at: Mapped[int | None] = mapped_column(Position)

    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant", "user", "agent", "forked_from"],
            ["sessions.tenant", "sessions.user", "sessions.agent", "sessions.session"],
        ),
    )


class ParentRow(Base):
    """`record` was made from `parent`."""

    __tablename__ = "parents"

    record: Mapped[str] = _record_key(primary_key=True)
    parent: Mapped[str] = _record_key(primary_key=True, index=True)
    position: Mapped[int]


class RecordRow(Base):
    """A record. Written once, but for `superseded_at` and, after an erasure, `supersedes`.

    `seq` is the position of the event that appended it: the ledger's order. `salt` makes
    `commitment` impossible to guess a text from, once the row is gone.
    """

    __tablename__ = "records"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    seq: Mapped[int] = mapped_column(Position, unique=True)
    tenant: Mapped[str] = _name()
    user: Mapped[str] = _name()
    agent: Mapped[str] = _name()
    session: Mapped[str | None] = _name()
    kind: Mapped[str] = mapped_column(String(32))
    role: Mapped[str] = mapped_column(String(32))
    source: Mapped[str] = mapped_column(String(32))
    text: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime]
    valid_from: Mapped[datetime]
    valid_to: Mapped[datetime | None]
    trust: Mapped[float] = mapped_column(Double)
    content_hash: Mapped[str] = mapped_column(String(64))
    salt: Mapped[str] = mapped_column(String(32))
    commitment: Mapped[str] = mapped_column(String(64))
    supersedes: Mapped[str | None] = mapped_column(
        ForeignKey("records.id", ondelete="SET NULL"), index=True
    )
    superseded_at: Mapped[datetime | None]
    meta: Mapped[dict[str, Any]]
    parents: Mapped[list[ParentRow]] = relationship(
        foreign_keys=[ParentRow.record],
        order_by=ParentRow.position,
        lazy="selectin",
        viewonly=True,
    )

    __table_args__ = (
        Index("ix_records_scope", "tenant", "user", "agent", "seq"),
        Index("ix_records_session", "tenant", "user", "agent", "session", "seq"),
        ForeignKeyConstraint(
            ["tenant", "user", "agent", "session"],
            ["sessions.tenant", "sessions.user", "sessions.agent", "sessions.session"],
        ),
    )

    def to_record(self) -> Record:
        """The record as it stands now."""
        return Record(
            id=RecordId(self.id),
            text=self.text,
            scope=Scope(self.tenant, self.user, self.agent, self.session),
            kind=cast(Kind, self.kind),
            role=cast(Role, self.role),
            source=cast(Source, self.source),
            created=self.created,
            valid_from=self.valid_from,
            valid_to=self.superseded_at or self.valid_to,
            trust=self.trust,
            supersedes=RecordId(self.supersedes) if self.supersedes else None,
            parents=tuple(RecordId(edge.parent) for edge in self.parents),
            meta=self.meta,
        )


class LineageRow(Base):
    """Store `store` holds `artefact`, made from `record`."""

    __tablename__ = "lineage"

    record: Mapped[str] = _record_key(primary_key=True)
    store: Mapped[str] = _name(primary_key=True)
    artefact: Mapped[str] = mapped_column(String(256), primary_key=True)

    __table_args__ = (Index("ix_lineage_artefact", "store", "artefact"),)


class CursorRow(Base):
    """Store `store` has followed the events up to and with `seq`."""

    __tablename__ = "cursors"

    store: Mapped[str] = _name(primary_key=True)
    seq: Mapped[int] = mapped_column(Position)


class EventRow(Base):
    """What happened, in order, without a gap; see `chain`."""

    __tablename__ = "events"

    seq: Mapped[int] = mapped_column(Position, primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(128), index=True)
    payload: Mapped[dict[str, Any]]
    prev: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class HeadRow(Base):
    """The last event, in a single row; writers on a server queue up at its lock."""

    __tablename__ = "head"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(Position)
    hash: Mapped[str] = mapped_column(String(64))


class TraceRow(Base):
    """The account of one turn: ids and numbers. It goes when its reply goes."""

    __tablename__ = "traces"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = _name()
    user: Mapped[str] = _name()
    agent: Mapped[str] = _name()
    session: Mapped[str | None] = _name()
    reply: Mapped[str | None] = _record_key(index=True)
    created: Mapped[datetime]
    data: Mapped[dict[str, Any]]

    __table_args__ = (Index("ix_traces_scope", "tenant", "user", "agent", "created"),)


class ErasureRow(Base):
    """What was asked to be forgotten and how far that is: ids and counts, never texts. Without a
    user or agent it is of all users or agents of the tenant."""

    __tablename__ = "erasures"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = _name()
    user: Mapped[str | None] = _name()
    agent: Mapped[str | None] = _name()
    session: Mapped[str | None] = _name()
    created: Mapped[datetime]
    state: Mapped[str] = mapped_column(String(32), index=True)
    data: Mapped[dict[str, Any]]

    __table_args__ = (Index("ix_erasures_scope", "tenant", "user", "agent", "created"),)


S = TypeVar("S", bound="Select[*tuple[Any, ...]]")
Scoped = type[RecordRow] | type[SessionRow] | type[TraceRow] | type[ErasureRow]


def visible(statement: S, scope: Scope | Reach, row: Scoped = RecordRow) -> S:
    """`statement`, bound to the rows of `row` that `scope` covers. Every query on behalf of a
    caller goes through here, and nowhere else decides what a scope may see."""
    for name in ("tenant", "user", "agent", "session"):
        value = getattr(scope, name)
        if value is not None:
            statement = statement.where(getattr(row, name) == value)
    return statement
