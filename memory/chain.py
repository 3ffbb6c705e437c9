"""The hash chain of events: what happened to the ledger, in order, and that nobody rewrote it.

An event's hash covers its content and the hash before it, so no event can be changed, dropped or
moved unseen. Events hold ids, never texts: an append commits to the record's content by
SHA-256(salt + content), and the salt lives in the record's row. Once the row is erased, the
commitment can be checked by nobody, not even by trying every likely text.

Knows nothing of scopes or of what an event means to a store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from ..errors import ChainBroken, InputError, RecordNotFound
from .record import Record, RecordId, now
from .schema import EventRow, HeadRow, RecordRow

GENESIS = "0" * 64
BATCH = 500
"""Rows per statement: far below either database's limit of parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened.

    Args:
        kind: `append`, `supersede` (a newer record ended this one), `revise` (an erasure changed
            what this record supersedes, is superseded by, or was made from), `erase`, `fork`.
        subject: the record's id; for `fork`, the last record the fork reads, or "" for none.
        payload: plain JSON, without texts.
        prev, hash: SHA-256 of the event before and of this one, hex.
    """

    seq: int
    at: datetime
    kind: str
    subject: str
    payload: Mapping[str, Any]
    prev: str
    hash: str

    @classmethod
    def of(cls, row: EventRow) -> Event:
        """The event in a row."""
        return cls(
            seq=row.seq,
            at=row.at,
            kind=row.kind,
            subject=row.subject,
            payload=row.payload,
            prev=row.prev,
            hash=row.hash,
        )

    def expected_hash(self) -> str:
        """What `hash` must be."""
        return _link(self.seq, self.at, self.kind, self.subject, self.payload, self.prev)


class Tail:
    """The end of the chain, locked for the rest of the transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session
        head = session.execute(select(HeadRow.seq, HeadRow.hash).with_for_update()).one()
        self._seq: int = head.seq
        self._hash: str = head.hash
        self._at = now()
        self._rows: list[dict[str, Any]] = []

    def add(self, kind: str, subject: str, payload: Mapping[str, Any]) -> int:
        """Chain an event on and return its position; `flush` writes it."""
        self._seq += 1
        prev = self._hash
        self._hash = _link(self._seq, self._at, kind, subject, payload, prev)
        self._rows.append(
            {
                "seq": self._seq,
                "at": self._at,
                "kind": kind,
                "subject": subject,
                "payload": dict(payload),
                "prev": prev,
                "hash": self._hash,
            }
        )
        return self._seq

    def flush(self) -> None:
        """Write what was added, and move the head."""
        self._session.execute(insert(EventRow), self._rows)
        self._session.execute(update(HeadRow).values(seq=self._seq, hash=self._hash))
        self._rows = []


def canonical(value: Any, what: str) -> str:
    """JSON with sorted keys and nothing optional: equal values have equal texts.

    Raises:
        InputError: `what` is not plain JSON.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} must be plain JSON values: {error}") from None


def commitment(salt: str, record: Record) -> str:
    """SHA-256 over the salt and all that never changes in a record, hex.

    What may change, or end, is not in it: `valid_to`, `supersedes` and `parents`, which the
    event of the append states openly.
    """
    scope = record.scope
    content = [
        [scope.tenant, scope.user, scope.agent, scope.session],
        [record.kind, record.role, record.source],
        record.text,
        [stamp(record.created), stamp(record.valid_from)],
        record.trust,
        record.meta,
    ]
    return hashlib.sha256((salt + canonical(content, "meta")).encode()).hexdigest()


def events(session: Session, after: int, limit: int | None) -> list[Event]:
    """At most `limit` events after position `after`, in order."""
    query = select(EventRow).where(EventRow.seq > after).order_by(EventRow.seq).limit(limit)
    return [Event.of(row) for row in session.scalars(query)]


def position(session: Session, record: RecordId) -> int:
    """Where a record was appended, also of one that was erased since.

    Raises:
        RecordNotFound: it never was.
    """
    query = select(EventRow.seq).where(EventRow.subject == record, EventRow.kind == "append")
    seq = session.scalar(query.order_by(EventRow.seq.desc()).limit(1))
    if seq is None:
        raise RecordNotFound(f"record {record} was never in this ledger")
    return seq


def verify(session: Session) -> None:
    """Check every link, the head, and the content of every record that is still there.

    Raises:
        ChainBroken: names the first bad event.
    """
    seq, last, missing, records = 0, GENESIS, dict[str, int](), 0
    for batch in _batches(session):
        for event in batch:
            seq += 1
            if event.seq != seq or event.prev != last or event.hash != event.expected_hash():
                raise ChainBroken(f"event {seq} was changed, moved or removed; restore a backup")
            last = event.hash
        records += _check_contents(session, batch, missing)
    head = session.execute(select(HeadRow.seq, HeadRow.hash)).one()
    if (head.seq, head.hash) != (seq, last):
        raise ChainBroken(f"event {seq + 1} was removed from the end; restore a backup")
    if missing:
        record, first = min(missing.items(), key=lambda pair: pair[1])
        raise ChainBroken(f"event {first} appended record {record}, which was removed unseen")
    if records != session.scalar(select(func.count()).select_from(RecordRow)):
        raise ChainBroken(f"after event {seq}: there are records that no event appended")


def _check_contents(session: Session, batch: Sequence[Event], missing: dict[str, int]) -> int:
    """Compare the records that `batch` appended with their commitments. `missing` collects those
    without a row, until their erasure comes by: one that was erased may have been appended again.
    Returns how many rows there are."""
    ids = {event.subject for event in batch if event.kind == "append"}
    rows = {row.id: row for row in session.scalars(select(RecordRow).where(RecordRow.id.in_(ids)))}
    found = 0
    for event in batch:
        row = rows.get(event.subject)
        if event.kind == "erase":
            missing.pop(event.subject, None)
        elif event.kind != "append":
            continue
        elif row is None or row.seq > event.seq:
            missing[event.subject] = event.seq
        else:
            found += 1
            states = (row.seq, row.commitment, stamp(row.valid_to))
            stated = (event.seq, event.payload["content"], event.payload["valid_to"])
            if states != stated or commitment(row.salt, row.to_record()) != row.commitment:
                raise ChainBroken(f"event {event.seq}: the content of record {row.id} was changed")
    session.expunge_all()
    return found


def _batches(session: Session) -> Iterator[list[Event]]:
    after = -1
    while batch := events(session, after, BATCH):
        yield batch
        after = batch[-1].seq


def _link(
    seq: int, at: datetime, kind: str, subject: str, payload: Mapping[str, Any], prev: str
) -> str:
    content = [seq, stamp(at), kind, subject, dict(payload), prev]
    return hashlib.sha256(canonical(content, "payload").encode()).hexdigest()


def stamp(value: datetime | None) -> str | None:
    """A time as it stands in events: ISO 8601 in UTC."""
    return None if value is None else value.astimezone(UTC).isoformat()
