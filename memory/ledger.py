"""The ledger: every record, what became of it, and what was made from it. The only truth there is.

It knows neither models nor stores; it knows of a store only its name, how far it has followed the
events, and which record each of its artefacts comes from. Every read is bound to a scope.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Self, get_args

from sqlalchemy import func, select

from ..errors import InputError, RecordNotFound
from . import chain, derived, journal, transcript
from .base import Artefact
from .chain import Event
from .database import Database
from .erasures import Erasures
from .record import Kind, Reach, Record, RecordId, Scope, Turn
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
from .screening import admitted
from .traces import Traces
from .transcript import SessionInfo
from .transfer import Transfer
from .upkeep import Upkeep

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
        self.erasures = Erasures(database)
        self.traces = Traces(database)
        self.transfer = Transfer(database)
        self.upkeep = Upkeep(database)

    @property
    def name(self) -> str:
        """Its file, or its URL without the password."""
        return str(self._database.name)

    @property
    def file(self) -> Path | None:
        """Where it lies; None on a server."""
        return self._database.file

    @classmethod
    def open(cls, where: str | Path, *, read_only: bool = False) -> Ledger:
        """Open a file path or a database URL; makes it and brings its schema up to date, unless it
        is to be `read_only`, which works beside another process that writes.

        Raises:
            LedgerError: it cannot be read or written, or a newer version wrote it.
            ConfigError: the URL cannot be used.
        """
        return cls(Database(where, read_only=read_only))

    def close(self) -> None:
        """Release the file. May be called twice."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, records: Iterable[Record], *, screened: bool = True) -> int:
        """Add records, all or none, and return how many were new. An id that is there already with
        the same content is left as it is. A record that supersedes another ends it: the old one's
        `valid_to` becomes the new one's `valid_from`.

        Args:
            screened: what comes from a document or a tool and gives orders is kept without any
                trust, so that no store is given it; see `screening`.

        Raises:
            LedgerError: an id that is taken by another content; a record corrected twice.
            RecordNotFound: a parent or superseded record is unknown to that tenant, user and agent.
            InputError: a time without a zone, `meta` that is not JSON, or a record that supersedes
                one of a source that is trusted more.
        """
        given = [admitted(record) for record in records] if screened else list(records)
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

    def purge(self, *, rewrite: bool = True) -> None:
        """Leave nothing of erased records in the files: writes them anew, and empties the log of
        old pages."""
        self._database.scrub(rewrite=rewrite)

    def get(self, id: RecordId, scope: Scope) -> Record:
        """One record.

        Raises:
            RecordNotFound: none of that id in the scope.
        """
        found = self.find([id], scope)
        if not found:
            raise RecordNotFound(f"record {id} is not in the ledger for {Reach.of(scope)}")
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
        quarantined: bool = False,
        after: RecordId | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[Record]:
        """Records in the order they were appended, or its reverse.

        Args:
            kinds: only these; None means all.
            current_only: only what nothing has superseded or ended.
            quarantined: only what is kept without any trust.
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
        if quarantined:
            query = query.where(RecordRow.trust == 0)
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

    def held_any(self, store: str) -> bool:
        """Whether a store holds something of any record, by the lineage."""
        query = select(LineageRow.record).where(LineageRow.store == store).limit(1)
        with self._database.read() as session:
            return session.scalar(query) is not None

    def held(self, store: str) -> frozenset[RecordId]:
        """The records of which a store holds something, by the lineage."""
        query = select(LineageRow.record).where(LineageRow.store == store).distinct()
        with self._database.read() as session:
            return frozenset(RecordId(id) for id in session.scalars(query))
