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

from sqlalchemy import delete, exists, insert, select, tuple_, update
from sqlalchemy.orm import Session, aliased

from ..errors import InputError, LedgerError, RecordNotFound
from .chain import BATCH, Tail, canonical, commitment, stamp
from .record import Record, RecordId, Scope
from .schema import ParentRow, RecordRow, SessionRow, visible

T = TypeVar("T")
Family = tuple[str, str, str]

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
        InputError: a time without a zone, or `meta` that is not JSON.
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


def erase(session: Session, ids: Collection[RecordId], scope: Scope) -> frozenset[RecordId]:
    """Remove the records that `scope` covers, and mend what referred to them; returns their ids.

    A chain of supersessions closes over the gap: with B superseding A and C superseding B, erasing
    B leaves C superseding A, and erasing B and C leaves A current again.
    """
    tail = Tail(session)
    gone: dict[str, str | None] = {}
    places = set[tuple[str | None, ...]]()
    place = (RecordRow.tenant, RecordRow.user, RecordRow.agent, RecordRow.session)
    for part in chunks(ids):
        query = select(RecordRow.id, RecordRow.supersedes, *place)
        for id, old, *where in session.execute(visible(query.where(RecordRow.id.in_(part)), scope)):
            gone[id] = old
            places.add(tuple(where))
    if not gone:
        return frozenset()
    heirs = _heirs(session, gone)
    touched = _orphans(session, gone)
    for doomed in chunks(gone):
        session.execute(delete(RecordRow).where(RecordRow.id.in_(doomed)))
    for record in sorted(gone):
        tail.add("erase", record, {})
    left = {old for old in gone.values() if old and old not in gone}
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
    A message may be said again in several branches; any other word on a record is the last."""
    homes, heirs = _known_references(session, fresh)
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
        homes[record.id] = family
        if record.supersedes and record.kind != "message":
            heirs[record.supersedes] = record.id


def _known_references(
    session: Session, fresh: Sequence[Record]
) -> tuple[dict[str, Family], dict[str, str]]:
    """Of all ids that `fresh` refers to: whose each is, and what other than a message supersedes
    it."""
    referred = {parent for record in fresh for parent in record.parents}
    superseded = {record.supersedes for record in fresh if record.supersedes}
    homes: dict[str, Family] = {}
    heirs: dict[str, str] = {}
    for part in chunks(referred | superseded):
        query = select(RecordRow.id, RecordRow.tenant, RecordRow.user, RecordRow.agent)
        for id_, *family in session.execute(query.where(RecordRow.id.in_(part))):
            homes[id_] = (family[0], family[1], family[2])
    for part in chunks(superseded):
        taken = select(RecordRow.supersedes, RecordRow.id).where(RecordRow.supersedes.in_(part))
        taken = taken.where(RecordRow.kind != "message")
        heirs |= {old: heir for old, heir in session.execute(taken) if old}
    return homes, heirs


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


def _close_sessions(session: Session, places: Iterable[tuple[str | None, ...]]) -> None:
    """Remove sessions that have nothing left, and that no fork comes from or goes to."""
    fork = aliased(SessionRow)
    scope = (SessionRow.tenant, SessionRow.user, SessionRow.agent)
    for place in places:
        session.execute(
            delete(SessionRow)
            .where(tuple_(*scope, SessionRow.session) == place, SessionRow.forked_from.is_(None))
            .where(
                ~exists().where(
                    RecordRow.tenant == SessionRow.tenant,
                    RecordRow.user == SessionRow.user,
                    RecordRow.agent == SessionRow.agent,
                    RecordRow.session == SessionRow.session,
                ),
                ~exists().where(
                    fork.tenant == SessionRow.tenant,
                    fork.user == SessionRow.user,
                    fork.agent == SessionRow.agent,
                    fork.forked_from == SessionRow.session,
                ),
            )
            .execution_options(synchronize_session=False)
        )


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
