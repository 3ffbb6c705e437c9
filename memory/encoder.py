"""A sentence encoder in this process: a sentence-transformers folder on this machine.

Knows nothing of entries, scopes or where vectors are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError, ModelError, ModelNotFound
from .vectors import MAX_TOKENS, Encoding, Vectors, unit
from .words import COMMON

if TYPE_CHECKING:
    from torch import Tensor

MAX_WINDOWS = 8
"""Windows of a text that are encoded. More would say less: a mean over many topics is near none."""

_CHARACTERS_PER_TOKEN = 16
"""More than any prose has; bounds the tokenizer's work on a text far longer than `MAX_WINDOWS`."""


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
        for row, ids, vector, _ in self._encoded(texts):
            sums[row] += len(ids) * vector
        return unit(sums)

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """A word piece that stands in several places has the mean of its vectors there."""
        sums = np.zeros((len(texts), self.dimension), dtype=np.float32)
        pieces: list[dict[int, Vectors]] = [{} for _ in texts]
        for row, ids, vector, tokens in self._encoded(texts):
            sums[row] += len(ids) * vector
            for piece, token in zip(ids, tokens.float().cpu().numpy(), strict=False):
                if piece in self._telling:
                    pieces[row][piece] = pieces[row].get(piece, 0) + token
        return [
            Encoding(vector, unit(np.stack(list(of_text.values())[:MAX_TOKENS] or [vector])))
            for vector, of_text in zip(unit(sums), pieces, strict=True)
        ]

    @cached_property
    def _telling(self) -> frozenset[int]:
        """The pieces of the vocabulary that get vectors: no marks, no common words."""
        vocabulary: dict[str, int] = self._model.tokenizer.get_vocab()
        special = set(self._model.tokenizer.all_special_tokens)
        return frozenset(
            id
            for piece, id in vocabulary.items()
            if piece not in special
            and piece.casefold() not in COMMON
            and any(char.isalnum() for char in piece)
        )

    def _encoded(self, texts: Sequence[str]) -> Iterator[tuple[int, list[int], Vectors, Tensor]]:
        """(row of the text, token ids, vector, vectors of the tokens) of every window."""
        import torch

        windows = self._windows(texts)
        for start in range(0, len(windows), self._batch_size):
            batch = windows[start : start + self._batch_size]
            ids = [window for _, window in batch]
            with torch.inference_mode():
                out = self._model(self._padded(ids))
            vectors = out["sentence_embedding"].float().cpu().numpy()
            for (row, window), vector, tokens in zip(
                batch, vectors, out["token_embeddings"], strict=True
            ):
                yield row, window, vector, tokens[: len(window)]

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

    def _padded(self, batch: list[list[int]]) -> dict[str, Tensor]:
        """Token ids of B windows -> what the model takes, each [B, longest]."""
        import torch

        length = max(map(len, batch))
        ids = torch.full((len(batch), length), self._model.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        device = self._model.device
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _fingerprint(path: Path) -> str:
    """Tells one model's weights from another's by the size and first MiB of each file."""
    seen = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as weights:
            seen.update(weights.read(1 << 20))
        seen.update(str(file.stat().st_size).encode())
    return seen.hexdigest()[:12]
