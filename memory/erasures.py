"""What was asked to be forgotten and how far that is, and what has to go along with it.

Functions of the ledger that only an erasure needs. They hold ids and counts, never texts, and know
nothing of files or of what a store does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, cast

from sqlalchemy import Text, delete, func, insert, select, update
from sqlalchemy import cast as as_type
from sqlalchemy.orm import Session

from . import journal
from .chain import Event
from .database import Database
from .derived import Ground, closure, forgotten
from .journal import chunks
from .record import Reach, RecordId, Source, told_beside
from .schema import (
    ErasureRow,
    EventRow,
    HeadRow,
    LineageRow,
    ParentRow,
    RecordRow,
    SessionRow,
    TraceRow,
    visible,
)

PAGE = 2000
"""Rows that are read at once."""

FEW = 16
"""Up to so many ids are looked for one by one, which is faster than taking every trace apart."""

ORIGINS = ("name", "title", "tool")
"""Keys of `meta` that say where in a source something comes from."""

State = Literal["noted", "erased", "done"]
"""`noted`: nothing has happened yet. `erased`: gone from the ledger; stores and files are next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One erasure, as the ledger keeps it.

    Args:
        reach: whose records it is about.
        data: plain JSON of ids and counts, never texts.
    """

    id: str
    reach: Reach
    created: datetime
    state: State = "noted"
    data: Mapping[str, Any] = field(default_factory=dict)


class Content(NamedTuple):
    """What a record says, and what else in its row tells of that: the text's SHA-256, and the salt,
    with which one could try texts against the chain's commitment to it, both in hex; and `beside`
    it the strings of its `meta`."""

    id: RecordId
    text: str
    hash: str
    salt: str
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the chain of events."""

    seq: int
    hash: str


class Erasures:
    """The erasures of one ledger. Safe to use from several threads.

    Raises:
        LedgerError: from any method, when the database fails.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def note(self, note: Note) -> None:
        """Keep a new erasure, or what has become of one."""
        with self._database.write() as session:
            _put(session, note)

    def withdraw(self, id: str) -> None:
        """Drop an erasure that was noted and did not begin."""
        gone = delete(ErasureRow).where(ErasureRow.id == id, ErasureRow.state == "noted")
        with self._database.write() as session:
            session.execute(gone)

    def every(self, *states: State) -> list[Note]:
        """Those in one of these states, in every scope, oldest first."""
        query = select(ErasureRow).where(ErasureRow.state.in_(states))
        with self._database.read() as session:
            return [_note(row) for row in session.scalars(query.order_by(ErasureRow.id))]

    def of(self, reach: Reach) -> list[Note]:
        """Those about just these records' owners or a part of them, oldest first."""
        query = visible(select(ErasureRow), reach, ErasureRow)
        with self._database.read() as session:
            return [_note(row) for row in session.scalars(query.order_by(ErasureRow.id))]

    def closure(self, asked: Iterable[RecordId]) -> dict[RecordId, Ground]:
        """The records, and all that must go with them: every version of each, as the one before
        would hold again; and what was made from them, as it may repeat them. Each with why."""
        with self._database.read() as session:
            return closure(session, asked)

    def forgotten(self, ids: Collection[str]) -> set[str]:
        """Those of the ids whose records were erased here and are not back."""
        with self._database.read() as session:
            return forgotten(session, ids)

    def contents(self, ids: Collection[RecordId], reach: Reach) -> Iterator[Content]:
        """Of those of the records that are within reach."""
        columns = (RecordRow.text, RecordRow.content_hash, RecordRow.salt, RecordRow.meta)
        query = select(RecordRow.id, *columns)
        for part in chunks(ids):
            with self._database.read() as session:
                rows = session.execute(visible(query.where(RecordRow.id.in_(part)), reach)).all()
            for id, text, hash, salt, meta in rows:
                yield Content(RecordId(id), text, hash, salt, tuple(told_beside(meta)))

    def saying(self, hashes: Collection[str], limit: int) -> list[RecordId]:
        """Up to `limit` records, in any scope, whose text has one of these SHA-256."""
        found: list[RecordId] = []
        with self._database.read() as session:
            for part in chunks(hashes):
                query = select(RecordRow.id).where(RecordRow.content_hash.in_(part))
                found += map(RecordId, session.scalars(query.limit(limit - len(found))))
                if len(found) == limit:
                    break
        return found

    def erase(self, note: Note, ids: Collection[RecordId]) -> Note:
        """Erase a closed set of records, with the traces that mention them. In the same transaction
        it is noted that this is done, and where the chain of events stood before and after.

        Raises:
            PlanOutdated: the set is not closed, or not all of it is there; nothing is erased.
        """
        reach = note.reach.across_sessions()
        with self._database.write() as session:
            before = _head(session)
            for part in chunks(_mentioning(session, ids, reach)):
                session.execute(delete(TraceRow).where(TraceRow.id.in_(part)))
            journal.erase(session, ids, reach, closed=True)
            chain = {"before": asdict(before), "after": asdict(_head(session))}
            erased = replace(note, state="erased", data={**note.data, "chain": chain})
            _put(session, erased)
        return erased

    def since(self, seq: int, ids: Iterable[str]) -> bool:
        """Whether any of the records was erased after event `seq`; ids are looked at only if
        something was."""
        erased = select(EventRow.subject).where(EventRow.seq > seq, EventRow.kind == "erase")
        with self._database.read() as session:
            gone = set(session.scalars(erased))
        return bool(gone) and not gone.isdisjoint(ids)

    def traces(self, ids: Collection[RecordId], reach: Reach) -> list[str]:
        """The traces of turns that mention any of the records."""
        with self._database.read() as session:
            return _mentioning(session, ids, reach.across_sessions())

    def texts(self, reach: Reach) -> Iterator[tuple[RecordId, str]]:
        """Id and all that is told, in the text or beside it, of every record within reach, in the
        order they were appended."""
        columns = (RecordRow.id, RecordRow.text, RecordRow.meta)
        for id, text, meta in self._pages(*columns, reach=reach):
            yield RecordId(id), "\n".join([text, *told_beside(meta)])

    def said_by(
        self, source: Source, reach: Reach, origin: str | None, since: datetime | None
    ) -> list[RecordId]:
        """The records within reach that came from a source, all or those of one origin: a file, a
        title or a tool, with `*` for any part of its name. `since` is by when the ledger took them
        in: what time a file gives itself, whoever wrote it chose."""
        begun: int | None = 0
        if since is not None:
            with self._database.read() as session:
                begun = session.scalar(select(func.min(EventRow.seq)).where(EventRow.at >= since))
        if begun is None:
            return []
        columns = (RecordRow.id, RecordRow.seq, RecordRow.source, RecordRow.meta)
        found = []
        for id, seq, by, meta in self._pages(*columns, reach=reach):
            names = [meta[key] for key in ORIGINS if isinstance(meta.get(key), str)]
            named = origin is None or any(fnmatchcase(name, origin) for name in names)
            if by == source and seq >= begun and named:
                found.append(RecordId(id))
        return found

    def said(self, ids: Collection[RecordId] | None = None) -> Iterator[str]:
        """All that the ledger holds of each of these records, or of every one, as one text. In
        every scope: it serves to tell whether something found in a file is there on another
        record's account."""
        columns = [column for column in RecordRow.__table__.columns if column.name != "seq"]
        for row in self._pages(*columns, ids=ids):
            yield "\n".join(part for value in row if value is not None for part in _said(value))

    def names(self) -> Iterator[str]:
        """Of all tenants, users, agents and conversations that the ledger knows, also those that
        an erasure was about."""
        for row in (SessionRow, ErasureRow):
            query = select(row.tenant, row.user, row.agent, row.session).distinct()
            with self._database.read() as session:
                rows = session.execute(query).all()
            for names in rows:
                yield "\n".join(name for name in names if name)

    def shared(self, store: str, keys: Iterable[str], gone: Collection[RecordId]) -> frozenset[str]:
        """Those of a store's artefacts that come from a record that stays, too."""
        found = set[str]()
        with self._database.read() as session:
            for part in chunks(keys):
                query = select(LineageRow.artefact, LineageRow.record).where(
                    LineageRow.store == store, LineageRow.artefact.in_(part)
                )
                found |= {key for key, record in session.execute(query) if record not in gone}
        return frozenset(found)

    def mixed(self, ids: Collection[RecordId]) -> frozenset[RecordId]:
        """Those of the records that are summaries of one that stays, too."""
        query = select(ParentRow.record, ParentRow.parent).join(
            RecordRow, RecordRow.id == ParentRow.record
        )
        found = set[RecordId]()
        with self._database.read() as session:
            for part in chunks(ids):
                edges = query.where(ParentRow.record.in_(part), RecordRow.kind == "summary")
                found |= {RecordId(id) for id, of in session.execute(edges) if of not in ids}
        return frozenset(found)

    def event(self, hash: str) -> Event | None:
        """The event with this hash, if it is in the chain."""
        with self._database.read() as session:
            row = session.scalar(select(EventRow).where(EventRow.hash == hash))
            return None if row is None else Event.of(row)

    def appended(self, ids: Collection[RecordId]) -> int | None:
        """The position of the first event that appended one of the records, which may be erased;
        None if none ever was."""
        first: list[int | None] = []
        with self._database.read() as session:
            for part in chunks(ids):
                query = select(func.min(EventRow.seq)).where(EventRow.subject.in_(part))
                first.append(session.scalar(query.where(EventRow.kind == "append")))
        return min((seq for seq in first if seq is not None), default=None)

    def appended_by(self, seq: int, ids: Collection[RecordId]) -> list[RecordId]:
        """Those of the records, which may be erased, that were appended by event `seq`."""
        query = select(EventRow.subject).where(EventRow.kind == "append", EventRow.seq <= seq)
        with self._database.read() as session:
            found = [
                id
                for part in chunks(ids)
                for id in session.scalars(query.where(EventRow.subject.in_(part)).distinct())
            ]
        return [RecordId(id) for id in sorted(found)]

    def _pages(
        self,
        *columns: Any,
        reach: Reach | None = None,
        ids: Collection[RecordId] | None = None,
    ) -> Iterator[Any]:
        """Rows in the ledger's order; a read transaction for each page, none while it is used."""
        query = select(RecordRow.seq, *columns).order_by(RecordRow.seq).limit(PAGE)
        query = query if reach is None else visible(query, reach)
        query = query if ids is None else query.where(RecordRow.id.in_(ids))
        last = -1
        while True:
            with self._database.read() as session:
                rows = session.execute(query.where(RecordRow.seq > last)).all()
            if not rows:
                return
            for row in rows:
                yield row[1:]
            last = rows[-1][0]


def _mentioning(session: Session, ids: Collection[RecordId], reach: Reach) -> list[str]:
    mentions = _mentions(ids)
    query = visible(select(TraceRow.id, as_type(TraceRow.data, Text)), reach, TraceRow)
    rows = session.execute(query.execution_options(yield_per=PAGE))
    return [id for id, data in rows if mentions(data)]


def _mentions(ids: Collection[RecordId]) -> Callable[[str], bool]:
    """Whether a JSON text has one of the ids as a value."""
    if len(ids) <= FEW:
        quoted = [json.dumps(id) for id in ids]
        return lambda text: any(id in text for id in quoted)
    wanted, strings = frozenset(ids), re.compile(r'"([^"\\]+)"')
    return lambda text: not wanted.isdisjoint(strings.findall(text))


def _said(value: Any) -> Iterator[str]:
    """A column as a file may hold it: `meta` as JSON, and its strings without JSON's escapes."""
    if isinstance(value, dict):
        yield json.dumps(value, ensure_ascii=False)
        yield from told_beside(value)
    else:
        yield str(value)


def _head(session: Session) -> Position:
    return Position(*session.execute(select(HeadRow.seq, HeadRow.hash)).one())


def _put(session: Session, note: Note) -> None:
    values = {"state": note.state, "data": dict(note.data)}
    if session.get(ErasureRow, note.id) is None:
        row = {"id": note.id, "created": note.created, **asdict(note.reach), **values}
        session.execute(insert(ErasureRow).values(row))
    else:
        session.execute(update(ErasureRow).where(ErasureRow.id == note.id).values(values))


def _note(row: ErasureRow) -> Note:
    reach = Reach(tenant=row.tenant, user=row.user, agent=row.agent, session=row.session)
    return Note(
        id=row.id,
        reach=reach,
        created=row.created,
        state=cast(State, row.state),
        data=row.data,
    )
