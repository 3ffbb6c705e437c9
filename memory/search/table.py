"""What is written into an index's tables, and whole entries read from them, inside the caller's
transaction.

Counts of stems are kept as entries come and go, for each owner and each episode apart, so that a
score depends on nobody else's texts. Knows nothing of scores.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from sqlalchemy import (
    BigInteger,
    Insert,
    Select,
    String,
    cast,
    delete,
    insert,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import Session

from ..database import insert_into
from ..journal import chunks
from ..words import stems
from .base import Entry, Filter, stamp
from .lexicon import Lexicon, Said
from .packing import Packed, pack
from .rows import Rows, unpack_stems, unpacked
from .tables import Tables


class EntryTable:
    """The entries of one index. Every method works in the transaction it is given."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.rows = Rows(tables)
        self.lexicon = Lexicon(tables)

    def put(self, session: Session, entries: Sequence[Entry], made: Sequence[Packed]) -> None:
        """Add N entries that are not there, with their N encodings."""
        t = self.tables
        last = self._count(session, len(entries))
        numbers = {name: self._owner(session, name) for name in {e.owner for e in entries}}
        days = {(numbers[entry.owner], _day(entry)) for entry in entries}
        episodes = {(owner, day): self._episode(session, owner, day) for owner, day in days}
        rows, vectors, codes, said = [], [], [], []
        first = last - len(entries) + 1
        for key, (entry, encoding) in enumerate(zip(entries, made, strict=True), first):
            owner = numbers[entry.owner]
            found = stems(entry.text)
            episode = episodes[owner, _day(entry)]
            rows.append(_row(key, owner, episode, entry, found))
            vectors.append(
                {
                    "key": key,
                    "vector": encoding.vector.tobytes(),
                    "tokens": encoding.tokens.tobytes(),
                }
            )
            codes.append({"owner": owner, "key": key, "code": pack(encoding.vector).tobytes()})
            said.append(Said(key, owner, episode, found))
        session.execute(insert(t.entries), rows)
        session.execute(insert(t.vectors), vectors)
        session.execute(insert(t.codes), codes)
        self.lexicon.add(session, said, at=last)

    def remove(self, session: Session, ids: Collection[str]) -> list[Entry]:
        """Remove what is there of `ids`, and all that only these entries left; returns them."""
        t = self.tables
        gone: list[Entry] = []
        for part in chunks(ids):
            query = select(t.entries).where(t.entries.c.id.in_(part))
            rows = session.execute(query).all()
            if rows:
                gone += [_entry(row, self._name(session, row.owner)) for row in rows]
                self._remove(session, rows)
        return gone

    def _remove(self, session: Session, rows: Sequence[Any]) -> None:
        t = self.tables
        keys = [row.key for row in rows]
        said = [
            Said(row.key, row.owner, row.episode, unpack_stems(row.stems).tolist()) for row in rows
        ]
        self.lexicon.remove(session, said, at=self._count(session, 1))
        session.execute(delete(t.entries).where(t.entries.c.key.in_(keys)))
        session.execute(delete(t.vectors).where(t.vectors.c.key.in_(keys)))
        places = {(row.owner, row.key) for row in rows}
        session.execute(delete(t.codes).where(tuple_(t.codes.c.owner, t.codes.c.key).in_(places)))

    def clear(self, session: Session) -> None:
        """Hold nothing."""
        for each in self.tables.metadata.sorted_tables:
            if each is not self.tables.facts:
                session.execute(delete(each))
        self.lexicon.clear(session)

    def get(self, session: Session, ids: Iterable[str]) -> dict[str, Entry]:
        """The entries of `ids` that are there, by id."""
        found: dict[str, Entry] = {}
        for part in chunks(ids):
            for row in session.execute(self._whole().where(self.tables.entries.c.id.in_(part))):
                found[row.id] = _entry(row, row.name)
        return found

    def page(
        self, session: Session, after: str, size: int, seen: Filter | None = None
    ) -> list[Entry]:
        """The `size` entries that follow the id `after`."""
        e = self.tables.entries
        query = self._whole().where(e.c.id > after).order_by(e.c.id).limit(size)
        if seen is not None:
            owner = self.rows.owner(session, seen.owner)
            query = query.where(*self.rows.visible(seen, owner.number if owner else -1))
        return [_entry(row, row.name) for row in session.execute(query)]

    def encodings(self, session: Session, ids: Sequence[str]) -> dict[str, Packed]:
        """The encodings of `ids`."""
        e, v = self.tables.entries, self.tables.vectors
        query = select(e.c.id, v.c.vector, v.c.tokens).join(v, v.c.key == e.c.key)
        found: dict[str, Packed] = {}
        for part in chunks(ids):
            for row in session.execute(query.where(e.c.id.in_(part))):
                found[row.id] = unpacked(row.vector, row.tokens)
        return found

    def owe(self, session: Session, pairs: Iterable[tuple[str, str]]) -> None:
        """Note that what mirrors these (id, owner) may be out of line."""
        rows = [{"id": id, "owner": owner} for id, owner in sorted(set(pairs))]
        if rows:
            statement = insert_into(session, self.tables.pending)
            session.execute(statement.on_conflict_do_nothing(), rows)

    def owed(self, session: Session, limit: int) -> list[tuple[str, str]]:
        """(id, owner) of what may be out of line."""
        p = self.tables.pending
        return [(row.id, row.owner) for row in session.execute(select(p).limit(limit))]

    def settle(self, session: Session, pairs: Collection[tuple[str, str]]) -> None:
        """These are in line now."""
        p = self.tables.pending
        session.execute(delete(p).where(tuple_(p.c.id, p.c.owner).in_(pairs)))

    def fact(self, session: Session, name: str) -> str | None:
        """A value noted of the whole index."""
        facts = self.tables.facts
        return session.scalar(select(facts.c.value).where(facts.c.name == name))

    def note(self, session: Session, name: str, value: str) -> None:
        """Note a value of the whole index."""
        facts = self.tables.facts
        made = insert_into(session, facts).values(name=name, value=value)
        session.execute(made.on_conflict_do_update(index_elements=["name"], set_={"value": value}))

    def _count(self, session: Session, steps: int) -> int:
        """Where the index's count of changes stands, `steps` further on. Keys are such counts, so
        none is ever given twice: what a reader remembers of a key can be old, never wrong."""
        facts = self.tables.facts
        made = insert_into(session, facts).values(name="count", value=str(steps))
        further = cast(cast(facts.c.value, BigInteger) + steps, String)
        counted = made.on_conflict_do_update(index_elements=["name"], set_={"value": further})
        return int(session.execute(counted.returning(facts.c.value)).scalar_one())

    def owners(self, session: Session) -> dict[str, int]:
        """Name -> number of entries."""
        owners = self.tables.owners
        rows = session.execute(select(owners.c.name, owners.c.entries))
        return {row.name: row.entries for row in rows}

    def whose(self, session: Session) -> list[tuple[str, str]]:
        """(id, owner) of all entries."""
        e, o = self.tables.entries, self.tables.owners
        query = select(e.c.id, o.c.name).join(o, o.c.number == e.c.owner)
        return [(row.id, row.name) for row in session.execute(query)]

    def ids(self, session: Session) -> frozenset[str]:
        """Ids of all entries."""
        return frozenset(session.scalars(select(self.tables.entries.c.id)))

    def _whole(self) -> Select[Any]:
        e, o = self.tables.entries, self.tables.owners
        return select(e, o.c.name).join(o, o.c.number == e.c.owner)

    def _owner(self, session: Session, name: str) -> int:
        known = self.rows.owner(session, name)
        if known:
            return known.number
        made = insert(self.tables.owners).values(
            name=name, entries=0, episodes=0, stems=0, changed=0, removed=0
        )
        return _number(session, made)

    def _name(self, session: Session, number: int) -> str:
        owners = self.tables.owners
        return str(session.scalar(select(owners.c.name).where(owners.c.number == number)))

    def _episode(self, session: Session, owner: int, name: str | None) -> int | None:
        """The number of the owner's episode of this name."""
        if name is None:
            return None
        episodes = self.tables.episodes
        known = select(episodes.c.number).where(episodes.c.owner == owner, episodes.c.name == name)
        number = session.scalar(known)
        if number is None:
            made = insert(episodes).values(owner=owner, name=name, entries=0, stems=0)
            number = _number(session, made)
            owners = self.tables.owners
            more = update(owners).where(owners.c.number == owner)
            session.execute(more.values(episodes=owners.c.episodes + 1))
        return number


def _day(entry: Entry) -> str | None:
    """An episode's name: a day of a session, as one that goes on for ever is no one topic."""
    session = entry.scope.session
    return None if session is None else f"{stamp(entry.created)[:10]} {session}"


def _number(session: Session, made: Insert) -> int:
    """The key that a row gets."""
    key = session.connection().execute(made).inserted_primary_key
    assert key is not None
    return int(key[0])


def _row(
    key: int, owner: int, episode: int | None, entry: Entry, found: Sequence[int]
) -> dict[str, Any]:
    session = entry.scope.session
    line = None
    if session is not None:
        line = json.dumps([session, entry.meta.get("form")], ensure_ascii=False)
    return {
        "key": key,
        "id": entry.id,
        "owner": owner,
        "line": line,
        "episode": episode,
        "session": session,
        "created": stamp(entry.created),
        "lot": zlib.crc32(entry.id.encode()),
        "speaker": entry.meta.get("speaker"),
        "role": entry.meta.get("role"),
        "asks": entry.text.rstrip().endswith("?"),
        "stems": np.array(found, np.uint32).tobytes(),
        "meta": dict(entry.meta),
        "text": entry.text,
    }


def _entry(row: Any, owner: str) -> Entry:
    return Entry.from_canonical(
        {
            "id": row.id,
            "owner": json.loads(owner),
            "session": row.session,
            "created": row.created,
            "text": row.text,
            "meta": row.meta,
        }
    )
