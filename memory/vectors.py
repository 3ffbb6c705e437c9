"""Texts to unit vectors: what an embedder is, a cache over any, and one by name.

Knows nothing of entries, scopes or where vectors are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .record import content_hash

Vectors = NDArray[np.float32]
"""[N, D], rows of length 1."""

Tokens = NDArray[np.float32]
"""[T, D], rows of length 1: what each telling word of a text means where it stands."""

MAX_TOKENS = 256
"""Telling words of a text that get a vector of their own."""


class Encoding(NamedTuple):
    """A text as one vector [D], and as one for each of its telling words, [T, D]."""

    vector: NDArray[np.float32]
    tokens: Tokens


@runtime_checkable
class Embedder(Protocol):
    """Texts to vectors. A pure function of each text: neither order nor company matters beyond
    float32 rounding. May be called from several threads."""

    @property
    def name(self) -> str:
        """Names the function: equal names promise equal vectors."""

    @property
    def dimension(self) -> int:
        """D."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """[N, D] float32, rows of length 1. No texts give [0, D]."""

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Each text's vector, and those of its words, for late interaction (Khattab & Zaharia 2020,
        "ColBERT", section 3): at most `MAX_TOKENS` of distinct words, at least one."""


class CachedEmbedder:
    """Keeps the vectors of the texts used last, by content hash; no text is kept.

    Args:
        embedder: asked for the misses only, in one call.
        capacity: vectors kept, at least 1; 4096 of 384 dimensions take 6 MiB.
    """

    def __init__(self, embedder: Embedder, capacity: int = 4096) -> None:
        if capacity < 1:
            raise ConfigError(f"capacity={capacity} must be at least 1")
        self.embedder = embedder
        self.name = embedder.name
        self.dimension = embedder.dimension
        self.capacity = capacity
        self._kept: OrderedDict[str, Vectors] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """[N, D] float32, rows of length 1."""
        keys = [content_hash(text) for text in texts]
        with self._lock:
            found = {key: self._kept[key] for key in keys if key in self._kept}
        misses = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if misses:
            # copies, so that one kept row does not hold its whole batch in memory
            rows = (row.copy() for row in self.embedder.embed(list(misses.values())))
            found.update(zip(misses, rows, strict=True))
        with self._lock:
            for key in keys:
                self._kept[key] = found[key]
                self._kept.move_to_end(key)
            while len(self._kept) > self.capacity:
                self._kept.popitem(last=False)
        if not keys:
            return np.zeros((0, self.dimension), dtype=np.float32)
        return np.stack([found[key] for key in keys])

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Not kept: a text's words take a hundred times the room of its vector."""
        return self.embedder.encode(texts)

    def forget(self, texts: Iterable[str]) -> None:
        """Keep nothing of these texts."""
        with self._lock:
            for text in texts:
                self._kept.pop(content_hash(text), None)


def unit(rows: Vectors) -> Vectors:
    """[N, D] rows scaled to length 1; a zero row stays zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Vectors = (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return scaled


def open_embedder(spec: str, *, device: str = "auto") -> Embedder:
    """An embedder by name, with a cache: `"hashing"`, a catalog name, or a local folder.

    Args:
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ...

    Raises:
        ModelNotFound: it is not on this machine; says how to get it.
    """
    if spec == "hashing":
        from .hashing import HashingEmbedder

        return HashingEmbedder()
    from ..llm.catalog import resolve
    from .encoder import SentenceTransformerEmbedder

    path = resolve(spec, kind="embedder")
    return CachedEmbedder(SentenceTransformerEmbedder(path, device=device))
