"""Conversations as the ledger holds them: sessions, their forks, and the turns along a line.

A fork reads its origin up to the fork point and then itself; its origin may be a fork too. Those
stretches together are the session's line. Knows nothing of prompts or of how turns are shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, insert, or_, select
from sqlalchemy.orm import Session, aliased

from ..errors import InputError, LedgerError, RecordNotFound
from .chain import Tail
from .journal import chunks
from .record import Record, RecordId, Scope, Turn, now
from .schema import ParentRow, RecordRow, SessionRow, visible

_HEIR = aliased(RecordRow)
"""What supersedes a record. Made once: an alias takes longer to make than the query to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """One conversation, as a list shows it.

    Args:
        turns: messages of the user along its line, those of its origin included.
        last: time of its newest record, or of its making.
        forked_from: the session it continues.
        records: of its own.
        document: the file or title it was made of, if it begins with a document and nobody has
            said anything in it.
    """

    id: str
    title: str | None
    created: datetime
    turns: int
    last: datetime
    forked_from: str | None
    records: int = 0
    document: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """The stretches that a session reads: (session, last position or None for open), own first."""

    scope: Scope
    stretches: tuple[tuple[str, int | None], ...]

    @classmethod
    def of(cls, session: Session, scope: Scope) -> Line:
        """The line of `scope.session`.

        Raises:
            InputError: the scope names no session.
        """
        if scope.session is None:
            raise InputError("session=None names no conversation; give the scope a session")
        stretches: list[tuple[str, int | None]] = []
        name: str | None = scope.session
        end: int | None = None
        while name is not None:
            stretches.append((name, end))
            origin = select(SessionRow.forked_from, SessionRow.forked_at)
            row = session.execute(
                visible(origin, replace(scope, session=name), SessionRow)
            ).one_or_none()
            name = row.forked_from if row else None
            if row and row.forked_at is not None:
                end = row.forked_at if end is None else min(end, row.forked_at)
        return cls(scope, tuple(stretches))

    def holds(self, row: type[RecordRow] = RecordRow) -> ColumnElement[bool]:
        """Whether a row lies on the line; only for queries that `visible` has bound."""
        return or_(
            *(
                row.session == name if end is None else and_(row.session == name, row.seq <= end)
                for name, end in self.stretches
            )
        )

    def bind(self, statement: Any) -> Any:
        """`statement`, bound to the messages of this line that hold and are not in quarantine.

        A message that was superseded is gone from the line, unless what superseded it is a message
        of another branch: that one was answered or asked again there, not here.
        """
        elsewhere = and_(_HEIR.kind == "message", ~self.holds(_HEIR))
        return visible(statement, self.scope.across_sessions()).where(
            self.holds(),
            RecordRow.kind == "message",
            RecordRow.trust > 0,
            ~exists().where(_HEIR.supersedes == RecordRow.id, ~elsewhere),
        )


def turns(session: Session, scope: Scope, limit: int | None) -> list[Turn]:
    """The last `limit` turns of a line, oldest first."""
    line = Line.of(session, scope)
    query = line.bind(select(RecordRow).where(RecordRow.role == "user"))
    newest = session.scalars(query.order_by(RecordRow.seq.desc()).limit(limit))
    asked: list[Record] = [row.to_record() for row in newest][::-1]
    replies: dict[str, Record] = {}
    for part in chunks(record.id for record in asked):
        # By key, as a subquery: joined, SQLite would read the whole session to have the order.
        answers = select(ParentRow.record).where(ParentRow.parent.in_(part))
        query = select(RecordRow).where(RecordRow.role == "assistant", RecordRow.id.in_(answers))
        for row in sorted(session.scalars(line.bind(query)), key=lambda row: row.seq):
            reply = row.to_record()
            replies[reply.parents[0]] = reply
    return [Turn(record, replies.get(record.id)) for record in asked]


def sessions(session: Session, scope: Scope) -> list[SessionInfo]:
    """The sessions a scope covers, the one used last first."""
    found = []
    for row in session.scalars(visible(select(SessionRow), scope, SessionRow)):
        own = Scope(row.tenant, row.user, row.agent, row.session)
        asked = select(func.count()).select_from(RecordRow).where(RecordRow.role == "user")
        count = session.scalar(Line.of(session, own).bind(asked))
        of_own = visible(select(func.count(), func.max(RecordRow.created)), own)
        records, last = session.execute(of_own).one()
        first = visible(select(RecordRow.kind, RecordRow.meta), own).order_by(RecordRow.seq)
        begun = session.execute(first.limit(1)).one_or_none()
        document = _named(begun.meta) or row.session if begun and begun.kind == "document" else None
        found.append(
            SessionInfo(
                id=row.session,
                title=row.title,
                created=row.created,
                turns=count or 0,
                last=last or row.created,
                forked_from=row.forked_from,
                records=records,
                document=None if count else document,
            )
        )
    return sorted(found, key=lambda info: (info.last, info.id), reverse=True)


def _named(meta: Mapping[str, Any]) -> str | None:
    """The file or title that a record is of."""
    return next((str(meta[key]) for key in ("name", "title") if meta.get(key)), None)


def require(session: Session, scope: Scope) -> SessionRow:
    """The row of `scope.session`.

    Raises:
        RecordNotFound: there is none; names those there are.
    """
    row = None
    if scope.session is not None:
        row = session.scalars(visible(select(SessionRow), scope, SessionRow)).one_or_none()
    if row is None:
        names = visible(select(SessionRow.session), scope.across_sessions(), SessionRow)
        known: Sequence[str] = session.scalars(names.order_by(SessionRow.session)).all()
        listed = ", ".join(repr(name) for name in known) or "none yet"
        raise RecordNotFound(
            f"session {scope.session!r} is not known for user {scope.user!r} with agent"
            f" {scope.agent!r}; known: {listed}"
        )
    return row


def fork(session: Session, scope: Scope, name: str, at: RecordId | None) -> Scope:
    """Begin session `name` as a continuation of `scope.session` after record `at`."""
    tail = Tail(session)
    require(session, scope)
    target = replace(scope, session=name)
    if session.scalar(visible(select(func.count()).select_from(SessionRow), target, SessionRow)):
        raise LedgerError(f"session {name!r} exists already; fork into a new name")
    line = Line.of(session, scope)
    query = visible(select(RecordRow.seq, RecordRow.id), scope.across_sessions())
    query = query.where(line.holds()).order_by(RecordRow.seq.desc()).limit(1)
    if at is not None:
        query = query.where(RecordRow.id == at)
    point = session.execute(query).one_or_none()
    if at is not None and point is None:
        raise RecordNotFound(f"record {at} is not part of session {scope.session!r}")
    session.execute(
        insert(SessionRow).values(
            tenant=scope.tenant,
            user=scope.user,
            agent=scope.agent,
            session=name,
            created=now(),
            forked_from=scope.session,
            forked_at=point.seq if point else 0,
        )
    )
    tail.add("fork", point.id if point else "", {})
    tail.flush()
    return target
