"""Archived memory: the records of the stream in one SQLite file, and the items they make.

What it holds is a function of the set of records it holds, whatever order they came in and left:
that is what makes forgetting exact. It knows nothing of vectors, of models or of ranking.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from threading import RLock
from typing import Any

from ...errors import StoreError
from ..record import Record, RecordId, Scope, new_id
from .items import Item

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    id TEXT PRIMARY KEY, item TEXT NOT NULL, tenant TEXT NOT NULL, user TEXT NOT NULL,
    agent TEXT NOT NULL, created TEXT NOT NULL, lot TEXT NOT NULL, kind TEXT NOT NULL,
    supersedes TEXT, ended INTEGER NOT NULL, body TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS by_item ON records (item);
CREATE INDEX IF NOT EXISTS by_superseded ON records (supersedes);
CREATE INDEX IF NOT EXISTS by_lot ON records (tenant, user, agent, lot);
CREATE TABLE IF NOT EXISTS parents (child TEXT, parent TEXT, PRIMARY KEY (child, parent));
CREATE INDEX IF NOT EXISTS by_parent ON parents (parent);
CREATE TABLE IF NOT EXISTS stale (item TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""

_LIVE = """ended = 0
    AND NOT EXISTS (SELECT 1 FROM records AS heir WHERE heir.supersedes = records.id)
    AND NOT EXISTS (
        SELECT 1 FROM parents JOIN records AS ground ON ground.id = parents.parent
        WHERE parents.child = records.id AND (
            ground.ended
            OR EXISTS (SELECT 1 FROM records AS heir WHERE heir.supersedes = ground.id)))"""
_HEADS = f"id = item AND tenant = ? AND user = ? AND agent = ? AND {_LIVE}"


class Archive:
    """Records, and the items they make. Safe to use from several threads.

    Held is every message of a user, every fact, correction and document; a reply to a held message;
    a summary all of whose parents are held. Tool and system messages are not. A superseded or ended
    record is held, and is part of no item until what superseded it is forgotten; nor is what was
    made from it: an answer that went by a corrected fact must not be remembered as an answer.

    `stale()` lists items whose index entries may be out of date; it survives a crash.

    Args:
        path: of the SQLite file.
        layout: how entries are made from items; if it is not the one from before, all are stale.

    Raises:
        StoreError: from any method, when the file cannot be read or written.
    """

    def __init__(self, path: Path, layout: str) -> None:
        self._path = path
        self._lock = RLock()
        with self._errors():
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
                self._db.execute(f"PRAGMA {pragma}")
            self._db.executescript(_SCHEMA)
        with self.transaction():
            self._db.execute("INSERT OR IGNORE INTO settings VALUES ('identity', ?)", (new_id(),))
            if self._rows("SELECT value FROM settings WHERE name = 'layout'") != [(layout,)]:
                self._db.execute("INSERT OR REPLACE INTO settings VALUES ('layout', ?)", (layout,))
                self._db.execute("INSERT OR IGNORE INTO stale SELECT DISTINCT item FROM records")

    @property
    def identity(self) -> str:
        """Tells this file from any other, for as long as it exists."""
        return str(self._rows("SELECT value FROM settings WHERE name = 'identity'")[0][0])

    def close(self) -> None:
        """Release the file. May be called twice."""
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is done inside is done whole or not at all. They may be nested."""
        with self._errors(), self._lock:
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def put(self, records: Iterable[Record]) -> dict[RecordId, RecordId]:
        """Take records in, in ledger order; returns the item of each record that is held."""
        with self.transaction():
            placed = {record.id: self._put(record) for record in records}
        return {id: item for id, item in placed.items() if item is not None}

    def drop(self, ids: Collection[RecordId]) -> tuple[frozenset[RecordId], frozenset[RecordId]]:
        """Forget records, the replies to them and the summaries made from them.

        Returns:
            The ids of all that went, and of the items that stay and were touched.
        """
        with self.transaction():
            gone = self._with_dependants(ids)
            touched: set[RecordId] = set()
            for id in gone:
                [(item, old)] = self._rows("SELECT item, supersedes FROM records WHERE id = ?", id)
                touched |= {item} | self._kin(old)
                self._touch(item)
            for id in gone:
                self._db.execute("DELETE FROM records WHERE id = ?", (id,))
                self._db.execute("DELETE FROM parents WHERE child = ? OR parent = ?", (id, id))
            for item in touched:
                self._touch(item)
        return frozenset(gone), frozenset(touched - gone)

    def scrub(self) -> None:
        """Leave nothing of dropped records in the file or its log."""
        with self._errors(), self._lock:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def clear(self) -> None:
        """Hold nothing; every item there was is stale."""
        with self.transaction():
            self._db.execute("INSERT OR IGNORE INTO stale SELECT DISTINCT item FROM records")
            self._db.execute("DELETE FROM records")
            self._db.execute("DELETE FROM parents")

    def get(self, id: str) -> Item | None:
        """The item, unless it is not held or its head is superseded or has ended."""
        rows = self._rows(
            f"SELECT body, {_LIVE} FROM records WHERE item = ? ORDER BY created, id", id
        )
        live = [_load(body) for body, holds in rows if holds]
        head = next((record for record in live if record.id == id), None)
        if head is None:
            return None
        others = [record for record in live if record.id != id]
        replies = [record for record in others if record.kind == "message"]
        item = Item(head, replies[-1] if replies else None)
        parts = {part.id for part in item.parts}
        summaries = [r for r in others if r.kind == "summary" and set(r.parents) == parts]
        return replace(item, summary=summaries[-1] if summaries else None)

    def live(self) -> list[RecordId]:
        """Ids of the items of all scopes that `get` would return, oldest first."""
        query = f"SELECT id FROM records WHERE id = item AND {_LIVE} ORDER BY created, id"
        return [id for (id,) in self._rows(query)]

    def count(self, scope: Scope) -> int:
        """Live items of a user with an agent, in all sessions."""
        return int(self._rows(f"SELECT count(*) FROM records WHERE {_HEADS}", *_owner(scope))[0][0])

    def age(self, item: Item) -> int:
        """Live items of the same user and agent that are newer."""
        newer = f"SELECT count(*) FROM records WHERE {_HEADS} AND (created, id) > (?, ?)"
        rows = self._rows(newer, *_owner(item.head.scope), _stamp(item.head), item.id)
        return int(rows[0][0])

    def sample(self, scope: Scope, size: int) -> list[RecordId]:
        """Ids of up to `size` live items, drawn by a hash of their ids: the same draw every time,
        and nearly the same after another item has come."""
        query = f"SELECT id FROM records WHERE {_HEADS} ORDER BY lot LIMIT ?"
        return [id for (id,) in self._rows(query, *_owner(scope), size)]

    def held(self) -> frozenset[RecordId]:
        """Ids of all records."""
        return frozenset(id for (id,) in self._rows("SELECT id FROM records"))

    def stale(self, limit: int) -> list[RecordId]:
        """Up to `limit` items whose entries may be out of date."""
        return [id for (id,) in self._rows("SELECT item FROM stale ORDER BY item LIMIT ?", limit)]

    def settle(self, items: Collection[RecordId]) -> None:
        """Their entries are up to date."""
        with self.transaction():
            self._db.executemany("DELETE FROM stale WHERE item = ?", [(item,) for item in items])

    def dump(self) -> list[dict[str, Any]]:
        """Every record as JSON values, ordered by id; `restore` reads them back."""
        rows = self._rows("SELECT item, ended, body FROM records ORDER BY id")
        return [
            {"item": item, "ended": ended, "body": json.loads(body)} for item, ended, body in rows
        ]

    def restore(self, dumped: Iterable[Mapping[str, Any]]) -> None:
        """Hold exactly what `dump` described; all of it, and all there was, is stale."""
        with self.transaction():
            self.clear()
            for values in dumped:
                record = _load(json.dumps(values["body"]))
                self._insert(record, values["item"], values["ended"])

    def _put(self, record: Record) -> RecordId | None:
        item = self._place(record)
        if item is None:
            return None
        # What ended a record is not kept where its heir is held: forgetting the heir revives it.
        heirs = self._rows("SELECT 1 FROM records WHERE supersedes = ? LIMIT 1", record.id)
        ended = int(record.valid_to is not None and not heirs)
        known = self._rows("SELECT ended, body, supersedes FROM records WHERE id = ?", record.id)
        if not known or known[0][:2] != (ended, _dump(record)):
            self._insert(record, item, ended)
            self._db.execute("UPDATE records SET ended = 0 WHERE id = ?", (record.supersedes,))
            for old in {record.id, record.supersedes, *(was for *_, was in known)}:
                for other in self._kin(old):
                    self._touch(other)
        return item

    def _insert(self, record: Record, item: RecordId, ended: int) -> None:
        lot = sha256(record.id.encode()).hexdigest()
        row = (
            *(record.id, item, *_owner(record.scope), _stamp(record), lot),
            *(record.kind, record.supersedes, ended, _dump(record)),
        )
        self._db.execute(f"INSERT OR REPLACE INTO records VALUES ({', '.join('?' * 11)})", row)
        self._db.execute("DELETE FROM parents WHERE child = ?", (record.id,))
        edges = [(record.id, parent) for parent in dict.fromkeys(record.parents)]
        self._db.executemany("INSERT INTO parents VALUES (?, ?)", edges)
        self._touch(item)

    def _place(self, record: Record) -> RecordId | None:
        """The item a record belongs to, or None if it is not to be held."""
        if record.kind == "message":
            if record.role == "user":
                return record.id
            if record.role != "assistant":
                return None
            return next((p for p in record.parents if self._item_of(p) == {p}), None)
        if record.kind == "summary":
            items = [self._item_of(parent) for parent in record.parents]
            if not items or not all(items):
                return None
            together = set().union(*items)
            return together.pop() if len(together) == 1 else record.id
        return record.id

    def _item_of(self, id: str | None) -> set[RecordId]:
        return {item for (item,) in self._rows("SELECT item FROM records WHERE id = ?", id)}

    def _kin(self, id: str | None) -> set[RecordId]:
        """The items of a record and of all that was made from it."""
        query = "SELECT item FROM records JOIN parents ON child = id WHERE parent = ?"
        return self._item_of(id) | {item for (item,) in self._rows(query, id)}

    def _with_dependants(self, ids: Collection[RecordId]) -> set[RecordId]:
        gone = {id for id in ids if self._item_of(id)}
        waiting = list(gone)
        query = """
            SELECT child FROM parents JOIN records ON id = child
            WHERE parent = ?1 AND (kind = 'summary' OR item = ?1)"""
        while waiting:
            made = {id for (id,) in self._rows(query, waiting.pop())} - gone
            gone |= made
            waiting += made
        return gone

    def _touch(self, item: RecordId) -> None:
        self._db.execute("INSERT OR IGNORE INTO stale VALUES (?)", (item,))

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self._errors(), self._lock, closing(self._db.execute(query, values)) as cursor:
            return cursor.fetchall()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(
                f"the stream's file {self._path} failed ({error}); make room or mend its rights, or"
                " delete it and let `palimpsest doctor --fix` rebuild it from the ledger"
            ) from error


def _owner(scope: Scope) -> tuple[str, str, str]:
    return (scope.tenant, scope.user, scope.agent)


def _stamp(record: Record) -> str:
    return record.created.astimezone(UTC).isoformat()


def _dump(record: Record) -> str:
    """The record but for its end, which is kept beside it."""
    values = asdict(replace(record, valid_to=None)) | {"meta": dict(record.meta)}
    return json.dumps(values, default=datetime.isoformat, sort_keys=True, ensure_ascii=False)


def _load(body: str) -> Record:
    values = json.loads(body)
    times = {name: datetime.fromisoformat(values[name]) for name in ("created", "valid_from")}
    scope, parents = Scope(**values["scope"]), tuple(values["parents"])
    return Record(**(values | times | {"scope": scope, "parents": parents}))
