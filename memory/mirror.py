"""Chroma as a mirror of the entries table: what it owes it is given, what it lost it gets anew.

Knows nothing of searching. A change is committed to the entries table together with a note of the
vector it owes; the note is struck out once Chroma has taken the vector. A crash between the two
therefore leaves a note, and the next use settles it.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

import numpy as np

from ..errors import InputError, StoreError
from .chroma import VectorStore
from .entry import Entry, owner_of
from .lexical import EntryTable
from .vectors import Embedder, Vectors

_BATCH = 512
"""Entries embedded and given to Chroma at once: the most work that a crash makes undone."""

_Pairs = frozenset[tuple[str, str]]
"""(id, owner) of vectors."""


@dataclass(frozen=True, slots=True)
class Check:
    """Where Chroma and the entries disagree.

    Args:
        missing: ids whose vector is not there, or not yet known to be in line with the entry.
        orphans: ids of vectors without an entry.
        fault: why the vectors cannot be read at all; the two others are then empty.
    """

    missing: frozenset[str] = frozenset()
    orphans: frozenset[str] = frozenset()
    fault: str | None = None

    @property
    def ok(self) -> bool:
        """Whether they agree."""
        return self == Check()


class Mirror:
    """The vectors of an entries table.

    Args:
        entries: the truth.
        embedder: what a vector is a function of, beside the text.
        place: a folder for an embedded Chroma, or a server's URL.
        collection: prefix of the collections in it.
        keys: metadata keys that Chroma is told of.

    Chroma is opened when first needed, so that a damaged one can be repaired or cleared.
    """

    def __init__(
        self,
        entries: EntryTable,
        embedder: Embedder,
        *,
        place: Path | str,
        collection: str,
        keys: Collection[str],
    ) -> None:
        self.lock = RLock()
        self._entries = entries
        self._embedder = embedder
        self._place = place
        self._collection = collection
        self._keys = frozenset(keys)
        self._recipe = f"embedder {embedder.name!r} and keys {sorted(self._keys)}"
        self._store: VectorStore | None = None

    def store(self) -> VectorStore:
        """Chroma, opened and settled when first asked for.

        Raises:
            StoreError: it is damaged, not there, or was filled by another embedder.
        """
        if (store := self._store) is not None:
            return store
        with self.lock:
            if self._store is None:
                opened = self._open()
                try:
                    self._settle(opened)
                except BaseException:
                    opened.close()
                    raise
                self._store = opened
            return self._store

    def settle(self) -> None:
        """Make every pending vector what its entry says, or not be there."""
        with self.lock:
            self._settle(self.store())

    def take(self, entries: Sequence[Entry], rows: Vectors) -> None:
        """Accept vectors [N, D] that are known to be those of the N entries."""
        with self.lock:
            _upsert(self.store(), entries, rows)
            self._entries.settle([(entry.id, owner_of(entry.scope)) for entry in entries])

    def rows(self, ids: Sequence[str]) -> Vectors:
        """[N, D], in the order of `ids`.

        Raises:
            InputError: an id has no entry.
            StoreError: an entry has no vector.
        """
        entries = self._entries.get(ids)
        if unknown := sorted(set(ids) - entries.keys()):
            raise InputError(f"no entries of ids {unknown}; see `ids()` for those there are")
        found: dict[str, Vectors] = {}
        for owner, owned in _by_owner(entries.values()).items():
            found |= self.store().get(owner, [entry.id for entry in owned])
        if missing := sorted(set(ids) - found.keys()):
            raise StoreError(f"no vectors of {missing}; call `repair()`")
        if not found:
            return np.zeros((0, self._embedder.dimension), dtype=np.float32)
        return np.stack([found[id] for id in ids])

    def check(self) -> Check:
        """Compare every entry with Chroma, vectors included; changes nothing, embeds nothing."""
        with self.lock:
            try:
                with nullcontext(self._store) if self._store else closing(self._open()) as store:
                    missing, orphans = self._compare(store)
                    strays = store.strays(self._entries.owners())
            except StoreError as error:
                return Check(fault=str(error))
        return Check(
            missing=frozenset(id for id, _ in missing),
            orphans=frozenset(id for id, _ in orphans) | strays,
        )

    def repair(self) -> Check:
        """Bring Chroma in line with the entries, embedding what is missing; from nothing if it
        cannot be read or was filled by another embedder. Returns what `check` found before.

        Raises:
            StoreError: it still does not work: a server that is not there, say.
        """
        with self.lock:
            found = self.check()
            if found.fault:
                self.discard()
                owners = self._entries.owners()
                self._entries.owe([(id, owner) for owner, ids in owners.items() for id in ids])
            else:
                missing, orphans = self._compare(self.store())
                self._entries.owe(missing | orphans)
                self.store().sweep(self._entries.owners())
            self.settle()
            return found

    def discard(self) -> None:
        """Drop every vector, readable or not; an embedded Chroma's folder is removed."""
        with self.lock:
            self.close()
            if isinstance(self._place, str):
                with closing(self._connect()) as store:
                    store.sweep(())
            elif self._place.is_dir():
                shutil.rmtree(self._place)
            else:
                self._place.unlink(missing_ok=True)
            self._entries.note("recipe", self._recipe)

    def close(self) -> None:
        """Release files and connections. May be called twice."""
        with self.lock:
            if self._store is not None:
                self._store.close()
                self._store = None

    def _connect(self) -> VectorStore:
        return VectorStore(self._place, collection=self._collection, keys=self._keys)

    def _open(self) -> VectorStore:
        recipe = self._entries.fact("recipe")
        if recipe is None:
            self._entries.note("recipe", self._recipe)
        elif recipe != self._recipe:
            raise StoreError(
                f"the vectors of {self._entries.path} were made with {recipe}, and it was opened"
                f" with {self._recipe}; open it as before, or call `repair()` to embed its"
                f" {self._entries.count()} entries anew"
            )
        store = self._connect()
        try:
            if lost := store.lacking(self._entries.settled_owners()):
                raise StoreError(
                    f"Chroma at {store.where} has lost the vectors of {len(lost)} owners that have"
                    f" entries in {self._entries.path}; call `repair()` to embed them anew"
                )
        except BaseException:
            store.close()
            raise
        return store

    def _compare(self, store: VectorStore) -> tuple[_Pairs, _Pairs]:
        """What is missing in Chroma, and what it has too much of."""
        missing = set(self._entries.pending())
        orphans: set[tuple[str, str]] = set()
        for owner, ids in self._entries.owners().items():
            there = store.ids(owner)
            kept = store.get(owner, ids & there)
            missing |= {(id, owner) for id in ids - kept.keys()}
            orphans |= {(id, owner) for id in there - ids}
        return frozenset(missing), frozenset(orphans)

    def _settle(self, store: VectorStore) -> None:
        while pending := self._entries.pending(_BATCH):
            owed = set(pending)
            entries = [
                entry
                for entry in self._entries.get({id for id, _ in owed}).values()
                if (entry.id, owner_of(entry.scope)) in owed
            ]
            _upsert(store, entries, self._embedder.embed([entry.text for entry in entries]))
            for id, owner in owed - {(e.id, owner_of(e.scope)) for e in entries}:
                store.delete(owner, [id])
            self._entries.settle(pending)


def _upsert(store: VectorStore, entries: Sequence[Entry], rows: Vectors) -> None:
    row_of = {entry.id: row for entry, row in zip(entries, rows, strict=True)}
    for owner, owned in _by_owner(entries).items():
        store.upsert(owner, owned, np.stack([row_of[entry.id] for entry in owned]))


def _by_owner(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    owners: dict[str, list[Entry]] = {}
    for entry in entries:
        owners.setdefault(owner_of(entry.scope), []).append(entry)
    return owners
