"""What speaks for an entry, one number for each signal: the only thing that fusion sees of it.

Every signal is put on a scale that does not depend on the store: BM25 as a share of the most that
the question could earn, similarities in standard deviations above what unrelated texts have with
the same question. What unrelated is, the store's own entries say, as most of them are; while they
are few, sentences from elsewhere stand in. Knows nothing of weights, tables or files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..vectors import Encoding
from ..words import stems
from .base import SIGNALS
from .elsewhere import ELSEWHERE
from .lexicon import Counts
from .packing import Packed
from .question import Question
from .rows import Owner, Row
from .times import closeness

K1, B = 1.2, 0.75
"""Okapi BM25's usual constants (Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework",
section 3.4)."""

LEAST_SPREAD = 0.02
"""Of similarities: a store of few or equal entries has none of its own."""

ENOUGH = 24
"""Stems that a text needs to say something; more say no more."""

QUOTED = 5
"""Pairs of neighbouring words from which on a question is a quotation."""

_ELSEWHERE = Counter(stem for text in ELSEWHERE for stem in set(stems(text)))
"""In how many of the sentences from elsewhere a stem stands: in a store of few entries even a word
that nobody else would say is in half of them."""

Floats = NDArray[np.floating[Any]]


class Evidence:
    """Rows as one question sees them. What depends on a row alone is worked out as it comes in.

    Args:
        elsewhere: texts that have nothing to do with anybody.
    """

    def __init__(
        self, question: Question, encoding: Encoding, owner: Owner, elsewhere: Sequence[Packed]
    ) -> None:
        self.rows: dict[int, Row] = {}
        self._question, self._encoding, self._owner = question, encoding, owner
        self._stems = np.array(question.stems, np.uint64)
        pairs = np.array(question.phrases, np.uint64).reshape(-1, 2)
        self._phrases = _joined(pairs[:, 0], pairs[:, 1])
        self._place: dict[int, int] = {}
        # one column a row: [stems asked, N], [N], [N], [words asked, N], [N]
        self._times = np.zeros((len(question.stems), 0))
        self._quoted = np.zeros(0)
        self._sizes = np.zeros(0)
        self._best = np.zeros((len(encoding.tokens), 0), np.float32)
        self._cosines = np.zeros(0, np.float32)
        self._foreign_best = self._matches([each.tokens for each in elsewhere])
        self._foreign_cosines = self._similar([each.vector for each in elsewhere])

    def take(self, rows: Mapping[int, Row]) -> None:
        """Take in rows; one that is known already may know more of its neighbours now."""
        self.rows.update(rows)
        new = [row for key, row in rows.items() if key not in self._place]
        if not new:
            return
        self._place |= {row.key: at for at, row in enumerate(new, len(self._place))}
        sizes = [len(row.stems) for row in new]
        said = np.concatenate([row.stems for row in new]).astype(np.uint64)
        text_of = np.repeat(np.arange(len(new)), sizes)
        times = _times(said, text_of, len(new), self._stems)
        self._times = np.concatenate([self._times, times], axis=1)
        self._sizes = np.concatenate([self._sizes, sizes])
        quoted = self._quotes(said, text_of, len(new))
        self._quoted = np.concatenate([self._quoted, quoted])
        best = self._matches([row.tokens for row in new])
        self._best = np.concatenate([self._best, best], axis=1)
        cosines = self._similar([row.vector for row in new])
        self._cosines = np.concatenate([self._cosines, cosines])

    def signals(
        self, keys: Sequence[int], sample: Sequence[int], counts: Counts
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """[N, len(SIGNALS)] of the N keys, and the cosines [N].

        Args:
            sample: keys of entries that tell what is unrelated.
        """
        shown, every = [self.rows[key] for key in keys], [*keys, *sample]
        own = self._at(every)
        around = np.stack([self._at(every, side) for side in ("before", "after")])
        count = len(keys)
        alone, window = self._maxsim(own, around)
        found = {
            **self._bm25(own[:count], around[:, :count], shown, counts),
            "quote": self._quoted[own[:count]],
            "cosine": _standard(self._cosines[own], self._foreign_cosines, count),
            "maxsim": _standard(alone, self._foreign_best.mean(axis=0), count),
            "maxsim window": _standard(window, self._foreign_best.mean(axis=0), count),
            "speaker": [_speaks(self._question, row) for row in shown],
            "time": [closeness(row.created, self._question.times) for row in shown],
            "question": [float(row.asks) for row in shown],
            "length": [math.log1p(min(len(row.stems), ENOUGH)) for row in shown],
        }
        table = np.stack([np.asarray(found[name], np.float32) for name in SIGNALS], axis=1)
        return table, self._cosines[own[:count]]

    def _quotes(self, said: NDArray[np.uint64], text_of: NDArray[np.intp], count: int) -> Floats:
        """[N]: the share of the question's pairs of neighbouring words that stand side by side in
        each of N texts; 0 if they are few, as chance can bring these about."""
        inside = text_of[:-1] == text_of[1:]
        pairs = _joined(said[:-1], said[1:])[inside]
        found = (_times(pairs, text_of[:-1][inside], count, self._phrases) > 0).sum(axis=0)
        shares: Floats = np.where(found >= QUOTED, found / max(len(self._phrases), 1), 0.0)
        return shares

    def _at(self, keys: Sequence[int], side: str | None = None) -> NDArray[np.intp]:
        """Columns of the keys, or of their neighbours; -1 where there is none."""
        if side is not None:
            return np.array([self._place.get(getattr(self.rows[key], side), -1) for key in keys])
        return np.array([self._place[key] for key in keys])

    def _similar(self, vectors: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Cosines [N] of N vectors [D] with the question's."""
        cosines: NDArray[np.float32] = np.stack(vectors).astype(np.float32) @ self._encoding.vector
        return cosines

    def _matches(self, packed: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """[words asked, N]: the best match of each asked word among the words of each of N texts,
        of which only the signs are kept."""
        asked = self._encoding.tokens
        signs = np.unpackbits(np.concatenate(packed), axis=1, count=asked.shape[1])
        starts = np.cumsum([0, *map(len, packed)])[:-1]
        # q . (2b - 1) = 2 q . b - sum(q): no copy of the signs as -1 and 1
        best = np.maximum.reduceat(asked @ signs.T.astype(np.float32), starts, axis=1)
        matches: NDArray[np.float32] = 2 * best - asked.sum(axis=1, keepdims=True)
        return matches / np.float32(asked.shape[1] ** 0.5)

    def _maxsim(
        self, own: NDArray[np.intp], around: NDArray[np.intp]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Late interaction: the mean, over the question's words, of the best match among the
        entry's words (Khattab & Zaharia 2020, "ColBERT", section 3.3, as a mean), and the same with
        the words of both neighbours."""
        alone = self._best[:, own]
        sides = self._best[:, np.where(around < 0, own, around)]  # [words asked, 2, N]
        return alone.mean(axis=0), np.maximum(alone, sides.max(axis=1)).mean(axis=0)

    def _bm25(
        self,
        own: NDArray[np.intp],
        around: NDArray[np.intp],
        shown: Sequence[Row],
        counts: Counts,
    ) -> dict[str, Any]:
        """BM25 of the entry, of it with its neighbours, and of its episode: each as a share of what
        an endless text of nothing but the asked words would score."""
        owner, asked = self._owner, self._question.stems
        having = [counts.entries_of.get(stem, 0) + _ELSEWHERE[stem] for stem in asked]
        common = _idf(owner.entries + len(ELSEWHERE), having)
        average = owner.stems / max(owner.entries, 1)
        times, sizes = self._times[:, own], self._sizes[own]
        there = around >= 0
        near_times = times + (self._times[:, around] * there).sum(axis=1)
        near_sizes = sizes + (self._sizes[around] * there).sum(axis=0)
        return {
            "bm25": _okapi(common, times, sizes / average),
            "bm25 window": _okapi(common, near_times, near_sizes / (3 * average)),
            "bm25 session": _episodes(shown, asked, common, owner, counts),
        }


def _times(
    said: NDArray[np.uint64], text_of: NDArray[np.intp], count: int, asked: NDArray[np.uint64]
) -> Floats:
    """[S, N]: how often each of S stems, or pairs of them, stands in each of N texts, which are
    given as one: what is said [W], and in which text [W]."""
    times = np.zeros((len(asked), count))
    if len(asked):
        order = np.argsort(asked)
        place = np.searchsorted(asked, said, sorter=order).clip(max=len(asked) - 1)
        there = asked[order[place]] == said
        np.add.at(times, (order[place[there]], text_of[there]), 1)
    return times


def _joined(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Pairs of stems, each as one number."""
    return (first << np.uint64(32)) | second


def _episodes(
    shown: Sequence[Row], asked: Sequence[int], idf: Floats, owner: Owner, counts: Counts
) -> list[float]:
    numbers = list({row.episode for row in shown if row.episode is not None})
    if not numbers:
        return [0.0] * len(shown)
    times = [[counts.times.get((number, stem), 0) for number in numbers] for stem in asked]
    average = owner.stems / max(owner.episodes, 1)
    lengths = np.array([counts.lengths[number] for number in numbers]) / average
    scores = _okapi(idf, np.array(times, float).reshape(len(asked), -1), lengths)
    of: dict[int | None, float] = {None: 0.0, **dict(zip(numbers, scores, strict=True))}
    return [of[row.episode] for row in shown]


def _idf(count: int, having: Sequence[int]) -> Floats:
    n = np.array(having, np.float64)
    return np.log1p((count - n + 0.5) / (n + 0.5))


def _okapi(idf: Floats, times: Floats, lengths: Floats) -> Floats:
    """Scores [N] in [0, 1) of N texts, of how often they have each of S stems [S, N]."""
    if not idf.sum():
        return np.zeros(len(lengths))
    share = times / (times + K1 * (1 - B + B * lengths))
    scores: Floats = idf @ share / idf.sum()
    return scores


def _standard(values: Floats, foreign: Floats, shown: int) -> Floats:
    """Standard deviations above the background: what stands behind the first `shown`, and what is
    foreign. Median and median absolute deviation ignore what in it does bear on the question."""
    background = np.concatenate([values[shown:], foreign])
    middle = float(np.median(background))
    spread = 1.4826 * float(np.median(np.abs(background - middle)))
    return (values[:shown] - middle) / max(spread, LEAST_SPREAD)


def _speaks(question: Question, row: Row) -> float:
    if question.speakers:
        return float(row.speaker in question.speakers)
    return float(question.role is not None and row.role == question.role)
