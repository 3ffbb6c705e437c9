"""The entries of an index in one SQLite file, found by their words (BM25, SQLite FTS5).

The entries table is an index's truth: text and metadata stand here and nowhere else. Knows nothing
of vectors, but keeps the list of those that are not yet in line with the entries.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

from ..errors import StoreError
from .entry import VISIBLE, Entry, Filter, owner_of
from .words import match_query, words

FORMAT = 1
"""Version of the tables and of `words`; a file of another one is refused."""

_TABLES = """
CREATE TABLE IF NOT EXISTS entries (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    session TEXT,
    created TEXT NOT NULL,
    text TEXT NOT NULL,
    meta TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_by_owner ON entries (owner, id);
CREATE TABLE IF NOT EXISTS pending (
    id TEXT NOT NULL,
    owner TEXT NOT NULL,
    PRIMARY KEY (id, owner)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE VIRTUAL TABLE IF NOT EXISTS lexicon USING fts5 (
    words, content = '', tokenize = 'porter ascii'
);
"""
_SELECT = "SELECT id, owner, session, created, text, meta FROM entries WHERE "
_OF_IDS = "id IN (SELECT value FROM json_each(:ids))"
_VISIBLE_IDS = "SELECT id FROM entries WHERE " + _OF_IDS + " AND " + VISIBLE
_PAGE = "id > :after ORDER BY id LIMIT :size"
_MATCH = (
    "SELECT id, bm25(lexicon) AS badness FROM lexicon JOIN entries ON key = lexicon.rowid"
    " WHERE lexicon MATCH :words AND " + VISIBLE + " ORDER BY badness, id LIMIT :limit"
)


class EntryTable:
    """The entries, their words, and the vectors that are pending.

    One connection, one lock: calls from several threads take turns, for milliseconds each. A change
    and the note that its vector is pending are one transaction, so a crash cannot part them.

    Raises:
        StoreError: the file is no index of this format, cannot be opened, or SQLite lacks FTS5.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = RLock()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise StoreError(f"cannot open the index {path}: {error}") from error
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        with self._guarded() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, FORMAT):
                raise StoreError(
                    f"the index {self.path} has format {version} and this version reads {FORMAT};"
                    " delete its folder and rebuild the store from the ledger"
                )
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA secure_delete = ON")
            try:
                db.executescript(_TABLES + f"PRAGMA user_version = {FORMAT};")
            except sqlite3.OperationalError as error:
                if "fts5" not in str(error):
                    raise
                raise StoreError(
                    f"SQLite {sqlite3.sqlite_version} was built without FTS5, which the index"
                    " needs; use a Python whose sqlite3 module has it"
                ) from error

    @contextmanager
    def _guarded(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time; SQLite's errors become StoreError."""
        with self._lock:
            try:
                yield self._db
            except sqlite3.DatabaseError as error:
                raise StoreError(
                    f"the index {self.path} failed: {error}; if it is damaged, delete its folder"
                    " and rebuild the store from the ledger"
                ) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._guarded() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def put(self, entries: Iterable[Entry]) -> frozenset[str]:
        """Add or replace by id; returns the ids whose content is not what it was."""
        changed: set[str] = set()
        with self._transaction() as db:
            for entry in entries:
                for old in _read(db, _SELECT + "id = :id", id=entry.id):
                    if old.line() == entry.line():
                        break
                    _erase(db, old)
                else:
                    _insert(db, entry)
                    changed.add(entry.id)
        return frozenset(changed)

    def remove(self, ids: Collection[str]) -> dict[str, Entry]:
        """Remove what is there of `ids`; returns it."""
        with self._transaction() as db:
            found = _read(db, _SELECT + _OF_IDS, ids=json.dumps(list(ids)))
            for entry in found:
                _erase(db, entry)
        return {entry.id: entry for entry in found}

    def clear(self) -> None:
        """Hold nothing, and owe no vector."""
        with self._transaction() as db:
            db.execute("DELETE FROM entries")
            db.execute("DELETE FROM pending")
            db.execute("INSERT INTO lexicon (lexicon) VALUES ('delete-all')")

    def get(self, ids: Collection[str]) -> dict[str, Entry]:
        """The entries of `ids` that are there."""
        with self._guarded() as db:
            found = _read(db, _SELECT + _OF_IDS, ids=json.dumps(list(ids)))
        return {entry.id: entry for entry in found}

    def visible(self, ids: Collection[str], seen: Filter) -> frozenset[str]:
        """Those of `ids` that are there and that the filter lets through."""
        with self._guarded() as db:
            found = db.execute(_VISIBLE_IDS, {"ids": json.dumps(list(ids)), **seen.sql()})
            return frozenset(id for (id,) in found)

    def walk(self, seen: Filter | None = None, size: int = 500) -> Iterator[Entry]:
        """Entries by id; each page is read in its own moment, so that no lock is held between."""
        after = ""
        while True:
            with self._guarded() as db:
                if seen is None:
                    page = _read(db, _SELECT + _PAGE, after=after, size=size)
                else:
                    sql = _SELECT + VISIBLE + " AND " + _PAGE
                    page = _read(db, sql, after=after, size=size, **seen.sql())
            yield from page
            if len(page) < size:
                return
            after = page[-1].id

    def owners(self) -> dict[str, frozenset[str]]:
        """Owner -> ids of its entries."""
        held: dict[str, set[str]] = {}
        with self._guarded() as db:
            for owner, id in db.execute("SELECT owner, id FROM entries"):
                held.setdefault(owner, set()).add(id)
        return {owner: frozenset(ids) for owner, ids in held.items()}

    def settled_owners(self) -> frozenset[str]:
        """The owners of whom at least one vector must be there."""
        sql = "SELECT owner FROM entries WHERE (id, owner) NOT IN pending GROUP BY owner"
        with self._guarded() as db:
            return frozenset(owner for (owner,) in db.execute(sql))

    def count(self) -> int:
        """Number of entries."""
        with self._guarded() as db:
            return int(db.execute("SELECT count(*) FROM entries").fetchone()[0])

    def match(self, query: str, seen: Filter, limit: int) -> dict[str, float]:
        """Id -> BM25 (FTS5's: k1 = 1.2, b = 0.75, English stems; always > 0), the best `limit`."""
        expression = match_query(query)
        if expression is None:
            return {}
        with self._guarded() as db:
            rows = db.execute(_MATCH, {"words": expression, "limit": limit, **seen.sql()})
            best = rows.fetchall()
        return {id: -badness for id, badness in best}

    def pending(self, limit: int = -1) -> list[tuple[str, str]]:
        """(id, owner) of vectors that may not be in line with the entries; -1 is all of them."""
        with self._guarded() as db:
            return db.execute("SELECT id, owner FROM pending LIMIT ?", (limit,)).fetchall()

    def settle(self, pairs: Collection[tuple[str, str]]) -> None:
        """These vectors are in line now."""
        with self._transaction() as db:
            db.executemany("DELETE FROM pending WHERE id = ? AND owner = ?", pairs)

    def owe(self, pairs: Collection[tuple[str, str]]) -> None:
        """These vectors may be out of line."""
        with self._transaction() as db:
            db.executemany("INSERT OR IGNORE INTO pending VALUES (?, ?)", pairs)

    def fact(self, name: str) -> str | None:
        """A value noted of the whole index."""
        with self._guarded() as db:
            row = db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def note(self, name: str, value: str) -> None:
        """Note a value of the whole index."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def close(self) -> None:
        """Release the file. May be called twice."""
        with self._lock:
            self._db.close()


def _read(db: sqlite3.Connection, sql: str, **bound: Any) -> list[Entry]:
    return [
        Entry.from_canonical(
            {
                "id": id,
                "owner": json.loads(owner),
                "session": session,
                "created": created,
                "text": text,
                "meta": json.loads(meta),
            }
        )
        for id, owner, session, created, text, meta in db.execute(sql, bound)
    ]


def _insert(db: sqlite3.Connection, entry: Entry) -> None:
    row = entry.canonical()
    owner = owner_of(entry.scope)
    meta = json.dumps(row["meta"], ensure_ascii=False)
    cursor = db.execute(
        "INSERT INTO entries (id, owner, session, created, text, meta) VALUES (?, ?, ?, ?, ?, ?)",
        (entry.id, owner, row["session"], row["created"], row["text"], meta),
    )
    db.execute(
        "INSERT INTO lexicon (rowid, words) VALUES (?, ?)",
        (cursor.lastrowid, " ".join(words(entry.text))),
    )
    db.execute("INSERT OR IGNORE INTO pending VALUES (?, ?)", (entry.id, owner))


def _erase(db: sqlite3.Connection, entry: Entry) -> None:
    (key,) = db.execute("SELECT key FROM entries WHERE id = ?", (entry.id,)).fetchone()
    db.execute(  # a contentless FTS5 table must be told what it forgets
        "INSERT INTO lexicon (lexicon, rowid, words) VALUES ('delete', ?, ?)",
        (key, " ".join(words(entry.text))),
    )
    db.execute("DELETE FROM entries WHERE key = ?", (key,))
    db.execute("INSERT OR IGNORE INTO pending VALUES (?, ?)", (entry.id, owner_of(entry.scope)))
