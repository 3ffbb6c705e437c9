"""The ledger as lines of JSON, out of one database and into another.

A whole ledger goes over exactly: ids, order, events and their hashes. A part of one, and a whole
one into a ledger that is in use, goes over as records: they are appended, in their order, and the
events of that are new. What stores hold is made from records and stays behind.

Knows nothing of files but that they have lines.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from .database import Database
from .journal import COPIED, chunks
from .lines import PAGE, Reader, Values, written
from .merging import Merge, Mirror, Sink, Taken
from .record import Scope
from .schema import (
    ErasureRow,
    EventRow,
    HeadRow,
    ParentRow,
    RecordRow,
    SessionRow,
    TraceRow,
    visible,
)

Rows = Iterator[tuple[str, Mapping[str, Any]]]

OWNER = ("tenant", "user", "agent", "session")
STATED = frozenset(COPIED) - {"content_hash", "supersedes"} | {*OWNER}
"""Columns of a record that mean the same in any ledger."""


class Transfer:
    """Of one ledger. Safe to use from several threads.

    Raises:
        LedgerError: from any method, when the database fails.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def lines(self, scope: Scope | None = None) -> Iterator[bytes]:
        """All of the ledger, or what the scope covers, in one state. Equal ledgers have equal
        lines, and so have equal parts of ledgers.

        Of a part, what refers to a record outside of it says so no more: a parent, or what it
        supersedes. What was superseded from outside has its end.
        """
        with self._database.read() as session:
            if scope is None:
                head = session.execute(select(HeadRow.seq, HeadRow.hash)).one()
                chain = {"seq": head.seq, "hash": head.hash}
                yield from written({"scope": None, "chain": chain}, _everything(session))
            else:
                header = {"scope": asdict(scope), "chain": None}
                yield from written(header, _part(session, scope))

    def take(self, lines: Iterable[bytes]) -> Taken:
        """Take in what `lines` gave: exactly, if it is a whole ledger and there is nothing here
        yet; else what is not here yet. All of it or, when this raises, nothing.

        Raises:
            InputError: these are not the lines of an export, or not all of them.
            LedgerError: an id is taken here by another content, or both correct the same record.
            ChainBroken: the exported ledger was tampered with.
        """
        reader = Reader(lines)
        with self._database.write() as session, reader.explained():
            chain = reader.header["chain"]
            fresh = session.scalar(select(HeadRow.seq)) == 0
            sink: Sink = (
                Mirror(session, (chain["seq"], chain["hash"]))
                if fresh and chain
                else Merge(session)
            )
            for kind, rows in reader.batches():
                sink.take(kind, rows)
            sink.finish()
            return sink.taken()


def _everything(session: Session) -> Rows:
    places = [getattr(SessionRow, name) for name in OWNER]
    yield from _table(session, "session", SessionRow, *places)
    for page in _pages(session, select(*RecordRow.__table__.columns)):
        parents = _parents(session, [row["id"] for row in page])
        for row in page:
            yield "record", {**row, "parents": parents.get(row["id"], [])}
    yield from _table(session, "event", EventRow, EventRow.seq)
    yield from _table(session, "trace", TraceRow, TraceRow.created, TraceRow.id)
    yield from _table(session, "erasure", ErasureRow, ErasureRow.id)


def _table(session: Session, kind: str, row: Any, *order: Any, scope: Scope | None = None) -> Rows:
    query = select(*row.__table__.columns).order_by(*order)
    if scope is not None:
        query = visible(query, scope, row)
    for values in session.execute(query).mappings():
        yield kind, dict(values)


def _pages(session: Session, query: Select[Any]) -> Iterator[list[Values]]:
    rows = session.execute(query.order_by(RecordRow.seq)).mappings()
    for page in rows.partitions(PAGE):
        yield [dict(row) for row in page]


def _part(session: Session, scope: Scope) -> Rows:
    places = [getattr(SessionRow, name) for name in OWNER]
    before = visible(select(func.count()).select_from(RecordRow), scope)
    for kind, row in _table(session, "session", SessionRow, *places, scope=scope):
        inside = row["forked_from"] is not None and scope.session is None
        origin = row["forked_from"] if inside else None
        # Positions are other ones in another ledger: how many records of the part come before.
        at = session.scalar(before.where(RecordRow.seq <= row["forked_at"])) if inside else None
        yield kind, {**row, "forked_from": origin, "forked_at": at}
    seq = 0
    for page in _pages(session, visible(select(*RecordRow.__table__.columns), scope)):
        for values in _records(session, scope, page):
            seq += 1
            yield "record", {**values, "seq": seq}
    yield from _table(session, "trace", TraceRow, TraceRow.created, TraceRow.id, scope=scope)


def _records(session: Session, scope: Scope, page: Collection[Values]) -> Iterator[Values]:
    """Records without what would have another value, or none, in another ledger."""
    ids = [row["id"] for row in page]
    parents = _parents(session, ids)
    referred = {each for listed in parents.values() for each in listed}
    referred |= {row["supersedes"] for row in page if row["supersedes"]}
    inside, replaced = set[str](), set[str]()
    for part in chunks(referred):
        there = visible(select(RecordRow.id), scope).where(RecordRow.id.in_(part))
        inside.update(session.scalars(there))
    for part in chunks(ids):
        heirs = visible(select(RecordRow.supersedes), scope).where(RecordRow.supersedes.in_(part))
        replaced.update(id for id in session.scalars(heirs) if id)
    for row in page:
        values = {name: row[name] for name in STATED}
        if row["superseded_at"] is not None and row["id"] not in replaced:
            values["valid_to"] = row["superseded_at"]
        values["supersedes"] = row["supersedes"] if row["supersedes"] in inside else None
        values["parents"] = [each for each in parents.get(row["id"], []) if each in inside]
        yield values


def _parents(session: Session, ids: Collection[str]) -> dict[str, list[str]]:
    query = select(ParentRow.record, ParentRow.parent).where(ParentRow.record.in_(ids))
    found: dict[str, list[str]] = {}
    for record, parent in session.execute(query.order_by(ParentRow.record, ParentRow.position)):
        found.setdefault(record, []).append(parent)
    return found
