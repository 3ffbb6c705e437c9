"""An embedder without a model: words, word pairs and trigrams, hashed.

Knows nothing of entries, scopes or where vectors are kept.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from ..errors import ConfigError
from .vectors import MAX_TOKENS, Encoding, Vectors, unit
from .words import COMMON, words


class HashingEmbedder:
    """Signed feature hashing of words, word pairs and character trigrams: no model, no state.

    Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning". Finds texts that
    share words or spellings, and knows no synonyms. Equal on every machine and in every process.

    Args:
        dimension: D, at least 8.
    """

    def __init__(self, dimension: int = 256) -> None:
        if dimension < 8:
            raise ConfigError(f"dimension={dimension} must be at least 8")
        self.dimension = dimension
        self.name = f"hashing:{dimension}"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """[N, D] float32, rows of length 1; a text without any word is the first unit vector."""
        rows = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            self._fill(row, _features(text))
        return unit(rows)

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """A word's vector is made of its spelling: it has no context."""
        found = []
        for text, vector in zip(texts, self.embed(texts), strict=True):
            distinct = list(dict.fromkeys(words(text)))
            telling = [word for word in distinct if word not in COMMON] or distinct or [""]
            rows = np.zeros((min(len(telling), MAX_TOKENS), self.dimension), dtype=np.float32)
            for row, word in zip(rows, telling, strict=False):
                self._fill(row, _spelling(word))
            found.append(Encoding(vector, unit(rows)))
        return found

    def _fill(self, row: Vectors, features: Iterable[tuple[str, float]]) -> None:
        for feature, weight in features:
            code = zlib.crc32(feature.encode())
            row[code % self.dimension] += weight if code >> 31 else -weight
        if not row.any():
            row[0] = 1.0


def _features(text: str) -> Iterable[tuple[str, float]]:
    """Features and weights; a word's trigrams weigh together about half as much as the word."""
    found = words(text)
    for word in found:
        yield from _spelling(word)
    for first, second in pairwise(found):
        yield f"p:{first} {second}", 0.5


def _spelling(word: str) -> Iterable[tuple[str, float]]:
    yield f"w:{word}", 1.0
    grams = [f"^{word}$"[at : at + 3] for at in range(len(word))]
    for gram in grams:
        yield f"g:{gram}", 0.5 / len(grams) ** 0.5
