"""The rows of an export into a ledger, inside a transaction that the caller holds.

`Mirror` makes an empty ledger the one that was exported. `Merge` appends what another one does not
have yet. Both are given rows in the order of `lines.ROWS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import insert, select, tuple_, update
from sqlalchemy.orm import Session

from . import chain, derived, journal
from .chain import Tail
from .lines import ROWS, Values
from .record import Record, Scope
from .schema import HeadRow, ParentRow, RecordRow, SessionRow, TraceRow

Place = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of an export.

    Args:
        exact: the ledger is now the one that was exported, events and hashes included.
        added, known: records that are new, and that were there already.
        forgotten: records that this ledger has forgotten; they stay out.
        head: of the chain of events.
    """

    exact: bool
    added: int
    known: int
    forgotten: int
    sessions: int
    traces: int
    head: str


@dataclass(slots=True)
class _Fork:
    place: Place
    origin: str
    at: int
    point: str | None = None


class Sink(ABC):
    """Takes rows in, batch by batch."""

    exact: bool

    def __init__(self, session: Session) -> None:
        self._session = session
        self._forks: list[_Fork] = []
        self.added = self.known = self.forgotten = self.sessions = self.traces = 0

    @abstractmethod
    def take(self, kind: str, rows: Sequence[Values]) -> None:
        """Take rows of one kind."""

    @abstractmethod
    def finish(self) -> None:
        """What can be done only when all rows are there."""

    def taken(self) -> Taken:
        """What became of it."""
        return Taken(
            exact=self.exact,
            added=self.added,
            known=self.known,
            forgotten=self.forgotten,
            sessions=self.sessions,
            traces=self.traces,
            head=self._session.scalars(select(HeadRow.hash)).one(),
        )

    def _open(self, rows: Sequence[Values]) -> None:
        """Begin sessions. What one is forked from may come later, so that is set at the end."""
        for row in rows:
            place = (row["tenant"], row["user"], row["agent"], row["session"])
            if self._session.get(SessionRow, place) is not None:
                continue
            if row["forked_from"] is not None:
                self._forks.append(_Fork(place, row["forked_from"], row["forked_at"]))
            bare = row | {"forked_from": None, "forked_at": None}
            self._session.execute(insert(SessionRow).values(bare))
            self.sessions += 1
        self._forks.sort(key=lambda fork: fork.at)

    def _set_fork(self, fork: _Fork, at: int) -> None:
        place = tuple_(SessionRow.tenant, SessionRow.user, SessionRow.agent, SessionRow.session)
        change = update(SessionRow).values(forked_from=fork.origin, forked_at=at)
        options = {"synchronize_session": False}
        self._session.execute(change.where(place == fork.place), execution_options=options)


class Mirror(Sink):
    """Rows as they are, into a ledger that has none.

    Args:
        head: position and hash of the last event, as the export states them.
    """

    exact = True

    def __init__(self, session: Session, head: tuple[int, str]) -> None:
        super().__init__(session)
        self._head = head

    def take(self, kind: str, rows: Sequence[Values]) -> None:
        """Insert them."""
        if kind == "session":
            self._open(rows)
            return
        if kind == "record":
            edges = [
                {"record": row["id"], "parent": parent, "position": position}
                for row in rows
                for position, parent in enumerate(row.pop("parents"))
            ]
        self._session.execute(insert(ROWS[kind]), list(rows))
        if kind == "record":
            self.added += len(rows)
            if edges:
                self._session.execute(insert(ParentRow), edges)
        self.traces += len(rows) if kind == "trace" else 0

    def finish(self) -> None:
        """Set forks and the head, and check that the chain holds.

        Raises:
            ChainBroken: it does not.
        """
        for fork in self._forks:
            self._set_fork(fork, fork.at)
        seq, hash = self._head
        self._session.execute(update(HeadRow).values(seq=seq, hash=hash))
        chain.verify(self._session)


class Merge(Sink):
    """Records by id, behind those that are there. Another ledger's events and erasures are of no
    meaning here and are left out."""

    exact = False

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._gone = set[str]()
        self._last: dict[tuple[str, ...], str] = {}
        self._pinned = 0
        self._how: dict[str, Callable[[Sequence[Values]], None]] = {
            "session": self._open,
            "record": self._append,
            "trace": self._trace,
        }

    def take(self, kind: str, rows: Sequence[Values]) -> None:
        """Add what is not there yet.

        Raises:
            LedgerError: an id is taken by another content, or both sides correct the same record.
        """
        if kind in self._how:
            self._how[kind](rows)

    def finish(self) -> None:
        """Set the forks that are new."""
        self._pin(None)
        if not self._forks:
            return
        tail = Tail(self._session)
        for fork in self._forks:
            query = select(RecordRow.seq).where(RecordRow.id == fork.point)
            self._set_fork(fork, self._session.scalar(query) or 0)
            tail.add("fork", fork.point or "", {})
        tail.flush()

    def _append(self, rows: Sequence[Values]) -> None:
        erased = derived.forgotten(self._session, [row["id"] for row in rows])
        self._gone |= erased
        self.forgotten += len(erased)
        records = []
        for row in rows:
            self._pin(row["seq"])
            if row["id"] not in self._gone:
                self._last[row["tenant"], row["user"], row["agent"]] = row["id"]
                records.append(self._record(row))
        added = journal.append(self._session, records)
        self.added += added
        self.known += len(records) - added

    def _record(self, row: Values) -> Record:
        old = row["supersedes"]
        fields = ("id", "kind", "role", "source", "text", "trust", "meta")
        times = ("created", "valid_from", "valid_to")
        return Record(
            **{name: row[name] for name in (*fields, *times)},
            scope=Scope(row["tenant"], row["user"], row["agent"], row["session"]),
            supersedes=None if old in self._gone else old,
            parents=tuple(each for each in row["parents"] if each not in self._gone),
        )

    def _pin(self, seq: int | None) -> None:
        """Note for the forks that lie before position `seq` of the export which record they read
        last; positions are other ones here."""
        while self._pinned < len(self._forks):
            fork = self._forks[self._pinned]
            if seq is not None and fork.at >= seq:
                return
            fork.point = self._last.get(fork.place[:3])
            self._pinned += 1

    def _trace(self, rows: Sequence[Values]) -> None:
        ids, replies = [row["id"] for row in rows], [row["reply"] for row in rows if row["reply"]]
        known = set(self._session.scalars(select(TraceRow.id).where(TraceRow.id.in_(ids))))
        there = set(self._session.scalars(select(RecordRow.id).where(RecordRow.id.in_(replies))))
        fresh = [row for row in rows if row["id"] not in known and row["reply"] in {None, *there}]
        if fresh:
            self._session.execute(insert(TraceRow), fresh)
        self.traces += len(fresh)
