"""What a keeper of the ledger asks of it: is it whole, how much is in it, give me a copy.

Knows nothing of stores but their names, and nothing of backups but that they need a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from .database import Database
from .record import Scope
from .schema import CursorRow, ErasureRow, LineageRow, RecordRow, visible


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What the ledger knows of one store.

    Args:
        records: of which it holds something.
        artefacts: that it holds.
        cursor: the last event it has followed.
    """

    records: int
    artefacts: int
    cursor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """How many records there are, in all scopes, by what they are.

    Args:
        owners: distinct tenants, users and agents, taken together.
        sessions: of one scope, by name; records without a session under "".
        erasures: requests to forget, by how far they are.
    """

    records: int
    current: int
    owners: int
    kinds: Mapping[str, int]
    sources: Mapping[str, int]
    sessions: Mapping[str, int]
    stores: Mapping[str, Followed]
    erasures: Mapping[str, int]


class Upkeep:
    """Of one ledger. Safe to use from several threads.

    Raises:
        LedgerError: from any method, when the database fails.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def faults(self) -> list[str]:
        """What the database itself finds wrong with its file; see `Database.faults`."""
        return self._database.faults()

    def copy(self, path: Path) -> None:
        """Write a consistent copy to a new file, while others read and write.

        Raises:
            ConfigError: the ledger lies on a server.
        """
        self._database.copy(path)

    def followers(self) -> frozenset[str]:
        """The names of the stores that have followed the ledger."""
        with self._database.read() as session:
            return frozenset(session.scalars(select(CursorRow.store)))

    def census(self, scope: Scope) -> Census:
        """Count everything; the sessions are those of the scope."""
        rows = RecordRow.__table__
        owner = select(rows.c.tenant, rows.c.user, rows.c.agent).distinct().subquery()
        current = select(func.count()).where(rows.c.superseded_at.is_(None))
        sessions = select(RecordRow.session, func.count()).group_by(RecordRow.session)
        with self._database.read() as session:
            return Census(
                records=session.scalar(select(func.count()).select_from(rows)) or 0,
                current=session.scalar(current.where(rows.c.valid_to.is_(None))) or 0,
                owners=session.scalar(select(func.count()).select_from(owner)) or 0,
                kinds=_counted(session.execute(_by(rows.c.kind))),
                sources=_counted(session.execute(_by(rows.c.source))),
                sessions=_counted(session.execute(visible(sessions, scope))),
                stores={
                    store: Followed(
                        cursor=seq,
                        records=session.scalar(_of(store, LineageRow.record)) or 0,
                        artefacts=session.scalar(_of(store, LineageRow.artefact)) or 0,
                    )
                    for store, seq in session.execute(select(CursorRow.store, CursorRow.seq)).all()
                },
                erasures=_counted(session.execute(_by(ErasureRow.state))),
            )


def _by(column: Any) -> Any:
    return select(column, func.count()).group_by(column)


def _of(store: str, column: Any) -> Any:
    return select(func.count(func.distinct(column))).where(LineageRow.store == store)


def _counted(rows: Iterable[Any]) -> dict[str, int]:
    """By name, the most first."""
    counts = {name or "": count for name, count in rows}
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
