"""A Chroma server as a mirror of the vectors: what it is owed it is given, and it only proposes.

A change is committed together with a note of what the server is owed; the note is struck out once
the server has taken it. A crash between the two leaves the note, and the next use settles it.
"""

from __future__ import annotations

from threading import RLock

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from ...errors import StoreError
from ..database import Database
from .base import Filter
from .chroma import VectorStore, check_names
from .table import EntryTable

_BATCH = 512


class Mirror:
    """The vectors of a table's entries on a Chroma server; reached when first needed.

    Raises:
        ConfigError: `url` or `collection` is malformed.
    """

    def __init__(self, url: str, collection: str, table: EntryTable, database: Database) -> None:
        check_names(collection, url)
        self._url, self._collection = url, collection
        self._table, self._database = table, database
        self._lock = RLock()
        self._store: VectorStore | None = None

    def nearest(
        self, session: Session, seen: Filter, owner: int, vector: NDArray[np.float32], k: int
    ) -> frozenset[int]:
        """Keys of about the k nearest entries that the filter lets through. The tables decide what
        may be seen: the server's answer is only a proposal.

        Raises:
            StoreError: the server is not there, or has lost what it was given.
        """
        ids = self._opened().query(seen.owner, vector, k, seen.session)
        rows = self._table.rows
        return rows.keys_of(session, ids, rows.visible(seen, owner))

    def settle(self) -> None:
        """Give the server what it is owed."""
        with self._lock:
            store = self._store or self._open()
            self._settle(store)

    def sweep(self) -> None:
        """Leave nothing on the server."""
        with self._lock:
            store = self._store or VectorStore(self._url, collection=self._collection)
            store.sweep(())
            self._store = store

    def close(self) -> None:
        """Release the connection. May be called twice."""
        with self._lock:
            if self._store is not None:
                self._store.close()
                self._store = None

    def _opened(self) -> VectorStore:
        with self._lock:
            if self._store is None:
                self._store = self._open()
                self._settle(self._store)
            return self._store

    def _open(self) -> VectorStore:
        store = VectorStore(self._url, collection=self._collection)
        try:
            with self._database.read() as session:
                owing = {owner for _, owner in self._table.owed(session, -1)}
                settled = self._table.owners(session).keys() - owing
            if lost := store.lacking(settled):
                raise StoreError(
                    f"Chroma at {store.where} has lost the vectors of {len(lost)} owners; fill it"
                    " anew with `palimpsest doctor --fix`"
                )
        except BaseException:
            store.close()
            raise
        self._store = store
        return store

    def _settle(self, store: VectorStore) -> None:
        while True:
            with self._database.read() as session:
                owed = self._table.owed(session, _BATCH)
                entries = self._table.get(session, {id for id, _ in owed})
                packed = self._table.encodings(session, list(entries))
            if not owed:
                return
            for owner in {owner for _, owner in owed}:
                mine = [id for id, whose in owed if whose == owner]
                there = [id for id in mine if id in entries and entries[id].owner == owner]
                if there:
                    vectors = np.stack([packed[id].vector.astype(np.float32) for id in there])
                    sessions = [entries[id].scope.session for id in there]
                    store.upsert(owner, there, sessions, vectors)
                store.delete(owner, set(mine) - set(there))
            with self._database.write() as session:
                self._table.settle(session, owed)
