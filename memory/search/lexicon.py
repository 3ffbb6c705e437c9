"""An index's words: which entries have a stem, how many, and how often an episode says it.

Counts are kept as entries come and go, for each owner and each episode apart, so that a score
depends on nobody else's texts. Knows texts by their stems only, and nothing of scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Table,
    bindparam,
    column,
    delete,
    select,
    table,
    text,
    update,
)
from sqlalchemy.orm import Session

from ..database import insert_into
from .tables import Tables

MOST_READ = 20_000
"""Entries that a search by words reads. Common words cost most of its time, and hardly change which
entries are the best: they are left to the score."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What BM25 needs to know of an owner's texts: in how many entries each asked stem occurs, and
    how often in the episodes that hold candidates.

    Args:
        entries_of: stem -> entries that have it.
        times: (episode, stem) -> how often.
        lengths: episode -> stems in it.
    """

    entries_of: Mapping[int, int]
    times: Mapping[tuple[int, int], int]
    lengths: Mapping[int, int]


class Said(NamedTuple):
    """The stems of an entry, and where they count."""

    key: int
    owner: int
    episode: int | None
    stems: Sequence[int]


class Lexicon:
    """The words of one index. Every method works in the transaction it is given."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables

    def add(self, session: Session, said: Sequence[Said], at: int) -> None:
        """Take the words of entries in; their owners changed `at` that count."""
        self._run(session, _ADD, said)
        self._count(session, said, 1, changed=at)

    def remove(self, session: Session, said: Sequence[Said], at: int) -> None:
        """Be as if these had not been added; something of their owners went `at` that count."""
        self._run(session, _DROP, said)
        self._count(session, said, -1, changed=at, removed=at)

    def clear(self, session: Session) -> None:
        """Hold no word; the counts are in tables that the caller empties."""
        session.execute(text(_CLEAR[_dialect(session)].format(self.tables.lexicon)))

    def purge(self, session: Session) -> None:
        """Leave nothing of removed words in the full text index's own pages."""
        if statement := _PURGE[_dialect(session)]:
            session.execute(text(statement.format(self.tables.lexicon)))

    def having(self, session: Session, owner: int, asked: Sequence[int]) -> dict[int, int]:
        """Of the asked stems those that the owner's entries have, each with how many have it."""
        terms = self.tables.terms.c
        query = select(terms.stem, terms.entries).where(terms.owner == owner, terms.stem.in_(asked))
        return _pairs(session.execute(query).all())

    def match(
        self,
        session: Session,
        having: Mapping[int, int],
        owner: int,
        limit: int,
        visible: Sequence[ColumnElement[bool]] = (),
    ) -> list[int]:
        """Keys of entries that have the rarest of the asked stems, the best `limit`.

        Args:
            having: as the method of this name gives them.
            visible: conditions on the entries.
        """
        telling = _rarest(having)
        if not telling:
            return []
        e, lexicon = self.tables.entries, self.tables.lexicon
        dialect = _dialect(session)
        found = table(lexicon, column(_KEY[dialect]))
        key = found.c[_KEY[dialect]]
        query = select(key).where(text(_MATCHES[dialect].format(lexicon)))
        if visible:
            query = query.join_from(found, e, e.c.key == key).where(*visible)
        query = query.order_by(text(_BEST[dialect].format(lexicon))).limit(limit)
        words = _lexemes(owner, telling).split()
        joined = " OR ".join(f'"{word}"' for word in words)
        if dialect == "postgresql":
            joined = " | ".join(f"'{word}'" for word in words)
        return list(session.scalars(query, {"words": joined}).all())

    def counts(
        self, session: Session, owner: int, having: Mapping[int, int], episodes: Collection[int]
    ) -> Counts:
        """What BM25 needs for these stems and these episodes."""
        t, here = self.tables, list(episodes)
        times = select(t.mentions.c.episode, t.mentions.c.stem, t.mentions.c.times).where(
            t.mentions.c.owner == owner,
            t.mentions.c.stem.in_(list(having)),
            t.mentions.c.episode.in_(here),
        )
        lengths = select(t.episodes.c.number, t.episodes.c.stems).where(
            t.episodes.c.number.in_(here)
        )
        return Counts(
            entries_of=having,
            times={(episode, stem): n for episode, stem, n in session.execute(times).all()},
            lengths=_pairs(session.execute(lengths).all()),
        )

    def _run(self, session: Session, statements: Mapping[str, str], said: Sequence[Said]) -> None:
        statement = text(statements[_dialect(session)].format(self.tables.lexicon))
        rows = [{"key": each.key, "stems": _lexemes(each.owner, each.stems)} for each in said]
        session.execute(statement, rows)

    def _count(self, session: Session, said: Sequence[Said], sign: int, **when: int) -> None:
        t = self.tables
        terms: Counter[tuple[int, int]] = Counter()
        mentions: Counter[tuple[int, int, int]] = Counter()
        for each in said:
            terms.update((each.owner, stem) for stem in set(each.stems))
            if each.episode is not None:
                mentions.update((each.owner, stem, each.episode) for stem in each.stems)
        _add_up(session, t.terms, terms, sign)
        _add_up(session, t.mentions, mentions, sign)
        told = [(each.episode, len(each.stems)) for each in said if each.episode is not None]
        _resize(session, t.episodes, told, sign)
        _resize(session, t.owners, [(each.owner, len(each.stems)) for each in said], sign, **when)
        if sign < 0:
            self._drop_empty(session, said)

    def _drop_empty(self, session: Session, said: Sequence[Said]) -> None:
        """Remove the episodes and owners of whom nothing is left."""
        episodes, owners = self.tables.episodes, self.tables.owners
        touched = {each.episode for each in said}
        empty = delete(episodes).where(episodes.c.number.in_(touched), episodes.c.entries <= 0)
        for owner in session.scalars(empty.returning(episodes.c.owner)).all():
            fewer = update(owners).where(owners.c.number == owner)
            session.execute(fewer.values(episodes=owners.c.episodes - 1))
        mine = owners.c.number.in_({each.owner for each in said})
        session.execute(delete(owners).where(mine, owners.c.entries <= 0))


def _resize(
    session: Session, of: Table, lengths: Sequence[tuple[int, int]], sign: int, **when: int
) -> None:
    """Add to, or take from, the sizes of owners or episodes, and note `when`."""
    entries, stems = Counter(number for number, _ in lengths), Counter[int]()
    for number, length in lengths:
        stems[number] += length
    for number in entries:
        grown: dict[str, Any] = {
            "entries": of.c.entries + sign * entries[number],
            "stems": of.c.stems + sign * stems[number],
        }
        session.execute(update(of).where(of.c.number == number).values(**grown, **when))


_KEY = {"sqlite": "rowid", "postgresql": "key"}
_MATCHES = {"sqlite": "{0} MATCH :words", "postgresql": "{0}.stems @@ CAST(:words AS tsquery)"}
_BEST = {
    "sqlite": "{0}.rank",
    "postgresql": "ts_rank({0}.stems, CAST(:words AS tsquery)) DESC",
}
_ADD = {
    "sqlite": "INSERT INTO {0} (rowid, stems) VALUES (:key, :stems)",
    "postgresql": "INSERT INTO {0} VALUES (:key, array_to_tsvector(string_to_array(:stems, ' ')))",
}
_DROP = {
    "sqlite": "INSERT INTO {0} ({0}, rowid, stems) VALUES ('delete', :key, :stems)",
    "postgresql": "DELETE FROM {0} WHERE key = :key",
}
_PURGE = {"sqlite": "INSERT INTO {0} ({0}) VALUES ('optimize')", "postgresql": ""}
_CLEAR = {
    "sqlite": "INSERT INTO {0} ({0}) VALUES ('delete-all')",
    "postgresql": "DELETE FROM {0}",
}
"""Full text search in each database's words; only the table's name is filled in."""


def _rarest(having: Mapping[int, int]) -> list[int]:
    """Those of the stems that stand in the fewest entries, together in no more than MOST_READ; the
    rarest in any case."""
    kept: list[int] = []
    read = 0
    for entries, stem in sorted((entries, stem) for stem, entries in having.items()):
        read += entries
        if kept and read > MOST_READ:
            break
        kept.append(stem)
    return kept


def _lexemes(owner: int, stems: Iterable[int]) -> str:
    return " ".join(f"{owner}_{stem:x}" for stem in stems)


def _add_up(session: Session, to: Table, counted: Mapping[Any, int], sign: int) -> None:
    """Add to the last column of rows that may not be there yet, or take from it and remove what
    comes to nothing; the other columns are the key."""
    if not counted:
        return
    *key, last = (each.name for each in to.columns)
    rows = [dict(zip(key, of, strict=True)) | {last: sign * n} for of, n in counted.items()]
    statement = insert_into(session, to)
    grown = {last: to.c[last] + statement.excluded[last]}
    session.execute(statement.on_conflict_do_update(index_elements=key, set_=grown), rows)
    if sign < 0:
        mine = [to.c[name] == bindparam(f"of_{name}") for name in key]
        empty = delete(to).where(*mine, to.c[last] <= 0)
        bound = [{f"of_{name}": row[name] for name in key} for row in rows]
        session.connection().execute(empty, bound)


def _pairs(rows: Iterable[Any]) -> dict[int, int]:
    return {key: value for key, value in rows}  # noqa: C416  # a Row is no tuple to `dict`


def _dialect(session: Session) -> str:
    return session.get_bind().dialect.name
