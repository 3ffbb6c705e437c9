"""What follows from records: newer versions, records made from records, and stores' artefacts.

Functions inside a transaction that the caller holds. Knows a store by its name only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Literal, NamedTuple

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from . import chain
from .base import Artefact
from .chain import Event
from .journal import chunks
from .record import Record, RecordId, Scope
from .schema import CursorRow, EventRow, LineageRow, ParentRow, RecordRow, visible

Why = Literal["asked for", "version of", "made from", "reply to"]


class Ground(NamedTuple):
    """Why a record has to go: what it is, and of which record that goes."""

    why: Why
    of: RecordId | None = None


def history(session: Session, id: RecordId, scope: Scope) -> list[Record]:
    """The versions of a record, oldest first; a message said again in branches has several."""

    def rows(column: str, value: str) -> list[RecordRow]:
        query = select(RecordRow).where(getattr(RecordRow, column) == value)
        return list(session.scalars(visible(query, scope)))

    [root] = rows("id", id)
    while root.supersedes:
        [root] = rows("id", root.supersedes)
    found, unread = [root], [root]
    while unread:
        newer = rows("supersedes", unread.pop().id)
        found += newer
        unread += newer
    return [row.to_record() for row in sorted(found, key=lambda row: row.seq)]


def children(session: Session, ids: Iterable[RecordId]) -> frozenset[RecordId]:
    """All that was made from these records, directly or not; without themselves."""
    given = set(ids)
    seen, unread = set(given), set(given)
    while unread:
        made = set[RecordId]()
        for part in chunks(unread):
            query = select(ParentRow.record).where(ParentRow.parent.in_(part))
            made |= {RecordId(id) for id in session.scalars(query)}
        unread = made - seen
        seen |= made
    return frozenset(seen - given)


def lineage(session: Session, ids: Iterable[RecordId]) -> dict[str, list[Artefact]]:
    """What each store holds of these records, in canonical order."""
    found: dict[str, list[Artefact]] = {}
    for part in chunks(sorted(set(ids))):
        query = select(LineageRow).where(LineageRow.record.in_(part))
        order = (LineageRow.store, LineageRow.record, LineageRow.artefact)
        for row in session.scalars(query.order_by(*order)):
            edge = Artefact(RecordId(row.record), row.artefact)
            found.setdefault(row.store, []).append(edge)
    return found


def forgotten(session: Session, ids: Collection[str]) -> set[str]:
    """Those of the ids whose records were erased here and are not back."""
    found = set[str]()
    for part in chunks(ids):
        erased = select(EventRow.subject).where(EventRow.kind == "erase")
        found.update(session.scalars(erased.where(EventRow.subject.in_(part)).distinct()))
    for part in chunks(found.copy()):
        there = select(RecordRow.id).where(RecordRow.id.in_(part))
        found.difference_update(session.scalars(there))
    return found


def changes(session: Session, after: int, limit: int) -> list[tuple[Event, Record | None]]:
    """Events after `after`, each with its record as it stands now."""
    batch = chain.events(session, after, limit)
    records: dict[str, Record] = {}
    for part in chunks({event.subject for event in batch}):
        rows = session.scalars(select(RecordRow).where(RecordRow.id.in_(part)))
        records |= {row.id: row.to_record() for row in rows}
    return [(event, records.get(event.subject)) for event in batch]


def advance(
    session: Session,
    store: str,
    seq: int,
    written: Collection[RecordId],
    held: Iterable[Artefact],
) -> None:
    """Replace the lineage of `written` by `held` and move the store's cursor to `seq`."""
    there = set[str]()
    for part in chunks(written):
        mine = (LineageRow.store == store, LineageRow.record.in_(part))
        session.execute(delete(LineageRow).where(*mine))
        # Erased since the store wrote them: the erasure's own event comes next and clears them.
        there.update(session.scalars(select(RecordRow.id).where(RecordRow.id.in_(part))))
    edges = {(edge.record, edge.key) for edge in held if edge.record in there}
    rows = [{"record": id, "store": store, "artefact": key} for id, key in sorted(edges)]
    if rows:
        session.execute(insert(LineageRow), rows)
    moved = update(CursorRow).where(CursorRow.store == store).values(seq=seq)
    if not session.connection().execute(moved).rowcount:
        session.add(CursorRow(store=store, seq=seq))


def reset(session: Session, store: str) -> None:
    """Drop the store's lineage and cursor."""
    session.execute(delete(LineageRow).where(LineageRow.store == store))
    session.execute(delete(CursorRow).where(CursorRow.store == store))


def closure(session: Session, asked: Iterable[RecordId]) -> dict[RecordId, Ground]:
    """What has to go along with these records, each with why; see `Erasures.closure`."""
    found = {id: Ground("asked for") for id in asked}
    unread = list(found)
    while unread:
        fresh: dict[RecordId, Ground] = {}
        for part in chunks(unread):
            for id, ground in (*_versions(session, part), *_offspring(session, part)):
                if id not in found:
                    fresh.setdefault(id, ground)
        found |= fresh
        unread = list(fresh)
    return found


def _versions(session: Session, ids: Collection[str]) -> Iterator[tuple[RecordId, Ground]]:
    """What each supersedes, and what supersedes it."""
    link = select(RecordRow.id, RecordRow.supersedes)
    for newer, older in session.execute(link.where(RecordRow.id.in_(ids))):
        if older is not None:
            yield RecordId(older), Ground("version of", RecordId(newer))
    for newer, older in session.execute(link.where(RecordRow.supersedes.in_(ids))):
        yield RecordId(newer), Ground("version of", RecordId(str(older)))


def _offspring(session: Session, ids: Collection[str]) -> Iterator[tuple[RecordId, Ground]]:
    """What was made from each. The first parent of a reply is the message it answers."""
    columns = (ParentRow.record, ParentRow.parent, ParentRow.position, RecordRow.kind)
    query = select(*columns, RecordRow.role).join(RecordRow, RecordRow.id == ParentRow.record)
    for row in session.execute(query.where(ParentRow.parent.in_(ids))):
        child, parent, *is_reply = row
        why: Why = "reply to" if is_reply == [0, "message", "assistant"] else "made from"
        yield RecordId(child), Ground(why, RecordId(parent))
