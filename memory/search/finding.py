"""Candidates for a question, and what speaks for each of them.

By words, from the database's full text search; by meaning, from the codes of all vectors; and what
stands next to the best of these. Knows nothing of how entries are written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from ..vectors import Embedder
from .base import SIGNALS, Filter
from .elsewhere import ELSEWHERE
from .fusion import fuse
from .mirror import Mirror
from .packing import Packed
from .question import Question
from .rows import Row
from .shelf import Shelves
from .signals import Evidence
from .table import EntryTable

EXPANDED = 10
"""Of the best candidates so many have their neighbours looked at too."""


@dataclass(frozen=True, slots=True)
class Signals:
    """N candidates by key and id, what speaks for each [N, S], and their cosines [N]."""

    keys: Sequence[int]
    ids: Sequence[str]
    values: NDArray[np.float32]
    cosines: NDArray[np.float32]

    @classmethod
    def none(cls) -> Signals:
        """No candidate."""
        return cls([], [], np.zeros((0, len(SIGNALS)), np.float32), np.zeros(0, np.float32))

    def order(self) -> list[int]:
        """Places of the candidates, best first, equal scores by id."""
        scores, _ = fuse(self.values)
        return sorted(range(len(self.ids)), key=lambda n: (-scores[n], self.ids[n]))

    def joined(self, other: Signals) -> Signals:
        """Both together."""
        return Signals(
            [*self.keys, *other.keys],
            [*self.ids, *other.ids],
            np.concatenate([self.values, other.values]),
            np.concatenate([self.cosines, other.cosines]),
        )


class Finder:
    """Finds candidates in one index. Safe to use from several threads."""

    def __init__(self, table: EntryTable, embedder: Embedder, mirror: Mirror | None) -> None:
        self._table = table
        self._embedder = embedder
        self._mirror = mirror
        self._shelves = Shelves(table.rows)

    def find(self, session: Session, query: str, seen: Filter, depth: int, at: datetime) -> Signals:
        """What speaks for each of about `depth` candidates by words, and as many by meaning."""
        rows = self._table.rows
        owner = rows.owner(session, seen.owner)
        if owner is None:
            return Signals.none()
        shelf = self._shelves.of(session, seen.owner, owner)
        question = Question.of(query, shelf.speakers, at)
        encoding = self._embedder.encode([question.text])[0]
        visible = rows.visible(seen, owner.number) if seen.narrow else []
        if self._mirror:
            keys = set(self._mirror.nearest(session, seen, owner.number, encoding.vector, depth))
        else:
            among = rows.keys(session, owner.number, visible) if visible else None
            keys = set(shelf.nearest(encoding.vector, depth, among))
        lexicon, number = self._table.lexicon, owner.number
        having = lexicon.having(session, number, question.stems)
        keys.update(lexicon.match(session, having, number, depth, visible))
        evidence = Evidence(question, encoding, owner, self._elsewhere)
        evidence.take(shelf.beside)
        evidence.take(shelf.background)

        def weigh(keys: Collection[int]) -> Signals:
            new = set(keys) - shelf.background.keys()
            evidence.take(rows.rows(session, number, new, beside=True))
            shown = [evidence.rows[key] for key in sorted(keys) if key in evidence.rows]
            if not shown:
                return Signals.none()
            known = evidence.rows.keys()
            evidence.take(rows.rows(session, number, _missing(shown, known), beside=False))
            episodes = {row.episode for row in shown if row.episode is not None}
            counts = lexicon.counts(session, number, having, episodes)
            at = [row.key for row in shown]
            values, cosines = evidence.signals(at, list(shelf.background), counts)
            return Signals(at, [row.id for row in shown], values, cosines)

        found = weigh(keys)
        # what answers a question often stands next to what is like the question
        best = [evidence.rows[found.keys[n]] for n in found.order()[:EXPANDED]]
        beside = _missing(best, keys)
        if visible:
            beside = rows.among(session, beside, visible)
        return found.joined(weigh(beside)) if beside else found

    def forget(self) -> None:
        """Keep nothing of what was read."""
        self._shelves.clear()

    @cached_property
    def _elsewhere(self) -> list[Packed]:
        return [Packed.of(each) for each in self._embedder.encode(ELSEWHERE)]


def _missing(rows: Iterable[Row], known: Collection[int]) -> frozenset[int]:
    """Keys of the neighbours of these rows that are not known yet."""
    beside = {key for row in rows for key in (row.before, row.after)}
    return frozenset(key for key in beside if key is not None and key not in known)
