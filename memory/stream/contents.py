"""What the stream holds: its records, and the items they make, as they are now or once were.

Every method reads in the transaction it is given, and changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from ..journal import chunks
from ..record import Record, RecordId, Scope
from .items import Item
from .tables import StreamTables, load, stamp


class Contents:
    """Of one archive. A superseded or ended record is part of no item until what superseded it is
    forgotten; nor is what was made from it: an answer that went by a corrected fact must not be
    remembered as an answer. They are the past, and make the items of a time at which they held."""

    def __init__(self, tables: StreamTables) -> None:
        self._tables = tables

    def items(
        self, session: Session, ids: Iterable[str], at: datetime | None = None
    ) -> dict[RecordId, Item]:
        """The items of these ids, but for those whose head is not held, superseded or ended; with
        `at`, as they were then."""
        when = None if at is None else stamp(at)
        r = self._tables.records
        live: dict[str, list[Record]] = {}
        for part in chunks(ids):
            query = select(r.c.item, r.c.body).where(r.c.item.in_(part), self._tables.live(when))
            for id, body in session.execute(query.order_by(r.c.created, r.c.id)):
                live.setdefault(id, []).append(load(body))
        made = {RecordId(id): _item(id, records) for id, records in live.items()}
        return {id: item for id, item in made.items() if item is not None}

    def states(
        self, session: Session, ids: Collection[str]
    ) -> tuple[dict[RecordId, Item], dict[RecordId, tuple[Item, frozenset[RecordId]]]]:
        """These items as they are; and of those that have a past, as they last were before they
        were superseded or ended, with the ids of their records that hold no longer."""
        r = self._tables.records
        every: dict[RecordId, list[Record]] = {}
        holding = set[RecordId]()
        for part in chunks(ids):
            query = select(r.c.item, r.c.body, self._tables.live()).where(r.c.item.in_(part))
            for id, body, holds in session.execute(query.order_by(r.c.created, r.c.id)):
                record = load(body)
                every.setdefault(id, []).append(record)
                if holds:
                    holding.add(record.id)
        live: dict[RecordId, Item] = {}
        past: dict[RecordId, tuple[Item, frozenset[RecordId]]] = {}
        for id, records in every.items():
            now = _item(id, [record for record in records if record.id in holding])
            if now is not None:
                live[id] = now
            gone = frozenset(record.id for record in records) - holding
            then = _item(id, [record for record in records if record.id in gone | {id}])
            if gone and then is not None:
                past[id] = (then, gone)
        return live, past

    def places(self, session: Session, ids: Iterable[RecordId]) -> dict[RecordId, RecordId]:
        """The item of each of the records that is held."""
        r = self._tables.records
        found: dict[RecordId, RecordId] = {}
        for part in chunks(ids):
            for id, item in session.execute(select(r.c.id, r.c.item).where(r.c.id.in_(part))):
                found[RecordId(id)] = RecordId(item)
        return found

    def marks(self, session: Session, ids: Collection[RecordId] | None = None) -> Iterator[bytes]:
        """What stands in the row of each of these records, or all, and in no other."""
        r = self._tables.records
        query = select(r.c.id, r.c.body)
        chosen = [query.where(r.c.id.in_(part)) for part in chunks(ids or ())]
        for each in [query] if ids is None else chosen:
            for id, body in session.execute(each):
                at = body.index(f'"{id}"') + 1
                yield body[at : at + 64].encode()

    def live(self, session: Session) -> list[RecordId]:
        """Ids of the items of all scopes that `items` would return, oldest first."""
        r = self._tables.records
        query = select(r.c.id).where(r.c.id == r.c.item, self._tables.live())
        return list(map(RecordId, session.scalars(query.order_by(r.c.created, r.c.id))))

    def any(self, session: Session, scope: Scope) -> bool:
        """Whether a user with an agent has anything here, in any session."""
        query = select(self._tables.records.c.id).where(self._tables.owned(scope)).limit(1)
        return session.scalar(query) is not None

    def age(self, session: Session, item: Item) -> int:
        """Live items of the same user and agent that are newer."""
        r = self._tables.records
        query = select(func.count()).select_from(r)
        query = query.where(
            r.c.id == r.c.item, self._tables.owned(item.head.scope), self._tables.live()
        )
        place = tuple_(r.c.created, r.c.id)
        return session.scalar(query.where(place > (stamp(item.head.created), item.id))) or 0

    def empty(self, session: Session) -> bool:
        """Whether there is no record."""
        return session.scalar(select(self._tables.records.c.id).limit(1)) is None

    def held(self, session: Session) -> frozenset[RecordId]:
        """Ids of all records."""
        return frozenset(map(RecordId, session.scalars(select(self._tables.records.c.id))))

    def dump(self, session: Session) -> Iterator[dict[str, Any]]:
        """Every record as JSON values, ordered by id; `restore` reads them back."""
        r = self._tables.records
        query = select(r.c.item, r.c.until, r.c.body).order_by(r.c.id)
        for item, until, body in session.execute(query):
            yield {"item": item, "until": until, "body": json.loads(body)}


def _item(id: str, live: Sequence[Record]) -> Item | None:
    head = next((record for record in live if record.id == id), None)
    if head is None:
        return None
    others = [record for record in live if record.id != id]
    replies = [record for record in others if record.kind == "message"]
    item = Item(head, replies[-1] if replies else None)
    parts = {part.id for part in item.parts}
    summaries = [r for r in others if r.kind == "summary" and set(r.parents) == parts]
    return replace(item, summary=summaries[-1] if summaries else None)
