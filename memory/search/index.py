"""One search over entries by all signals at once, in one database.

Knows nothing of records, turns or what its entries are for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from sqlalchemy.orm import Session

from ...errors import ConfigError, StoreError
from ..database import MEND, Database, Purpose
from ..journal import chunks
from ..record import Scope, clean_text, now
from ..vectors import CachedEmbedder, Embedder
from .base import Entry, Filter, Hit, Where
from .finding import Finder, Signals
from .fusion import either, fuse, shares_of
from .mirror import Mirror
from .packing import Packed, pack
from .reranking import RERANKED, Reranker, rerank
from .snapshot import read_snapshot, write_snapshot
from .table import EntryTable
from .tables import Tables

DEPTH = 100
"""Candidates by words, and as many by meaning. Twice as many change nothing on LoCoMo."""

_BATCH = 256
"""Entries embedded and written at once."""


class HybridIndex:
    """Entries in a database, found by words, meaning, speaker and time.

    Safe to use from several threads; searches see one state throughout.

    Args:
        database: that the tables lie in; whoever opened it closes it.
        embedder: vectors are its function; an index made by another one is refused.
        chroma_url: a Chroma server that proposes what is near; else this process looks through all
            codes.
        collection: prefix of the collections there; each index needs its own.
        reranker: reads the best candidates together with the query, and has half a say.

    Raises:
        ConfigError: `chroma_url` or `collection` is malformed.
        StoreError: the tables were made with another embedder.
    """

    def __init__(
        self,
        database: Database,
        tables: Tables,
        embedder: Embedder,
        *,
        chroma_url: str | None = None,
        collection: str = "palimpsest",
        reranker: Reranker | None = None,
    ) -> None:
        self.embedder = embedder
        self._database = database
        self._table = EntryTable(tables)
        self._mirror = Mirror(chroma_url, collection, self._table, database) if chroma_url else None
        self._finder = Finder(self._table, embedder, self._mirror)
        self._reranker = reranker
        self._check_embedder()

    @classmethod
    @contextmanager
    def alone(cls, where: Path | str, embedder: Embedder, **options: Any) -> Iterator[Self]:
        """An index in a database of its own: a file, or a server by URL."""
        tables = Tables()
        purpose = Purpose("index", StoreError, MEND, tables.create)
        with (
            closing(Database(where, purpose)) as database,
            closing(cls(database, tables, embedder, **options)) as index,
        ):
            yield index

    def _check_embedder(self) -> None:
        with self._database.write() as session:
            made_by = self._table.fact(session, "embedder")
            if made_by is None:
                self._table.note(session, "embedder", self.embedder.name)
            elif made_by != self.embedder.name:
                raise StoreError(
                    f"the index in {self._database.name} was made with embedder {made_by!r} and"
                    f" opened with {self.embedder.name!r}; open it as before, or let"
                    " `palimpsest doctor --fix` embed everything anew"
                )

    def add(self, entries: Iterable[Entry]) -> frozenset[str]:
        """Add entries, or replace those whose id is there; returns the ids whose content changed.
        An unchanged entry costs no work. Durable when it returns."""
        changed: set[str] = set()
        wanted = list({entry.id: entry for entry in entries}.values())
        for start in range(0, len(wanted), _BATCH):
            with self._database.write() as session:
                changed |= self.replace(session, (), wanted[start : start + _BATCH])
        self.settle()
        return frozenset(changed)

    def delete(self, ids: Collection[str]) -> frozenset[str]:
        """Remove entries; returns the ids that were there."""
        with self._database.write() as session:
            gone = self.replace(session, ids, ())
        self.settle()
        return gone

    def replace(
        self, session: Session, ids: Collection[str], entries: Iterable[Entry]
    ) -> frozenset[str]:
        """In the caller's transaction: remove `ids`, but have `entries`; call `settle` after it.
        Returns the ids whose content changed."""
        wanted = {entry.id: entry for entry in entries}
        known = self._table.get(session, {*ids, *wanted})
        fresh = [
            entry
            for entry in wanted.values()
            if entry.id not in known or known[entry.id].line() != entry.line()
        ]
        gone = known.keys() - wanted.keys()
        made = self.embedder.encode([entry.text for entry in fresh])
        changed = gone | {entry.id for entry in fresh}
        self._put(session, changed & known.keys(), fresh, [Packed.of(each) for each in made])
        return frozenset(changed)

    def _put(
        self,
        session: Session,
        ids: Collection[str],
        entries: Sequence[Entry],
        made: Sequence[Packed],
    ) -> None:
        """Remove `ids`, then write N entries, which are not there, and their N encodings."""
        gone = self._table.remove(session, ids)
        if isinstance(self.embedder, CachedEmbedder):
            self.embedder.forget(entry.text for entry in gone)
        if entries:
            self._table.put(session, entries, made)
        if self._mirror:
            changed = [(entry.id, entry.owner) for entry in (*gone, *entries)]
            self._table.owe(session, changed)

    def settle(self) -> None:
        """Bring the Chroma server, if there is one, in line with the tables."""
        if self._mirror:
            self._mirror.settle()

    def get(self, ids: Collection[str]) -> dict[str, Entry]:
        """The entries of `ids` that are there, by id."""
        with self._database.read() as session:
            return self._table.get(session, ids)

    def entries(self, scope: Scope | None = None) -> Iterator[Entry]:
        """All entries that `scope` covers, or all there are, in order of id."""
        seen, after = Filter.of(scope) if scope else None, ""
        while True:
            with self._database.read() as session:
                page = self._table.page(session, after, 500, seen)
            yield from page
            if len(page) < 500:
                return
            after = page[-1].id

    def ids(self) -> frozenset[str]:
        """Ids of all entries."""
        with self._database.read() as session:
            return self._table.ids(session)

    def count(self) -> int:
        """Number of entries."""
        with self._database.read() as session:
            return sum(self._table.owners(session).values())

    def search(
        self,
        query: str,
        scope: Scope,
        k: int,
        *,
        where: Where | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        past: bool = False,
        least: float = 0.0,
        at: datetime | None = None,
    ) -> list[Hit]:
        """The k entries that most probably bear on the query, best first, equal scores by id.

        Args:
            query: any text that a record could hold.
            scope: with a session: that session only; without: all of this user and agent.
            k: most hits, at least 1.
            where: metadata that an entry must have.
            since, until: when it must have been made.
            past: search what holds no longer, instead of what does.
            least: probability below which an entry is left out: none may be left.
            at: when it is asked, for "last week"; by default now.

        Raises:
            InputError: the query is blank or no text.
            ConfigError: an argument breaks its rule.
            StoreError: the database cannot be read.
        """
        _at_least_one(k)
        if not 0 <= least <= 1:
            raise ConfigError(f"least={least} must be within [0, 1]")
        clean_text(query)
        seen = Filter.of(scope, where, since, until, past=past)
        with self._database.read() as session:
            found = self._finder.find(session, query, seen, max(DEPTH, 2 * k), at or now())
            scores, shares = fuse(found.values)
            best = found.order()[: max(k, RERANKED) if self._reranker else k]
            entries = self._table.get(session, [found.ids[n] for n in best])
        hits = [
            Hit(
                entry=entries[found.ids[n]],
                score=float(scores[n]),
                signals=shares_of(shares[n]),
                cosine=float(found.cosines[n]),
            )
            for n in best
        ]
        if self._reranker:
            hits = rerank(self._reranker, query, hits)[:k]
        return [hit for hit in hits if hit.score >= least]

    def sessions(
        self, query: str, scope: Scope, k: int, *, at: datetime | None = None
    ) -> list[tuple[str, float]]:
        """The k sessions that most probably hold something that bears on the query, each with that
        probability: that of either of its two best entries, were these independent. With more of
        them, a session would win by how much was said in it.

        Raises:
            InputError, ConfigError, StoreError: as `search`.
        """
        _at_least_one(k)
        clean_text(query)
        best: dict[str, list[float]] = {}
        with self._database.read() as session:
            seen = Filter.of(scope)
            found = self._finder.find(session, query, seen, max(DEPTH, 2 * k), at or now())
            scores, _ = fuse(found.values)
            for key, name in self._table.rows.sessions(session, seen, found.keys).items():
                best.setdefault(name, []).append(float(scores[found.keys.index(key)]))
        ranked = [(name, either(probabilities)) for name, probabilities in best.items()]
        return sorted(ranked, key=lambda each: (-each[1], each[0]))[:k]

    def signals(self, query: str, scope: Scope, *, at: datetime | None = None) -> Signals:
        """All candidates for a query and what speaks for each, before it is made one score."""
        clean_text(query)
        with self._database.read() as session:
            return self._finder.find(session, query, Filter.of(scope), DEPTH, at or now())

    def digest(self) -> str:
        """SHA-256, hex, of the embedder's name and all entries in order of id. Vectors are a
        function of the two, up to rounding, and are left out."""
        seal = hashlib.sha256(f"{self.embedder.name}\n".encode())
        for entry in self.entries():
            seal.update(f"{entry.line()}\n".encode())
        return seal.hexdigest()

    def clear(self) -> None:
        """Hold nothing."""
        self._finder.forget()
        with self._database.write() as session:
            self._table.clear(session)
            self._table.note(session, "embedder", self.embedder.name)
        if self._mirror:
            self._mirror.sweep()

    def purge(self, *, rewrite: bool = True) -> None:
        """Leave nothing of removed entries in the files; see `Database.scrub`."""
        with self._database.write() as session:
            self._table.lexicon.purge(session)
        self._database.scrub(rewrite=rewrite)

    def marks(self, ids: Iterable[str] | None = None) -> Iterator[bytes]:
        """The bytes that stand for these entries, or all, in the file: an id; a vector as it is
        kept and in float32, as it is sent to a server; its signs; those of its words' vectors."""
        for part in chunks(self.ids() if ids is None else ids):
            with self._database.read() as session:
                found = self._table.encodings(session, part)
            for id, (vector, tokens) in found.items():
                yield id.encode()
                yield vector.tobytes()
                yield vector.astype(np.float32).tobytes()
                yield pack(vector).tobytes()
                yield tokens.tobytes()

    def save(self, path: Path) -> None:
        """Write everything into the folder `path`, as safetensors and JSON; see `snapshot`."""
        entries = list(self.entries())
        with self._database.read() as session:
            made = self._table.encodings(session, [entry.id for entry in entries])
        packed = [made[entry.id] for entry in entries]
        write_snapshot(path, self.embedder.name, self.digest(), entries, packed)

    def load(self, path: Path) -> None:
        """Replace everything by what `save` wrote; another embedder's vectors are made anew.

        Raises:
            StoreError: the snapshot is damaged; nothing has been replaced.
        """
        with self._database.write() as session:
            self.restore(session, path)
        self.settle()

    def restore(self, session: Session, path: Path) -> str:
        """`load` in the caller's transaction; call `settle` after it. Returns what `digest` was
        when it was saved."""
        snapshot = read_snapshot(path)
        kept = snapshot.embedder == self.embedder.name
        lost = self._table.whose(session) if self._mirror else []
        self._finder.forget()
        self._table.clear(session)
        self._table.note(session, "embedder", self.embedder.name)
        self._table.owe(session, lost)
        for start in range(0, len(snapshot.entries), _BATCH):
            part = slice(start, start + _BATCH)
            entries, made = snapshot.entries[part], snapshot.encodings[part]
            if not kept:
                made = [Packed.of(each) for each in self.embedder.encode([e.text for e in entries])]
            self._put(session, (), entries, made)
        return snapshot.digest

    def close(self) -> None:
        """Release the connection to Chroma. May be called twice."""
        if self._mirror:
            self._mirror.close()


def _at_least_one(k: int) -> None:
    if k < 1:
        raise ConfigError(f"k={k} must be at least 1")
