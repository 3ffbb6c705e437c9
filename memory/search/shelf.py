"""What a search keeps of one owner between two questions: codes, a sample, the speakers' names.

A copy of what the tables say in one state of theirs, and used with that state only. Knows nothing
of scores.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from .packing import pack
from .rows import Owner, Row, Rows

BACKGROUND = 64
"""Entries that say what an entry with no bearing on a question looks like."""

SHELVES = 16
"""Owners whose codes are kept in memory."""

BLOCK = 1 << 16
"""Codes compared at once: few enough to stay in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """An owner's entries, in short.

    Args:
        keys: [N], ascending.
        codes: [N, D / 64] uint64: the signs of the vectors; 48 bytes for a D of 384.
        background: a sample of up to `BACKGROUND` entries, and `beside` their neighbours.
        changed: the state of the tables that this is a copy of.
    """

    keys: NDArray[np.int64]
    codes: NDArray[np.uint64]
    speakers: frozenset[str]
    background: Mapping[int, Row]
    beside: Mapping[int, Row]
    changed: int

    def nearest(
        self, vector: NDArray[np.float32], k: int, among: NDArray[np.int64] | None = None
    ) -> list[int]:
        """Keys of the k entries whose codes differ least from those of `vector` [D]: candidates,
        to be scored by their vectors.

        Args:
            among: look at these keys only, in order.
        """
        at = np.arange(len(self.keys)) if among is None else np.searchsorted(self.keys, among)
        codes = self.codes if among is None else self.codes[at]
        if not len(codes):
            return []
        asked = _words(pack(vector)[None])
        apart = np.concatenate(
            [
                np.bitwise_count(codes[start : start + BLOCK] ^ asked).sum(axis=1, dtype=np.int32)
                for start in range(0, len(codes), BLOCK)
            ]
        )
        if len(apart) > k:
            at = at[np.argpartition(apart, k)[:k]]
        return [int(key) for key in self.keys[at]]


class Shelves:
    """The shelves of the owners asked for last. Safe to use from several threads."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._kept: dict[str, Shelf] = {}
        self._lock = Lock()

    def of(self, session: Session, name: str, owner: Owner) -> Shelf:
        """The shelf of an owner, as the transaction sees them."""
        with self._lock:
            kept = self._kept.pop(name, None)
        if kept is not None and kept.changed == owner.changed:
            shelf = kept
        else:
            # what was only added to is read on from where it ended
            grown = kept is not None and owner.removed <= kept.changed < owner.changed
            shelf = self._read(session, owner, kept if grown else None)
        with self._lock:
            newer = self._kept.pop(name, shelf)
            self._kept[name] = max(shelf, newer, key=lambda each: each.changed)
            while len(self._kept) > SHELVES:
                del self._kept[next(iter(self._kept))]  # the one used last stands last
        return shelf

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._kept.clear()

    def _read(self, session: Session, owner: Owner, before: Shelf | None) -> Shelf:
        rows, number = self._rows, owner.number
        last = int(before.keys[-1]) if before is not None else -1
        keys, codes = rows.codes(session, number, last)
        words, speakers = _words(codes), rows.speakers(session, number, last)
        if before is not None:
            keys = np.concatenate([before.keys, keys])
            words = np.concatenate([before.codes, words])
            speakers |= before.speakers
        drawn = rows.sample(session, number, BACKGROUND)
        background = rows.rows(session, number, drawn, beside=True)
        return Shelf(
            keys=keys,
            codes=words,
            speakers=speakers,
            background=background,
            beside=rows.rows(session, number, _neighbours(background), beside=False),
            changed=owner.changed,
        )


def _words(codes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Bytes [N, B] as 64-bit words [N, B / 8], padded with zeros."""
    short = -codes.shape[1] % 8
    padded = np.pad(codes, ((0, 0), (0, short))) if short else codes
    return np.ascontiguousarray(padded).view(np.uint64)


def _neighbours(rows: Mapping[int, Row]) -> Collection[int]:
    beside = {key for row in rows.values() for key in (row.before, row.after) if key is not None}
    return beside - rows.keys()
