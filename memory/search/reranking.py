"""A second look at the best candidates, by a model that reads each together with the query.

Knows nothing of how the candidates were found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelNotFound
from .base import Hit

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

RERANKED = 30
"""Candidates that are read: a cross-encoder of six layers takes some 10 ms for each on a CPU."""

SIGNAL = "reranker"


class Reranker(Protocol):
    """Judges texts against a query."""

    name: str

    def log_odds(self, query: str, texts: Sequence[str]) -> NDArray[np.float64]:
        """[N], of each text to bear on the query."""
        ...


class CrossEncoderReranker:
    """A sentence-transformers cross-encoder with one output (Nogueira & Cho 2019, "Passage
    Re-ranking with BERT").

    Args:
        path: a folder, or a name that the library knows.

    Raises:
        ModelNotFound: there is no such model, or it has more than one output.
    """

    def __init__(self, path: str) -> None:
        self.name = path
        self._model = _opened(path)

    def log_odds(self, query: str, texts: Sequence[str]) -> NDArray[np.float64]:
        """[N], what the model says before its sigmoid."""
        from torch.nn import Identity

        pairs = [(query, text) for text in texts]
        said = self._model.predict(pairs, activation_fn=Identity(), show_progress_bar=False)
        return np.asarray(said, np.float64)


@cache
def _opened(path: str) -> CrossEncoder:
    from sentence_transformers import CrossEncoder

    try:
        model = CrossEncoder(path)
    except (OSError, ValueError) as error:
        raise ModelNotFound(
            f"reranker={path!r} cannot be opened: {error}; give the folder of a cross-encoder"
        ) from error
    if model.num_labels != 1:
        raise ModelNotFound(
            f"reranker={path!r} has {model.num_labels} outputs and must have one; use a"
            " cross-encoder made for ranking"
        )
    return model


def rerank(reranker: Reranker, query: str, hits: Sequence[Hit]) -> list[Hit]:
    """The hits by the mean of both log odds, best first, equal scores by id."""
    if not hits:
        return []
    odds = reranker.log_odds(query, [hit.entry.text for hit in hits])
    judged = [_judged(hit, float(each)) for hit, each in zip(hits, odds, strict=True)]
    return sorted(judged, key=lambda hit: (-hit.score, hit.entry.id))


def _judged(hit: Hit, odds: float) -> Hit:
    p = min(max(hit.score, 1e-12), 1 - 1e-12)
    together = (math.log(p / (1 - p)) + odds) / 2
    shares = {name: round(share / 2, 3) for name, share in hit.signals.items()}
    score = 1 / (1 + math.exp(-together))
    return replace(hit, score=score, signals={**shares, SIGNAL: round(odds / 2, 3)})
