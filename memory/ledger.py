"""The ledger: every record, what became of it, and what was made from it. The only truth there is.

It knows neither models nor stores; it knows of a store only its name, how far it has followed the
events, and which record each of its artefacts comes from. Every read is bound to a scope.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

from sqlalchemy import delete, func, insert, or_, select, update
from sqlalchemy.orm import Session

from ..errors import InputError, RecordNotFound
from . import chain, journal, transcript
from .base import Artefact
from .chain import Event, canonical
from .database import Database
from .record import Kind, Record, RecordId, Scope, Turn, now
from .schema import (
    CursorRow,
    EventRow,
    HeadRow,
    LineageRow,
    ParentRow,
    RecordRow,
    SessionRow,
    TraceRow,
    visible,
)
from .transcript import SessionInfo

__all__ = ["Event", "Ledger", "SessionInfo"]


class Ledger:
    """Records in a database. Safe to use from several threads.

    A read of a scope that was never written to finds nothing. Whatever writes is durable when it
    returns, or has changed nothing when it raises.

    Raises:
        LedgerError: from any method, when the database fails; says what, where, and the remedy.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, where: str | Path) -> Ledger:
        """Open a file path or a database URL; makes it and brings its schema up to date.

        Raises:
            LedgerError: it cannot be read or written, or a newer version wrote it.
            ConfigError: the URL cannot be used.
        """
        return cls(Database(where))

    def close(self) -> None:
        """Release the file. May be called twice."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def append(self, records: Iterable[Record]) -> int:
        """Add records, all or none, and return how many were new. An id that is there already with
        the same content is left as it is. A record that supersedes another ends it: the old one's
        `valid_to` becomes the new one's `valid_from`.

        Raises:
            LedgerError: an id that is taken by another content; a record superseded twice.
            RecordNotFound: a parent or superseded record is unknown to that tenant, user and agent.
            InputError: a time without a zone, or `meta` that is not JSON.
        """
        given = list(records)
        if not given:
            return 0
        with self._database.write() as session:
            return journal.append(session, given)

    def erase(self, ids: Collection[RecordId], scope: Scope) -> frozenset[RecordId]:
        """Remove those of the records that the scope covers, and return their ids. What they
        superseded holds again. Their edges, lineage and traces go with them; what was made from
        them stays (see `children`). `purge` then scrubs the files."""
        with self._database.write() as session:
            return journal.erase(session, ids, scope)

    def purge(self) -> None:
        """Leave nothing of erased records in the files: empties the log of old pages."""
        self._database.scrub()

    def get(self, id: RecordId, scope: Scope) -> Record:
        """One record.

        Raises:
            RecordNotFound: none of that id in the scope.
        """
        found = self.find([id], scope)
        if not found:
            raise RecordNotFound(f"record {id} is not in the ledger for {scope}")
        return found[0]

    def find(self, ids: Iterable[RecordId], scope: Scope) -> list[Record]:
        """Those of the records that the scope covers, in the order of `ids`."""
        wanted = list(dict.fromkeys(ids))
        found: dict[RecordId, Record] = {}
        with self._database.read() as session:
            for part in journal.chunks(wanted):
                query = visible(select(RecordRow).where(RecordRow.id.in_(part)), scope)
                found |= {RecordId(row.id): row.to_record() for row in session.scalars(query)}
        return [found[id] for id in wanted if id in found]

    def records(
        self,
        scope: Scope,
        *,
        kinds: Collection[Kind] | None = None,
        current_only: bool = False,
        after: RecordId | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[Record]:
        """Records in the order they were appended, or its reverse.

        Args:
            kinds: only these; None means all.
            current_only: only what nothing has superseded or ended.
            after: only what comes after this record, in the order asked for. It may be erased.
            limit: at most this many.

        Raises:
            InputError: a kind that does not exist.
            RecordNotFound: `after` was never in the ledger.
        """
        query = visible(select(RecordRow), scope)
        if kinds is not None:
            for kind in kinds:
                if kind not in get_args(Kind):
                    raise InputError(f"kinds has {kind!r}, and the kinds are {get_args(Kind)}")
            query = query.where(RecordRow.kind.in_(kinds))
        if current_only:
            query = query.where(RecordRow.superseded_at.is_(None), RecordRow.valid_to.is_(None))
        with self._database.read() as session:
            if after is not None:
                seq = _position(session, after)
                query = query.where(RecordRow.seq < seq if newest_first else RecordRow.seq > seq)
            order = RecordRow.seq.desc() if newest_first else RecordRow.seq.asc()
            rows = session.scalars(query.order_by(order).limit(limit))
            return [row.to_record() for row in rows]

    def history(self, id: RecordId, scope: Scope) -> list[Record]:
        """All that a record superseded and all that superseded it, oldest first.

        Raises:
            RecordNotFound: none of that id in the scope.
        """
        chain_ = [self.get(id, scope)]
        family = scope.across_sessions()
        with self._database.read() as session:
            while (old := chain_[0].supersedes) is not None:
                query = visible(select(RecordRow).where(RecordRow.id == old), family)
                chain_.insert(0, session.scalars(query).one().to_record())
            newer = True
            while newer:
                heir = select(RecordRow).where(RecordRow.supersedes == chain_[-1].id)
                found = session.scalars(visible(heir, family)).one_or_none()
                newer = found is not None
                if found:
                    chain_.append(found.to_record())
        return chain_
