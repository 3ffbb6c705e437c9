"""Vectors in Chroma, embedded on disk or on a server: ids, vectors and what is filtered by.

Knows nothing of texts or embedders. Each owner (tenant, user, agent) has a collection of its own: a
query then needs no owner filter, which would cost Chroma 1.x twenty times the search itself at
10,000 entries, and no mistake in a filter can show one owner another's vectors.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from ..errors import ConfigError, StoreError
from .entry import Entry, Filter, chroma_metadata

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection as ChromaCollection

    from .vectors import Vectors

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{2,127}")
_REMEDY = "run `palimpsest doctor --fix` (HybridIndex.repair) to rebuild it"
_PAGE = 1000
"""Ids in one call; Chroma takes 5461 at most."""


class VectorStore:
    """Vectors by owner and id, searched by cosine.

    Args:
        place: a folder for the embedded Chroma, or the URL of a Chroma server.
        collection: prefix of its collections; another index on the same server needs another.
        keys: metadata keys that entries are filtered by.

    Raises:
        ConfigError: `collection` or the URL is malformed.
        StoreError: the folder is damaged or the server cannot be reached.
    """

    def __init__(self, place: Path | str, *, collection: str, keys: Collection[str]) -> None:
        check_names(collection, place)
        self._collection = collection
        self._keys = frozenset(keys)
        self._open: dict[str, ChromaCollection] = {}
        self._opening = Lock()
        self.where = _without_password(place) if isinstance(place, str) else str(place)
        with self._guarded():
            self._client = _serve(place) if isinstance(place, str) else _embed(place)

    def upsert(self, owner: str, entries: Sequence[Entry], vectors: Vectors) -> None:
        """Add or replace the vectors [N, D] of N entries of this owner."""
        with self._guarded():
            collection = self._of(owner, create=True)
            assert collection is not None
            for start in range(0, len(entries), _PAGE):
                page = entries[start : start + _PAGE]
                collection.upsert(
                    ids=[entry.id for entry in page],
                    embeddings=vectors[start : start + _PAGE],
                    metadatas=[chroma_metadata(entry, self._keys) for entry in page],
                )

    def delete(self, owner: str, ids: Collection[str]) -> None:
        """Remove these ids, where they are there."""
        with self._guarded():
            if collection := self._of(owner):
                for page in _pages(ids):
                    collection.delete(ids=page)

    def query(self, seen: Filter, vector: Vectors, k: int) -> dict[str, float]:
        """Id -> cosine in [-1, 1] of the k nearest to `vector` [D]; approximate (HNSW)."""
        with self._guarded():
            collection = self._of(seen.owner)
            if collection is None:
                return {}
            found = collection.query(
                query_embeddings=vector[None],
                n_results=k,
                where=seen.chroma(),
                include=["distances"],
            )
        return {id: 1 - far for id, far in zip(found["ids"][0], found["distances"][0], strict=True)}

    def get(self, owner: str, ids: Collection[str]) -> dict[str, Vectors]:
        """Id -> vector [D] of those ids that are there."""
        found: dict[str, Vectors] = {}
        with self._guarded():
            if collection := self._of(owner):
                for page in _pages(ids):
                    got = collection.get(ids=page, include=["embeddings"])
                    rows = np.asarray(got["embeddings"], dtype=np.float32)
                    found.update(zip(got["ids"], rows, strict=True))
        return found

    def ids(self, owner: str) -> frozenset[str]:
        """All ids of this owner."""
        with self._guarded():
            collection = self._of(owner)
            return frozenset(collection.get(include=[])["ids"]) if collection else frozenset()

    def lacking(self, owners: Collection[str]) -> frozenset[str]:
        """The owners that have no collection."""
        names = self._names()
        return frozenset(owner for owner in owners if self._name(owner) not in names)

    def strays(self, owners: Collection[str]) -> frozenset[str]:
        """Ids in the collections of everyone but `owners`."""
        found: set[str] = set()
        for name in self._names() - {self._name(owner) for owner in owners}:
            with self._guarded():
                collection = self._client.get_collection(name, embedding_function=None)
                found.update(collection.get(include=[])["ids"])
        return frozenset(found)

    def sweep(self, owners: Collection[str]) -> None:
        """Remove the collections of everyone but `owners`."""
        for name in self._names() - {self._name(owner) for owner in owners}:
            self._drop(name)

    def close(self) -> None:
        """Release files and connections."""
        self._open.clear()
        for side in (self._client, getattr(self._client, "_admin_client", None)):
            # Chroma 1.x never closes the HTTP sessions it opens, two to a client
            session = getattr(getattr(side, "_server", None), "_session", None)
            if session is not None:
                session.close()
        self._client.close()

    def _name(self, owner: str) -> str:
        return f"{self._collection}.{hashlib.sha256(owner.encode()).hexdigest()[:32]}"

    def _names(self) -> frozenset[str]:
        names: list[str] = []
        with self._guarded():
            while page := self._client.list_collections(limit=_PAGE, offset=len(names)):
                names += [collection.name for collection in page]
        return frozenset(n for n in names if n.rpartition(".")[0] == self._collection)

    def _drop(self, name: str) -> None:
        with self._guarded(), self._opening:
            self._open.clear()
            self._client.delete_collection(name)

    def _of(self, owner: str, *, create: bool = False) -> ChromaCollection | None:
        """The owner's collection; None if there is none and none is to be made."""
        from chromadb.errors import NotFoundError

        with self._opening:
            if owner in self._open:
                return self._open[owner]
            name = self._name(owner)
            try:
                if create:
                    self._open[owner] = self._client.get_or_create_collection(
                        name,
                        configuration={"hnsw": {"space": "cosine"}},
                        embedding_function=None,  # Chroma's default would fetch a model
                    )
                else:
                    self._open[owner] = self._client.get_collection(name, embedding_function=None)
            except NotFoundError:
                return None
            return self._open[owner]

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turns whatever Chroma and its transport raise into StoreError."""
        import httpx
        from chromadb.errors import ChromaError

        try:
            yield
        except (ChromaError, httpx.HTTPError, ValueError, OSError) as error:
            if isinstance(error, ConfigError):
                raise
            raise StoreError(f"Chroma at {self.where} failed: {error}; {_REMEDY}") from error


def check_names(collection: str, place: Path | str) -> None:
    """Raise ConfigError unless these could name a store; opens nothing."""
    if not _NAME.fullmatch(collection):
        raise ConfigError(
            f"collection={collection!r} must be 3 to 128 letters, digits, '_' or '-', starting"
            " with a letter or digit"
        )
    if isinstance(place, str):
        parts = urlsplit(place)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"chroma_url={_without_password(place)!r} must be like http://host:8000"
            )


def _settings() -> Any:
    from chromadb.config import Settings

    return Settings(anonymized_telemetry=False)


def _embed(folder: Path) -> ClientAPI:
    import chromadb
    from chromadb.api.shared_system_client import SharedSystemClient as Shared

    folder.mkdir(parents=True, exist_ok=True)
    check_segments(folder)
    try:
        return chromadb.PersistentClient(folder, settings=_settings())
    except BaseException:
        # Chroma 1.x keeps a system that failed to start, and would hand it to the next caller
        if str(folder) not in Shared._identifier_to_refcount:
            Shared._identifier_to_system.pop(str(folder), None)
        raise


def _serve(url: str) -> ClientAPI:
    import chromadb

    parts = urlsplit(url)
    secure = parts.scheme == "https"
    return chromadb.HttpClient(
        host=parts.hostname or "",
        port=parts.port or (443 if secure else 8000),
        ssl=secure,
        settings=_settings(),
    )


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


def check_segments(folder: Path) -> None:
    """Raise StoreError if an HNSW file on disk is shorter than its own header says.

    Chroma 1.x reads such a file without looking and answers wrongly or takes the process down with
    it. The header is hnswlib's: int32 version, then uint64 offset, room, count, bytes per element.
    """
    for header in sorted(folder.glob("*/header.bin")):
        raw = header.read_bytes()
        if len(raw) < 36 or struct.unpack_from("<i", raw)[0] != 1:
            raise StoreError(f"{header} is no HNSW header; {_REMEDY}")
        _, _, count, size = struct.unpack_from("<4Q", raw, 4)
        for name, expected in (("data_level0.bin", count * size), ("length.bin", count * 4)):
            file = header.with_name(name)
            found = file.stat().st_size if file.is_file() else 0
            if found < expected:
                raise StoreError(
                    f"{file} has {found:,} bytes and its header says {expected:,}; {_REMEDY}"
                )


def _pages(ids: Collection[str]) -> Iterator[list[str]]:
    everything = list(ids)
    for start in range(0, len(everything), _PAGE):
        yield everything[start : start + _PAGE]
