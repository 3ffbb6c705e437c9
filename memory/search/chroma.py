"""Vectors on a Chroma server: ids, vectors, and nothing else but the session.

Knows nothing of texts or embedders. Each owner (tenant, user, agent) has a collection of its own: a
query then needs no owner filter, which would cost Chroma 1.x twenty times the search itself at
10,000 entries, and no mistake in a filter can show one owner another's vectors.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ...errors import ConfigError, StoreError

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection as ChromaCollection

    from ..vectors import Vectors

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{2,127}")
_REMEDY = "see that it runs; `palimpsest doctor --fix` fills it anew"
_PAGE = 1000
"""Ids in one call; Chroma takes 5461 at most."""


class VectorStore:
    """Vectors by owner and id, searched by cosine.

    Args:
        url: of the server.
        collection: prefix of its collections; another index on the same server needs another.

    Raises:
        ConfigError: `collection` or the URL is malformed.
        StoreError: the server cannot be reached.
    """

    def __init__(self, url: str, *, collection: str) -> None:
        check_names(collection, url)
        self._collection = collection
        self._open: dict[str, ChromaCollection] = {}
        self._opening = Lock()
        self.where = _without_password(url)
        with self._guarded():
            self._client = _serve(url)

    def upsert(
        self, owner: str, ids: Sequence[str], sessions: Sequence[str | None], vectors: Vectors
    ) -> None:
        """Add or replace the vectors [N, D] of N entries of this owner."""
        with self._guarded():
            collection = self._of(owner, create=True)
            assert collection is not None
            for start in range(0, len(ids), _PAGE):
                part = slice(start, start + _PAGE)
                collection.upsert(
                    ids=list(ids[part]),
                    embeddings=vectors[part],
                    metadatas=[{"session": session or ""} for session in sessions[part]],
                )

    def delete(self, owner: str, ids: Collection[str]) -> None:
        """Remove these ids, where they are there."""
        with self._guarded():
            if collection := self._of(owner):
                for page in _pages(ids):
                    collection.delete(ids=page)

    def query(self, owner: str, vector: Vectors, k: int, session: str | None = None) -> list[str]:
        """Ids of the k nearest to `vector` [D], of one session or all; approximate (HNSW)."""
        with self._guarded():
            collection = self._of(owner)
            if collection is None:
                return []
            found = collection.query(
                query_embeddings=vector[None],
                n_results=k,
                where={"session": {"$eq": session}} if session is not None else None,
                include=[],
            )
        return list(found["ids"][0])

    def ids(self, owner: str) -> frozenset[str]:
        """All ids of this owner."""
        with self._guarded():
            collection = self._of(owner)
            return frozenset(collection.get(include=[])["ids"]) if collection else frozenset()

    def lacking(self, owners: Collection[str]) -> frozenset[str]:
        """The owners that have no collection."""
        names = self._names()
        return frozenset(owner for owner in owners if self._name(owner) not in names)

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


def check_names(collection: str, url: str) -> None:
    """Raise ConfigError unless these could name a store; opens nothing."""
    if not _NAME.fullmatch(collection):
        raise ConfigError(
            f"collection={collection!r} must be 3 to 128 letters, digits, '_' or '-', starting"
            " with a letter or digit"
        )
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"chroma_url={_without_password(url)!r} must be like http://host:8000")


def _serve(url: str) -> ClientAPI:
    import chromadb
    from chromadb.config import Settings

    parts = urlsplit(url)
    secure = parts.scheme == "https"
    return chromadb.HttpClient(
        host=parts.hostname or "",
        port=parts.port or (443 if secure else 8000),
        ssl=secure,
        settings=Settings(anonymized_telemetry=False),
    )


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


def _pages(ids: Collection[str]) -> Iterator[list[str]]:
    everything = list(ids)
    for start in range(0, len(everything), _PAGE):
        yield everything[start : start + _PAGE]
