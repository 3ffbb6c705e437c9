"""One search over entries by meaning and by words: Chroma and SQLite FTS5 behind one interface.

Knows nothing of records, turns or what its entries are for. The SQLite file is the truth, and
Chroma mirrors it; see `mirror` for what holds when one of them stops in the middle.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from .chroma import check_names
from .entry import FILTER_KEYS, Entry, Filter, Scalar, Where
from .lexical import EntryTable
from .mirror import Check, Mirror
from .record import Scope, clean_text
from .snapshot import read_snapshot, write_snapshot
from .vectors import CachedEmbedder, Embedder, Vectors

__all__ = ["Check", "Entry", "Hit", "HybridIndex", "Scalar", "Where"]

_LEXICAL_DEPTH = 400
"""Lexical scores read per search. Costs microseconds each, and spares most dense candidates from
counting as wordless only because fifty others had better words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """An entry that a search found, and why.

    Args:
        score: in [0, 1]: `weight * max(cosine, 0) + (1 - weight) * bounded(bm25)`.
        cosine: of the query's and the entry's vectors; None while the vector is pending.
        bm25: > 0; None if no word of the query is in it or 400 others have better ones.
    """

    entry: Entry
    score: float
    cosine: float | None
    bm25: float | None


class HybridIndex:
    """Entries in a folder, found by cosine and BM25 together.

    Safe to use from several threads: writers take turns, searches wait for none of them but see an
    entry that is being written by its words first and by its vector a moment later. One process
    may have the folder open.

    Args:
        folder: its own; made if it is not there.
        embedder: vectors are kept as its function; another one needs `repair`.
        collection: name in Chroma; on a shared server each index needs its own.
        chroma_url: a Chroma server; by default Chroma runs in this process, in `folder`.
        keys: metadata keys that a search may filter by.

    Raises:
        ConfigError: `collection` or `chroma_url` is malformed.
        StoreError: the SQLite file is damaged. Chroma is opened when first needed, and a damaged
            one raises there, so that `repair` and `clear` can be called.
    """

    def __init__(
        self,
        folder: Path,
        embedder: Embedder,
        *,
        collection: str,
        chroma_url: str | None = None,
        keys: Collection[str] = FILTER_KEYS,
    ) -> None:
        place = chroma_url or folder / "chroma"
        check_names(collection, place)
        self.folder = folder
        self.embedder = embedder
        self._keys = frozenset(keys)
        self._total: int | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._entries = EntryTable(folder / "entries.db")
        self._mirror = Mirror(
            self._entries, embedder, place=place, collection=collection, keys=keys
        )

    def add(self, entries: Iterable[Entry]) -> frozenset[str]:
        """Add entries, or replace those whose id is there; returns the ids whose content changed.
        An unchanged entry costs no work. Durable when it returns."""
        with self._mirror.lock:
            self._mirror.store()
            changed = self._entries.put(entries)
            self._total = None
            self._mirror.settle()
            return changed

    def delete(self, ids: Collection[str]) -> frozenset[str]:
        """Remove entries; returns the ids that were there."""
        with self._mirror.lock:
            self._mirror.store()
            removed = self._entries.remove(ids)
            self._total = None
            if isinstance(self.embedder, CachedEmbedder):
                self.embedder.forget(entry.text for entry in removed.values())
            self._mirror.settle()
            return frozenset(removed)

    def get(self, ids: Collection[str]) -> dict[str, Entry]:
        """The entries of `ids` that are there, by id."""
        return self._entries.get(ids)

    def entries(self, scope: Scope | None = None) -> Iterator[Entry]:
        """All entries that `scope` covers, or all there are, in order of id."""
        return self._entries.walk(Filter.of(scope) if scope else None)

    def ids(self) -> frozenset[str]:
        """Ids of all entries."""
        return frozenset().union(*self._entries.owners().values())

    def count(self) -> int:
        """Number of entries."""
        return self._entries.count()

    def search(
        self,
        query: str,
        scope: Scope,
        k: int,
        *,
        where: Where | None = None,
        weight: float = 0.5,
    ) -> list[Hit]:
        """The k best entries that `scope` covers, best first, equal scores by id.

        Candidates are the best by cosine and the best by BM25; each then gets both signals. They
        are joined as a convex combination of scores, not of ranks (Bruch et al. 2022, "An Analysis
        of Fusion Functions for Hybrid Retrieval", section 4), with bounds that do not depend on the
        other candidates, so that a score of 0.2 means little wherever it is seen.

        Args:
            query: any text that a record could hold.
            scope: with a session: that session only; without: all of this user and agent.
            k: most hits, at least 1.
            where: metadata that an entry must have.
            weight: share of the cosine, in [0, 1].

        Raises:
            InputError: the query is blank or no text.
            ConfigError: `k`, `weight` or a key of `where` breaks its rule.
            StoreError: the vectors cannot be read.
        """
        if k < 1:
            raise ConfigError(f"k={k} must be at least 1")
        if not 0 <= weight <= 1:
            raise ConfigError(f"weight={weight} must be within [0, 1]")
        seen = Filter.of(scope, where, self._keys)
        depth = max(50, 4 * k)
        vectors = self._mirror.store()
        asked = self.embedder.embed([clean_text(query)])[0]
        cosines = vectors.query(seen, asked, depth)
        lexical = self._entries.match(query, seen, max(depth, _LEXICAL_DEPTH))
        best_words = list(lexical)[:depth]
        # the entries table decides what may be seen: Chroma's answer is only a proposal
        candidates = self._entries.visible({*cosines, *best_words}, seen)
        for id, vector in vectors.get(seen.owner, candidates - cosines.keys()).items():
            cosines[id] = float(vector @ asked)
        pivot = math.log1p(self._count())
        scores = {id: _fused(cosines.get(id), lexical.get(id), weight, pivot) for id in candidates}
        best = sorted(scores, key=lambda id: (-scores[id], id))[:k]
        entries = self._entries.get(best)
        return [
            Hit(
                entry=entries[id],
                score=scores[id],
                cosine=cosines.get(id),
                bm25=lexical.get(id),
            )
            for id in best
            if id in entries  # it may have been deleted meanwhile
        ]

    def vectors(self, ids: Sequence[str]) -> Vectors:
        """[N, D] float32, rows of length 1, in the order of `ids`.

        Raises:
            InputError: an id has no entry.
            StoreError: an entry has no vector.
        """
        return self._mirror.rows(ids)

    def digest(self) -> str:
        """SHA-256, hex, of the embedder's name and all entries in order of id. Vectors are a
        function of the two, up to rounding, and are left out."""
        seal = hashlib.sha256(f"{self.embedder.name}\n".encode())
        for entry in self._entries.walk():
            seal.update(f"{entry.line()}\n".encode())
        return seal.hexdigest()

    def check(self) -> Check:
        """Compare every entry with Chroma, vectors included; changes nothing, embeds nothing."""
        return self._mirror.check()

    def repair(self) -> Check:
        """Bring Chroma in line with the entries, embedding what is missing; from nothing if it
        cannot be read or was filled by another embedder. Returns what `check` found before.

        Raises:
            StoreError: it still does not work: a server that is not there, say.
        """
        return self._mirror.repair()

    def clear(self) -> None:
        """Hold nothing. Works on damaged vectors too: an embedded Chroma's folder is removed."""
        with self._mirror.lock:
            self._entries.clear()
            self._total = None
            self._mirror.discard()

    def save(self, path: Path) -> None:
        """Write everything into the folder `path`, as safetensors and JSON; see `snapshot`."""
        with self._mirror.lock:
            entries = list(self.entries())
            rows = self.vectors([entry.id for entry in entries])
            write_snapshot(path, self.embedder.name, self.digest(), entries, rows)

    def load(self, path: Path) -> None:
        """Replace everything by what `save` wrote; another embedder's vectors are made anew.

        Raises:
            StoreError: the snapshot is damaged; nothing has been replaced.
        """
        snapshot = read_snapshot(path)
        with self._mirror.lock:
            self.clear()
            self._entries.put(snapshot.entries)
            self._total = None
            if snapshot.embedder == self.embedder.name:
                self._mirror.take(snapshot.entries, snapshot.vectors)
            self._mirror.settle()

    def close(self) -> None:
        """Release files and connections. May be called twice."""
        self._mirror.close()
        self._entries.close()

    def _count(self) -> int:
        if self._total is None:
            self._total = self._entries.count()
        return self._total


def _fused(cosine: float | None, bm25: float | None, weight: float, pivot: float) -> float:
    """In [0, 1]. BM25 saturates as s / (s + pivot) with pivot = ln(1 + number of entries), about
    the score of one word that stands in one entry only: such a match is worth one half."""
    dense = min(max(cosine or 0.0, 0.0), 1.0)
    lexical = bm25 / (bm25 + pivot) if bm25 else 0.0
    return weight * dense + (1 - weight) * lexical
