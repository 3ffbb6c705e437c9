"""What writes to the ledger do, inside a transaction that the caller holds: append and erase.

Each leaves the rows and the chain of events in step. Knows nothing of files, threads or stores.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import delete, insert, select, tuple_, update
from sqlalchemy.orm import Session

from ..errors import InputError, LedgerError, PlanOutdated, RecordNotFound
from .chain import BATCH, Tail, canonical, commitment, stamp
from .record import TRUST, Reach, Record, RecordId, Scope
from .schema import ParentRow, RecordRow, SessionRow, visible

T = TypeVar("T")
Family = tuple[str, str, str]
Place = tuple[str | None, ...]
"""Tenant, user, agent and session."""

COPIED = (
    *("id", "kind", "role", "source", "text", "content_hash", "trust", "meta"),
    *("created", "valid_from", "valid_to", "supersedes"),
)
"""Columns that are the record's own fields."""


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """`items` in lists short enough for one statement."""
    listed = list(items)
    for start in range(0, len(listed), BATCH):
        yield listed[start : start + BATCH]


def append(session: Session, records: Sequence[Record]) -> int:
    """Add the records that are not there yet; returns how many.

    Raises:
        InputError: a time without a zone, `meta` that is not JSON, or a record that supersedes one
            of a source that is trusted more.
        LedgerError: an id that is taken by another content, or a record corrected twice.
        RecordNotFound: a superseded record or a parent is not there.
    """
    tail = Tail(session)
    fresh = _unknown(session, [_plain(record) for record in records])
    if not fresh:
        return 0
    new = [sealed.record for sealed in fresh]
    _check_references(session, new)
    _open_sessions(session, new)
    rows, edges = [], []
    for record, salt, seal in fresh:
        stated = {
            "content": seal,
            "parents": list(record.parents),
            "supersedes": record.supersedes,
            "valid_to": stamp(record.valid_to),
        }
        seq = tail.add("append", record.id, stated)
        rows.append(_row(record) | {"seq": seq, "salt": salt, "commitment": seal})
        edges += [
            {"record": record.id, "parent": parent, "position": position}
            for position, parent in enumerate(record.parents)
        ]
        if record.supersedes:
            tail.add("supersede", record.supersedes, {"by": record.id})
    session.execute(insert(RecordRow), rows)
    if edges:
        session.execute(insert(ParentRow), edges)
    for record in new:
        if record.supersedes:
            _set(session, record.supersedes, superseded_at=record.valid_from)
    tail.flush()
    return len(fresh)


def erase(
    session: Session, ids: Collection[RecordId], scope: Scope | Reach, *, closed: bool = False
) -> frozenset[RecordId]:
    """Remove the records that `scope` covers, and mend what referred to them; returns their ids.

    A chain of supersessions closes over the gap: with B superseding A and C superseding B, erasing
    B leaves C superseding A, and erasing B and C leaves A current again.

    Args:
        closed: all of them must be there, and nothing that stays may be a version of one or made
            from one.

    Raises:
        PlanOutdated: it is `closed`, and that is not so; nothing is erased.
    """
    tail = Tail(session)
    gone: dict[str, str | None] = {}
    places = set[Place]()
    place = (RecordRow.tenant, RecordRow.user, RecordRow.agent, RecordRow.session)
    for part in chunks(ids):
        query = select(RecordRow.id, RecordRow.supersedes, *place)
        for id, old, *where in session.execute(visible(query.where(RecordRow.id.in_(part)), scope)):
            gone[id] = old
            places.add(tuple(where))
    heirs = _heirs(session, gone)
    touched = _orphans(session, gone)
    left = {old for old in gone.values() if old and old not in gone}
    if closed and (heirs or touched or left or gone.keys() != set(ids)):
        raise PlanOutdated(
            "records were added or erased since it was listed what would be forgotten; list it"
            " again"
        )
    if not gone:
        return frozenset()
    for doomed in chunks(gone):
        session.execute(delete(RecordRow).where(RecordRow.id.in_(doomed)))
    for record in sorted(gone):
        tail.add("erase", record, {})
    for heir, old in heirs:
        while old in gone:
            old = gone[old]
        _set(session, heir, supersedes=old)
        touched.add(heir)
    for old in left:
        _set(session, old, superseded_at=_end(session, old))
    for record in sorted(touched | left):
        tail.add("revise", record, {})
    tail.flush()
    _close_sessions(session, places)
    return frozenset(RecordId(record) for record in gone)


class _Sealed(NamedTuple):
    record: Record
    salt: str
    commitment: str


def _unknown(session: Session, records: Sequence[Record]) -> list[_Sealed]:
    """The records whose ids are new, each once; a known id must come with the known content."""
    seals: dict[str, tuple[str, str]] = {}
    for ids in chunks(record.id for record in records):
        query = select(RecordRow.id, RecordRow.salt, RecordRow.commitment)
        for known, salt, seal in session.execute(query.where(RecordRow.id.in_(ids))):
            seals[known] = (salt, seal)
    fresh = []
    for record in records:
        if record.id not in seals:
            salt = secrets.token_hex(16)
            seals[record.id] = (salt, commitment(salt, record))
            fresh.append(_Sealed(record, *seals[record.id]))
            continue
        salt, seal = seals[record.id]
        if commitment(salt, record) != seal:
            raise LedgerError(
                f"record {record.id} is in the ledger with another content, and records do not"
                " change; append a new one that supersedes it"
            )
    return fresh


def _check_references(session: Session, fresh: Sequence[Record]) -> None:
    """Parents and superseded records must be of the same tenant, user and agent, and come first.
    A message may be said again in several branches; any other word on a record is the last, and
    what is trusted less has none on it."""
    homes, heirs, trust, edits = _known_references(session, fresh)
    for record in fresh:
        family = _family(record.scope)
        for role, referred in (
            *(("parent", parent) for parent in record.parents),
            *([("superseded record", record.supersedes)] if record.supersedes else []),
        ):
            if homes.get(referred) != family:
                raise RecordNotFound(
                    f"record {record.id}: its {role} {referred} is not in the ledger for the same"
                    " tenant, user and agent; append that one first"
                )
        if record.kind != "message" and record.supersedes in heirs:
            raise LedgerError(
                f"record {record.id}: {record.supersedes} is already superseded by"
                f" {heirs[record.supersedes]}; supersede that one"
            )
        if record.supersedes and (record.kind == "edit") != (record.supersedes in edits):
            raise InputError(
                f"supersedes={record.supersedes} and record {record.id}: one is an order to change"
                " the weights, and the other is no edit; undo the order, or edit again"
            )
        if record.supersedes and _standing(record) < trust[record.supersedes]:
            raise InputError(
                f"supersedes={record.supersedes} is of trust {trust[record.supersedes]} and record"
                f" {record.id}, from source={record.source!r}, of {_standing(record)}; what is"
                " trusted less supersedes nothing: append it by itself, or let the user correct"
            )
        homes[record.id], trust[record.id] = family, record.trust or 0.0
        if record.kind == "edit":
            edits.add(record.id)
        if record.supersedes and record.kind != "message":
            heirs[record.supersedes] = record.id


def _known_references(
    session: Session, fresh: Sequence[Record]
) -> tuple[dict[str, Family], dict[str, str], dict[str, float], set[str]]:
    """Of all ids that `fresh` refers to: whose each is, what other than a message supersedes it,
    how far it is trusted, and which are orders to change the model."""
    referred = {parent for record in fresh for parent in record.parents}
    superseded = {record.supersedes for record in fresh if record.supersedes}
    homes: dict[str, Family] = {}
    heirs: dict[str, str] = {}
    trusts: dict[str, float] = {}
    edits: set[str] = set()
    for part in chunks(referred | superseded):
        place = (RecordRow.tenant, RecordRow.user, RecordRow.agent)
        query = select(RecordRow.id, RecordRow.trust, RecordRow.kind, *place)
        for id_, trust, kind, *family in session.execute(query.where(RecordRow.id.in_(part))):
            homes[id_], trusts[id_] = (family[0], family[1], family[2]), trust
            if kind in ("edit", "request", "material"):
                edits.add(id_)
    for part in chunks(superseded):
        taken = select(RecordRow.supersedes, RecordRow.id).where(RecordRow.supersedes.in_(part))
        taken = taken.where(RecordRow.kind != "message")
        heirs |= {old: heir for old, heir in session.execute(taken) if old}
    return homes, heirs, trusts, edits


def _standing(record: Record) -> float:
    """How far its source is trusted, if the record is trusted at all: a reply that went by a
    document may take the place of one that did not."""
    return max(record.trust, TRUST[record.source]) if record.trust else 0.0


def _open_sessions(session: Session, fresh: Sequence[Record]) -> None:
    wanted = {
        (*_family(record.scope), record.scope.session): record.created
        for record in reversed(fresh)
        if record.scope.session is not None
    }
    for place, created in wanted.items():
        if session.get(SessionRow, place) is None:
            names = dict(zip(("tenant", "user", "agent", "session"), place, strict=True))
            session.execute(insert(SessionRow).values(**names, created=created))


def _close_sessions(session: Session, places: Iterable[Place]) -> None:
    """Remove conversations that show nothing any more: no record of their own or of what they were
    forked from is left, and no fork reads on from them. One that only a fork keeps loses its title.
    """
    unread = list(places)
    while unread:
        place = unread.pop()
        row = session.get(SessionRow, place)
        if row is None or _speaks(session, row):
            continue
        family = (SessionRow.tenant, SessionRow.user, SessionRow.agent, SessionRow.forked_from)
        forks = list(session.scalars(select(SessionRow).where(tuple_(*family) == place)))
        row.title = None
        unread += [(*place[:3], fork.session) for fork in forks]
        origin = row
        while origin.forked_from is not None and not _speaks(session, origin):
            origin = session.get_one(SessionRow, (*place[:3], origin.forked_from))
        if not forks and not _speaks(session, origin):
            session.delete(row)
            session.flush()
            unread.append((*place[:3], row.forked_from))


def _speaks(session: Session, row: SessionRow) -> bool:
    """Whether a conversation has a record of its own."""
    own = Scope(row.tenant, row.user, row.agent, row.session)
    return session.scalar(visible(select(RecordRow.id), own).limit(1)) is not None


def _heirs(session: Session, gone: Collection[str]) -> list[tuple[str, str | None]]:
    """What stays and supersedes what goes: (id, superseded id)."""
    found: list[tuple[str, str | None]] = []
    for part in chunks(gone):
        query = select(RecordRow.id, RecordRow.supersedes).where(RecordRow.supersedes.in_(part))
        found += [(heir, old) for heir, old in session.execute(query) if heir not in gone]
    return found


def _end(session: Session, old: str) -> datetime | None:
    """When the newest of what supersedes a record ended it; None if nothing does."""
    query = select(RecordRow.valid_from).where(RecordRow.supersedes == old)
    return session.scalar(query.order_by(RecordRow.seq.desc()).limit(1))


def _orphans(session: Session, gone: Collection[str]) -> set[str]:
    """What stays and was made from what goes."""
    found: set[str] = set()
    for part in chunks(gone):
        query = select(ParentRow.record).where(ParentRow.parent.in_(part))
        found.update(session.scalars(query))
    return found - set(gone)


def _set(session: Session, record: str, **values: Any) -> None:
    statement = update(RecordRow).where(RecordRow.id == record).values(**values)
    session.execute(statement, execution_options={"synchronize_session": False})


def _row(record: Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in COPIED} | asdict(record.scope)


def _family(scope: Scope) -> Family:
    return (scope.tenant, scope.user, scope.agent)


def _plain(record: Record) -> Record:
    """`record` as it will be read back: `meta` in JSON's types, and times that say their zone."""
    for name in ("created", "valid_from", "valid_to"):
        value = getattr(record, name)
        if value is not None and value.tzinfo is None:
            raise InputError(f"{name}={value} has no time zone; give it one, UTC for choice")
    meta = json.loads(canonical(dict(record.meta), "meta"))
    return replace(record, meta=meta, parents=tuple(dict.fromkeys(record.parents)))
