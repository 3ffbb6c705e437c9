"""The ledger: every record, what became of it, and what was made from it. The only truth there is.

It knows neither models nor stores; it knows of a store only its name, how far it has followed the
events, and which record each of its artefacts comes from. Every read is bound to a scope.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, get_args

from sqlalchemy import func, insert, or_, select

from ..errors import InputError, RecordNotFound
from . import chain, derived, journal, transcript
from .base import Artefact
from .chain import Event, canonical
from .database import Database
from .record import Kind, Record, RecordId, Scope, Turn, now
from .schema import (
    CursorRow,
    EventRow,
    HeadRow,
    LineageRow,
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, records: Iterable[Record]) -> int:
        """Add records, all or none, and return how many were new. An id that is there already with
        the same content is left as it is. A record that supersedes another ends it: the old one's
        `valid_to` becomes the new one's `valid_from`.

        Raises:
            LedgerError: an id that is taken by another content; a record corrected twice.
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
                seq = chain.position(session, after)
                query = query.where(RecordRow.seq < seq if newest_first else RecordRow.seq > seq)
            order = RecordRow.seq.desc() if newest_first else RecordRow.seq.asc()
            rows = session.scalars(query.order_by(order).limit(limit))
            return [row.to_record() for row in rows]

    def history(self, id: RecordId, scope: Scope) -> list[Record]:
        """A record with all that it superseded and all that superseded it, oldest first.

        Raises:
            RecordNotFound: none of that id in the scope.
        """
        self.get(id, scope)
        with self._database.read() as session:
            return derived.history(session, id, scope.across_sessions())

    def turns(self, scope: Scope, limit: int | None = None) -> list[Turn]:
        """The last `limit` turns of `scope.session`, oldest first; those of the session it was
        forked from come before its own. Messages and replies that were superseded are left out.

        Raises:
            InputError: the scope names no session.
        """
        with self._database.read() as session:
            return transcript.turns(session, scope, limit)

    def sessions(self, scope: Scope) -> list[SessionInfo]:
        """The sessions the scope covers, the one used last first."""
        with self._database.read() as session:
            return transcript.sessions(session, scope)

    def require_session(self, scope: Scope) -> None:
        """That `scope.session` exists.

        Raises:
            RecordNotFound: it does not; names the sessions there are.
        """
        with self._database.read() as session:
            transcript.require(session, scope)

    def rename(self, scope: Scope, title: str | None) -> None:
        """Give `scope.session` a title.

        Raises:
            RecordNotFound: there is no such session.
        """
        with self._database.write() as session:
            transcript.require(session, scope).title = title

    def fork(self, scope: Scope, new_session: str, at: RecordId | None = None) -> Scope:
        """Begin `new_session`, which continues `scope.session` after the record `at`, or after its
        last one. Both go on independently; the records are shared, not copied.

        Raises:
            RecordNotFound: no such session, or `at` is not part of it.
            LedgerError: `new_session` exists already.
        """
        with self._database.write() as session:
            return transcript.fork(session, scope, new_session, at)

    def children(self, ids: Iterable[RecordId]) -> frozenset[RecordId]:
        """Everything made from these records, directly or not; without themselves."""
        with self._database.read() as session:
            return derived.children(session, ids)

    def lineage(self, ids: Iterable[RecordId]) -> dict[str, list[Artefact]]:
        """What each store, by name, holds of these records."""
        with self._database.read() as session:
            return derived.lineage(session, ids)

    def events(self, after: int = 0, limit: int | None = None) -> list[Event]:
        """What happened after event `after`, in order."""
        with self._database.read() as session:
            return chain.events(session, after, limit)

    def head(self) -> str:
        """The hash of the last event, which stands for the whole history: note it elsewhere, and
        nobody can rewrite the ledger unseen. 64 zeros when nothing happened yet."""
        with self._database.read() as session:
            return session.scalars(select(HeadRow.hash)).one()

    def last_seq(self) -> int:
        """The position of the last event; 0 when nothing happened yet."""
        with self._database.read() as session:
            return session.scalars(select(HeadRow.seq)).one()

    def verify_chain(self) -> None:
        """Check every event's hash, and the content of every record against its event.

        Raises:
            ChainBroken: names the first bad event.
        """
        with self._database.read() as session:
            chain.verify(session)

    def put_trace(self, id: str, scope: Scope, reply: str | None, data: Mapping[str, Any]) -> None:
        """Keep the account of a turn: plain JSON of ids and numbers, never texts.

        Raises:
            InputError: `data` is not JSON.
        """
        canonical(dict(data), "a trace")
        row = {"id": id, "reply": reply, "created": now(), "data": dict(data)} | asdict(scope)
        with self._database.write() as session:
            session.execute(insert(TraceRow).values(row))

    def get_trace(self, id: str, scope: Scope) -> dict[str, Any]:
        """The account of a turn, by its own id or by its reply's.

        Raises:
            RecordNotFound: there is none in the scope.
        """
        query = select(TraceRow.data).where(or_(TraceRow.id == id, TraceRow.reply == id))
        with self._database.read() as session:
            found: dict[str, Any] | None = session.scalar(visible(query, scope, TraceRow))
        if found is None:
            raise RecordNotFound(f"no trace of {id} for {scope}")
        return found

    def last_trace(self, scope: Scope) -> dict[str, Any] | None:
        """The account of the newest turn the scope covers."""
        query = visible(select(TraceRow.data), scope, TraceRow)
        newest = query.order_by(TraceRow.created.desc(), TraceRow.id.desc()).limit(1)
        with self._database.read() as session:
            return session.scalar(newest)

    def stats(self) -> dict[str, int]:
        """How many rows of each sort there are, in all scopes together."""
        tables = {
            "records": RecordRow,
            "sessions": SessionRow,
            "events": EventRow,
            "traces": TraceRow,
            "artefacts": LineageRow,
        }
        with self._database.read() as session:
            return {
                name: session.scalar(select(func.count()).select_from(row)) or 0
                for name, row in tables.items()
            }

    def changes(self, after: int, limit: int) -> list[tuple[Event, Record | None]]:
        """For projections: events after `after`, each with its record as it stands now, or None
        once that is erased. In every scope: stores hold all, and filter when they recall."""
        with self._database.read() as session:
            return derived.changes(session, after, limit)

    def cursor(self, store: str) -> int:
        """The last event a store has followed; 0 for none."""
        with self._database.read() as session:
            return session.scalar(select(CursorRow.seq).where(CursorRow.store == store)) or 0

    def advance(
        self, store: str, seq: int, written: Collection[RecordId], held: Iterable[Artefact]
    ) -> None:
        """Note, in one transaction, that a store has followed the events up to `seq`, and that of
        the records `written` it now holds `held` and nothing else."""
        with self._database.write() as session:
            derived.advance(session, store, seq, written, held)

    def reset(self, store: str) -> None:
        """Note that a store holds nothing and has followed nothing."""
        with self._database.write() as session:
            derived.reset(session, store)

    def held(self, store: str) -> frozenset[RecordId]:
        """The records of which a store holds something, by the lineage."""
        query = select(LineageRow.record).where(LineageRow.store == store).distinct()
        with self._database.read() as session:
            return frozenset(RecordId(id) for id in session.scalars(query))
