"""Texts to unit vectors: an encoder in this process, one without a model, and a cache over either.

Knows nothing of entries, scopes or where vectors are kept.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, ModelError, ModelNotFound
from .record import content_hash
from .words import words

if TYPE_CHECKING:
    from torch import Tensor

Vectors = NDArray[np.float32]
"""[N, D], rows of length 1."""

MAX_WINDOWS = 8
"""Windows of a text that are encoded. More would say less: a mean over many topics is near none."""

_CHARACTERS_PER_TOKEN = 16
"""More than any prose has; bounds the tokenizer's work on a text far longer than `MAX_WINDOWS`."""


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


class SentenceTransformerEmbedder:
    """A sentence-transformers folder on this machine, run in this process; the hub is never asked.

    A text longer than the encoder's window is encoded window by window, `MAX_WINDOWS` at most, and
    stands as the mean of them, weighted by their tokens. Truncation would make whatever is said
    after the first 256 word pieces impossible to find; the mean keeps it findable, at a cost that
    grows with the length. What lies beyond the last window is left to the lexical index.

    Args:
        path: the folder; `name` says which weights it holds, not where it lies.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ...
        batch_size: windows encoded at once.

    Raises:
        ModelNotFound: `path` is no folder.
        ModelError: it holds no sentence-transformers model, or a broken one.
    """

    def __init__(self, path: Path, *, device: str = "cpu", batch_size: int = 32) -> None:
        if not path.is_dir():
            raise ModelNotFound(
                f"no embedder in {path}; name a sentence-transformers folder, or pull one with"
                " `palimpsest models pull minilm`"
            )
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} must be at least 1")
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        bar = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            self._model = SentenceTransformer(
                str(path), device=None if device == "auto" else device, local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"the embedder in {path} does not load: {error}") from error
        finally:
            if bar:
                logging.enable_progress_bar()
        self._model.eval()
        self._batch_size = batch_size
        self._window: int = self._model.max_seq_length
        self._tokenizing = Lock()  # a fast tokenizer keeps its truncation setting as shared state
        self.dimension: int = self._model.get_embedding_dimension()
        self.name = f"st:{_fingerprint(path)}:{self.dimension}:{MAX_WINDOWS}x{self._window}"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """[N, D] float32, rows of length 1."""
        sums = np.zeros((len(texts), self.dimension), dtype=np.float32)
        windows = self._windows(texts)
        for start in range(0, len(windows), self._batch_size):
            batch = windows[start : start + self._batch_size]
            encoded = self._encode([ids for _, ids in batch])
            for (row, ids), vector in zip(batch, encoded, strict=True):
                sums[row] += len(ids) * vector
        return unit(sums)

    def _windows(self, texts: Sequence[str]) -> list[tuple[int, list[int]]]:
        """(row of the text, token ids), longest first so that a batch is of about one length."""
        if not texts:
            return []
        limit = self._window * MAX_WINDOWS * _CHARACTERS_PER_TOKEN
        with self._tokenizing:
            encoded = self._model.tokenizer(
                [text[:limit] for text in texts],
                truncation=True,
                max_length=self._window,
                return_overflowing_tokens=True,
            )
        taken = [0] * len(texts)
        windows: list[tuple[int, list[int]]] = []
        for row, ids in zip(
            encoded["overflow_to_sample_mapping"], encoded["input_ids"], strict=True
        ):
            taken[row] += 1
            if taken[row] <= MAX_WINDOWS:
                windows.append((row, ids))
        return sorted(windows, key=lambda window: -len(window[1]))

    def _encode(self, batch: list[list[int]]) -> Vectors:
        """Token ids of B windows -> [B, D] float32."""
        import torch

        length = max(map(len, batch))
        ids = torch.full((len(batch), length), self._model.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        features = {"input_ids": ids, "attention_mask": mask}
        device = self._model.device
        with torch.inference_mode():
            out: dict[str, Tensor] = self._model({k: v.to(device) for k, v in features.items()})
        vectors: Vectors = out["sentence_embedding"].float().cpu().numpy()
        return vectors


def _fingerprint(path: Path) -> str:
    """Tells one model's weights from another's by the size and first MiB of each file."""
    seen = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as weights:
            seen.update(weights.read(1 << 20))
        seen.update(str(file.stat().st_size).encode())
    return seen.hexdigest()[:12]


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
            for feature, weight in _features(text):
                code = zlib.crc32(feature.encode())
                row[code % self.dimension] += weight if code >> 31 else -weight
            if not row.any():
                row[0] = 1.0
        return unit(rows)


def _features(text: str) -> Iterable[tuple[str, float]]:
    """Features and weights; a word's trigrams weigh together about half as much as the word."""
    found = words(text)
    for word in found:
        yield f"w:{word}", 1.0
        grams = [f"^{word}$"[at : at + 3] for at in range(len(word))]
        for gram in grams:
            yield f"g:{gram}", 0.5 / len(grams) ** 0.5
    for first, second in pairwise(found):
        yield f"p:{first} {second}", 0.5


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

    def forget(self, texts: Iterable[str]) -> None:
        """Keep nothing of these texts."""
        with self._lock:
            for text in texts:
                self._kept.pop(content_hash(text), None)


def unit(rows: Vectors) -> Vectors:
    """[N, D] rows scaled to length 1; a zero row stays zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def open_embedder(spec: str, *, device: str = "auto") -> Embedder:
    """An embedder by name, with a cache: `"hashing"`, a catalog name, or a local folder.

    Args:
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ...

    Raises:
        ModelNotFound: it is not on this machine; says how to get it.
    """
    if spec == "hashing":
        return HashingEmbedder()
    from ..llm.catalog import resolve

    path = resolve(spec, kind="embedder")
    return CachedEmbedder(SentenceTransformerEmbedder(path, device=device))
