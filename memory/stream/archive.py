"""Archived memory: how records come into the stream and leave it again.

What it holds is a function of the set of records it holds, whatever order they came in and left:
that is what makes forgetting exact. Every method works in the transaction it is given. It knows
nothing of vectors, of models or of ranking.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Row, delete, insert, or_, select, update
from sqlalchemy.orm import Session

from ..database import insert_into
from ..journal import chunks
from ..record import Record, RecordId, new_id
from .contents import Contents
from .tables import StreamTables, dump, load, stamp


class _Held(NamedTuple):
    """A record as it is kept: with the item it belongs to, and its end."""

    record: Record
    item: RecordId
    until: str | None

    def row(self) -> dict[str, Any]:
        record, scope = self.record, self.record.scope
        return {
            "id": record.id,
            "item": self.item,
            "tenant": scope.tenant,
            "user": scope.user,
            "agent": scope.agent,
            "created": stamp(record.created),
            "since": stamp(record.valid_from or record.created),
            "until": self.until,
            "kind": record.kind,
            "supersedes": record.supersedes,
            "body": dump(record),
        }


class Archive:
    """Records, and the items they belong to.

    Held is every message of a user, every fact, correction and document; a reply to a held message;
    a summary all of whose parents are held. Tool and system messages are not. What was superseded
    is held: it is the past. `stale` lists items whose index entries are out of date.
    """

    def __init__(self, tables: StreamTables, contents: Contents) -> None:
        self._tables, self._contents = tables, contents

    def prepare(self, session: Session, layout: str) -> str:
        """Returns what tells these tables from any others, for as long as they exist.

        Args:
            layout: how entries are made from items; if it is not the one before, all are stale.
        """
        if self._setting(session, "layout") != layout:
            self._set(session, "layout", layout)
            self._touch(session, session.scalars(select(self._tables.records.c.item).distinct()))
        identity = self._setting(session, "identity")
        if identity is None:
            identity = new_id()
            self._set(session, "identity", identity)
        return identity

    def put(self, session: Session, records: Iterable[Record]) -> dict[RecordId, RecordId]:
        """Take records in, in ledger order; returns the item of each record that is held."""
        batch = {record.id: record for record in records}
        known, heirs = self._known(session, batch)
        asked = {parent for record in batch.values() for parent in record.parents}
        places = self._contents.places(session, asked)
        placed: dict[RecordId, RecordId] = {}
        changed: dict[str, _Held] = {}
        for record in batch.values():
            item = _place(record, places)
            if item is None:
                continue
            placed[record.id] = places[record.id] = item
            # Where its heir is held, what ended it is not kept: forgetting the heir revives it.
            ended = None if record.id in heirs else record.valid_to
            held = _Held(record, item, stamp(ended) if ended else None)
            before = known.get(record.id)
            if before is None or (before.until, before.body) != (held.until, dump(record)):
                changed[record.id] = held
                if record.supersedes:
                    heirs.add(record.supersedes)
        for id in changed.keys() & heirs:
            changed[id] = changed[id]._replace(until=None)
        self._insert(session, changed, known.keys())
        ended_by = {held.record.supersedes for held in changed.values() if held.record.supersedes}
        r = self._tables.records
        for part in chunks(ended_by - changed.keys()):
            session.execute(update(r).where(r.c.id.in_(part)).values(until=None))
        former = {known[id].supersedes for id in changed.keys() & known.keys()} - {None}
        self._touch(session, self._kin(session, changed.keys() | ended_by | former))
        return placed

    def drop(
        self, session: Session, ids: Collection[RecordId]
    ) -> tuple[frozenset[RecordId], frozenset[RecordId]]:
        """Forget records, the replies to them and the summaries made from them.

        Returns:
            The ids of all that went, and of the items that stay and were touched.
        """
        r, p = self._tables.records, self._tables.parents
        gone = self._with_dependants(session, ids)
        touched: set[RecordId] = set()
        for part in chunks(gone):
            rows = session.execute(select(r.c.item, r.c.supersedes).where(r.c.id.in_(part)))
            for item, old in rows.all():
                touched |= {item} | self._kin(session, [old] if old else [])
        for part in chunks(gone):
            session.execute(delete(r).where(r.c.id.in_(part)))
            session.execute(delete(p).where(or_(p.c.child.in_(part), p.c.parent.in_(part))))
        self._touch(session, touched)
        return frozenset(gone), frozenset(touched - gone)

    def clear(self, session: Session) -> None:
        """Hold nothing, and owe the index nothing."""
        for table in (self._tables.records, self._tables.parents, self._tables.stale):
            session.execute(delete(table))

    def stale(self, session: Session, limit: int) -> list[RecordId]:
        """Up to `limit` items whose entries are out of date."""
        s = self._tables.stale
        return list(
            map(RecordId, session.scalars(select(s.c.item).order_by(s.c.item).limit(limit)))
        )

    def settle(self, session: Session, items: Collection[RecordId]) -> None:
        """Their entries are up to date."""
        s = self._tables.stale
        for part in chunks(items):
            session.execute(delete(s).where(s.c.item.in_(part)))

    def restore(self, session: Session, dumped: Iterable[Mapping[str, Any]]) -> None:
        """Hold exactly what `dump` described; all of it is stale."""
        self.clear(session)
        new: dict[str, _Held] = {}
        for values in dumped:
            record = load(json.dumps(values["body"]))
            new[record.id] = _Held(record, RecordId(values["item"]), values["until"])
        self._insert(session, new)
        self._touch(session, {held.item for held in new.values()})

    def _known(
        self, session: Session, ids: Collection[str]
    ) -> tuple[dict[str, Row[Any]], set[str]]:
        """What is held of these records, by id, and which of them were superseded by what is."""
        r = self._tables.records
        query = select(r.c.id, r.c.until, r.c.body, r.c.supersedes)
        known: dict[str, Row[Any]] = {}
        heirs: set[str] = set()
        for part in chunks(ids):
            known |= {row.id: row for row in session.execute(query.where(r.c.id.in_(part)))}
            heirs.update(session.scalars(select(r.c.supersedes).where(r.c.supersedes.in_(part))))
        return known, heirs

    def _insert(
        self, session: Session, new: Mapping[str, _Held], known: Collection[str] = ()
    ) -> None:
        """Write records by id, and their edges; in place of what is there of those known."""
        r, p = self._tables.records, self._tables.parents
        for replaced in chunks(new.keys() & known):
            session.execute(delete(r).where(r.c.id.in_(replaced)))
            session.execute(delete(p).where(p.c.child.in_(replaced)))
        for part in chunks(new.values()):
            edges = [
                {"child": held.record.id, "parent": parent}
                for held in part
                for parent in dict.fromkeys(held.record.parents)
            ]
            session.execute(insert(r), [held.row() for held in part])
            if edges:
                session.execute(insert(p), edges)

    def _kin(self, session: Session, ids: Collection[str]) -> set[RecordId]:
        """The items of records and of all that was made from them."""
        r, p = self._tables.records, self._tables.parents
        found: set[RecordId] = set()
        for part in chunks(ids):
            made = select(p.c.child).where(p.c.parent.in_(part))
            query = select(r.c.item).where(or_(r.c.id.in_(part), r.c.id.in_(made)))
            found.update(map(RecordId, session.scalars(query)))
        return found

    def _with_dependants(self, session: Session, ids: Collection[RecordId]) -> set[RecordId]:
        r, p = self._tables.records, self._tables.parents
        gone: set[RecordId] = set()
        for part in chunks(ids):
            gone.update(map(RecordId, session.scalars(select(r.c.id).where(r.c.id.in_(part)))))
        unread = set(gone)
        while unread:
            made: set[RecordId] = set()
            for part in chunks(unread):
                query = select(p.c.child).join(r, r.c.id == p.c.child).where(p.c.parent.in_(part))
                query = query.where(or_(r.c.kind == "summary", r.c.item == p.c.parent))
                made.update(map(RecordId, session.scalars(query)))
            unread = made - gone
            gone |= made
        return gone

    def _touch(self, session: Session, items: Iterable[str]) -> None:
        s = self._tables.stale
        noted = insert_into(session, s).on_conflict_do_nothing()
        for part in chunks(set(items)):
            session.execute(noted, [{"item": item} for item in sorted(part)])

    def _setting(self, session: Session, name: str) -> str | None:
        s = self._tables.settings
        return session.scalar(select(s.c.value).where(s.c.name == name))

    def _set(self, session: Session, name: str, value: str) -> None:
        s = self._tables.settings
        session.execute(delete(s).where(s.c.name == name))
        session.execute(insert(s).values(name=name, value=value))


def _place(record: Record, places: Mapping[RecordId, RecordId]) -> RecordId | None:
    """The item a record belongs to, given those of its held parents; None: it is not to be held."""
    if record.kind == "message":
        if record.role == "user":
            return record.id
        if record.role != "assistant":
            return None
        return next((parent for parent in record.parents if places.get(parent) == parent), None)
    if record.kind == "summary":
        together = {places.get(parent) for parent in record.parents}
        if not together or None in together:
            return None
        return together.pop() if len(together) == 1 else record.id
    return record.id
