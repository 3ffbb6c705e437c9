"""What a search reads of an owner's entries, inside the caller's transaction.

The one place that decides what a filter lets through: every query here is bound to an owner. Knows
nothing of scores.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Label, Select, bindparam, null, select, tuple_
from sqlalchemy.orm import Session

from ..journal import chunks
from .base import Filter
from .packing import Packed
from .tables import Tables


class Owner(NamedTuple):
    """An owner's number; their entries, the stems of all these together, and their episodes; when
    the entries last changed and when one last went, as counted by the index."""

    number: int
    entries: int
    stems: int
    episodes: int
    changed: int
    removed: int


class Row(NamedTuple):
    """An entry as the signals see it; its columns are those of `Rows._statement`.

    Args:
        stems: [W] uint32, in the order of the text.
        vector: [D] of length 1.
        tokens: [T, D / 8] uint8: the signs of each token's vector, packed.
        before, after: keys of its neighbours on its line, None at an end.
    """

    key: int
    id: str
    episode: int | None
    created: str
    speaker: str | None
    role: str | None
    asks: bool
    stems: NDArray[np.uint32]
    vector: NDArray[np.float16]
    tokens: NDArray[np.uint8]
    before: int | None = None
    after: int | None = None


class Rows:
    """The rows of one index."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._plain = self._statement(null().label("before"), null().label("after"))
        near = (self._neighbour(after=after) for after in (False, True))
        self._with_neighbours = self._statement(*near)

    def owner(self, session: Session, name: str) -> Owner | None:
        """What is known of an owner who has entries."""
        o = self.tables.owners
        columns = (o.c[field] for field in Owner._fields)
        row = session.execute(select(*columns).where(o.c.name == name)).one_or_none()
        return Owner(*row) if row else None

    def visible(self, seen: Filter, owner: int) -> list[ColumnElement[bool]]:
        """What a filter lets through, as conditions on the entries."""
        e = self.tables.entries
        terms: list[ColumnElement[bool]] = [self._of(owner)]
        if seen.session is not None:
            terms.append(e.c.session == seen.session)
        if seen.since is not None:
            terms.append(e.c.created >= seen.since)
        if seen.until is not None:
            terms.append(e.c.created < seen.until)
        for key, allowed in seen.where:
            column = e.c.session if key == "session" else e.c.meta[key].as_string()
            terms.append(column.in_(allowed))
        return terms

    def keys(
        self, session: Session, owner: int, visible: Sequence[ColumnElement[bool]]
    ) -> NDArray[np.int64]:
        """Keys of all of the owner's entries that the conditions let through, in order."""
        e = self.tables.entries
        query = select(e.c.key).where(e.c.owner == owner, *visible)
        return np.sort(np.fromiter(session.scalars(query), dtype=np.int64))

    def among(
        self, session: Session, keys: Collection[int], visible: Sequence[ColumnElement[bool]]
    ) -> frozenset[int]:
        """Those of `keys` that are there and that the conditions let through."""
        key = self.tables.entries.c.key
        found: set[int] = set()
        for part in chunks(keys):
            found.update(session.scalars(select(key).where(*visible, key.in_(part))))
        return frozenset(found)

    def keys_of(
        self, session: Session, ids: Collection[str], visible: Sequence[ColumnElement[bool]]
    ) -> frozenset[int]:
        """Keys of those of `ids` that are there and that the conditions let through."""
        e = self.tables.entries
        found: set[int] = set()
        for part in chunks(ids):
            found.update(session.scalars(select(e.c.key).where(*visible, e.c.id.in_(part))))
        return frozenset(found)

    def sessions(self, session: Session, seen: Filter, keys: Collection[int]) -> dict[int, str]:
        """Key -> session, of those of the owner's entries that have one."""
        e, o = self.tables.entries, self.tables.owners
        query = select(e.c.key, e.c.session).join(o, self._of(o.c.number))
        query = query.where(o.c.name == seen.owner, e.c.session.is_not(None))
        found: dict[int, str] = {}
        for part in chunks(keys):
            rows: Sequence[Any] = session.execute(query.where(e.c.key.in_(part))).all()
            found |= {row.key: row.session for row in rows}
        return found

    def rows(
        self, session: Session, owner: int, keys: Iterable[int], *, beside: bool
    ) -> dict[int, Row]:
        """The owner's rows by key; with `beside`, each row knows its neighbours' keys."""
        found: dict[int, Row] = {}
        query = self._with_neighbours if beside else self._plain
        for part in chunks(keys):
            bound = {"owner": owner, "keys": part}
            fetched: Sequence[Any] = session.execute(query, bound).all()
            for *plain, stems, vector, tokens, before, after in fetched:
                packed = unpacked(vector, tokens)
                row = Row._make((*plain, unpack_stems(stems), *packed, before, after))
                found[row.key] = row
        return found

    def codes(
        self, session: Session, owner: int, after: int
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Keys [N] above `after` and the signs of their vectors [N, D / 8], in order of key."""
        c = self.tables.codes
        query = select(c.c.key, c.c.code).where(c.c.owner == owner, c.c.key > after)
        keys, codes = [], bytearray()
        for key, code in session.execute(query.order_by(c.c.key)):
            keys.append(key)
            codes += code
        if not keys:
            return np.zeros(0, np.int64), np.zeros((0, 0), np.uint8)
        return np.array(keys), np.frombuffer(bytes(codes), np.uint8).reshape(len(keys), -1)

    def sample(self, session: Session, owner: int, size: int) -> list[int]:
        """Keys of up to `size` entries, drawn by a hash of their ids: the same draw every time, and
        nearly the same after another entry has come."""
        e = self.tables.entries
        query = select(e.c.key).where(e.c.owner == owner).order_by(e.c.lot, e.c.id)
        return list(session.scalars(query.limit(size)))

    def speakers(self, session: Session, owner: int, after: int) -> frozenset[str]:
        """Everyone named as having said something, in entries of keys above `after`."""
        e = self.tables.entries
        query = select(e.c.speaker).where(e.c.owner == owner, e.c.key > after)
        named = query.where(e.c.speaker.is_not(None)).distinct()
        return frozenset(name for name in session.scalars(named) if name)

    def _statement(self, before: Label[Any], after: Label[Any]) -> Select[Any]:
        """All that makes a `Row`; built once, as building costs more than reading."""
        e, v = self.tables.entries, self.tables.vectors
        query = select(
            *(e.c.key, e.c.id, e.c.episode, e.c.created, e.c.speaker, e.c.role, e.c.asks),
            *(e.c.stems, v.c.vector, v.c.tokens, before, after),
        )
        mine = (self._of(bindparam("owner")), e.c.key.in_(bindparam("keys", expanding=True)))
        return query.join(v, v.c.key == e.c.key).where(*mine)

    def _of(self, owner: Any) -> ColumnElement[bool]:
        """That an entry is of this owner: a check, and no way to find it. SQLite, which keeps no
        counts of what is in a table, would take the index of owners for a better way than the keys
        that it is given, and read all of the owner's entries."""
        checked: ColumnElement[bool] = self.tables.entries.c.owner + 0 == owner
        return checked

    def _neighbour(self, *, after: bool) -> Label[Any]:
        e = self.tables.entries
        other = e.alias()
        place, mine = tuple_(other.c.created, other.c.id), tuple_(e.c.created, e.c.id)
        order = [other.c.created, other.c.id]
        query = (
            select(other.c.key)
            .where(other.c.owner == e.c.owner, other.c.line == e.c.line)
            .where(place > mine if after else place < mine)
            .order_by(*(order if after else [each.desc() for each in order]))
            .limit(1)
        )
        return query.correlate(e).scalar_subquery().label("after" if after else "before")


def unpacked(vector: bytes, tokens: bytes) -> Packed:
    """An encoding, from the bytes that are kept of it."""
    half = np.frombuffer(vector, np.float16)
    return Packed(half, np.frombuffer(tokens, np.uint8).reshape(-1, -(-len(half) // 8)))


def unpack_stems(raw: bytes) -> NDArray[np.uint32]:
    """[W] stems, as they were given."""
    return np.frombuffer(raw, np.uint32)
