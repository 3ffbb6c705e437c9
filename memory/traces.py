"""The accounts of turns: which memory gave what, by ids and numbers, and never a text.

Knows nothing of what an account says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import insert, or_, select

from ..errors import RecordNotFound
from .chain import canonical
from .database import Database
from .record import Reach, Scope, now
from .schema import TraceRow, visible


class Traces:
    """Of one ledger. Safe to use from several threads.

    Raises:
        LedgerError: from any method, when the database fails.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, id: str, scope: Scope, reply: str | None, data: Mapping[str, Any]) -> None:
        """Keep the account of a turn: plain JSON of ids and numbers, never texts.

        Raises:
            InputError: `data` is not JSON.
        """
        canonical(dict(data), "a trace")
        row = {"id": id, "reply": reply, "created": now(), "data": dict(data)} | asdict(scope)
        with self._database.write() as session:
            session.execute(insert(TraceRow).values(row))

    def get(self, id: str, scope: Scope) -> dict[str, Any]:
        """The account of a turn, by its own id or by its reply's.

        Raises:
            RecordNotFound: there is none in the scope.
        """
        query = select(TraceRow.data).where(or_(TraceRow.id == id, TraceRow.reply == id))
        with self._database.read() as session:
            found: dict[str, Any] | None = session.scalar(visible(query, scope, TraceRow))
        if found is None:
            raise RecordNotFound(f"no trace of {id} for {Reach.of(scope)}")
        return found

    def last(self, scope: Scope) -> dict[str, Any] | None:
        """The account of the newest turn the scope covers."""
        query = visible(select(TraceRow.data), scope, TraceRow)
        newest = query.order_by(TraceRow.created.desc(), TraceRow.id.desc()).limit(1)
        with self._database.read() as session:
            return session.scalar(newest)
