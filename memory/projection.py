"""How a store follows the ledger: its contents are a fold over the events, and can be made anew.

A record without any trust is given to no store: quarantine is kept here, for every store at once.

Knows a store only by its contract. A crash at any point is mended by following again: the store's
cursor moves after the store has written, so events are repeated and never missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from .base import Artefact, Memory
from .ledger import Ledger
from .record import Record, RecordId

BATCH = 256
"""Events per transaction: what a crash repeats, and the records held in memory at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A store compared with the ledger.

    Args:
        missing: records the lineage says it holds something of, and it does not.
        surplus: records it holds something of that the lineage knows nothing of.
        behind: events it has not followed yet.
    """

    store: str
    missing: frozenset[RecordId]
    surplus: frozenset[RecordId]
    behind: int

    @property
    def agrees(self) -> bool:
        """Whether there is nothing to repair."""
        return not (self.missing or self.surplus or self.behind)


def catch_up(ledger: Ledger, store: Memory, batch: int = BATCH) -> int:
    """Bring a store up to date; returns how many events it followed."""
    followed = 0
    cursor = ledger.cursor(store.name)
    while changes := ledger.changes(cursor, batch):
        edges: dict[RecordId, list[Artefact]] = {}
        for erasing, run in groupby(changes, key=lambda change: change[0].kind == "erase"):
            if erasing:
                store.forget([RecordId(event.subject) for event, _ in run])
            else:
                edges |= _write(store, list(_given(store, [record for _, record in run])))
        cursor = changes[-1][0].seq
        held = [edge for of_record in edges.values() for edge in of_record]
        ledger.advance(store.name, cursor, edges.keys(), held)
        followed += len(changes)
    return followed


def attend(ledger: Ledger, store: Memory) -> int:
    """Bring a store that was just opened up to date; returns how many events it followed. One that
    has lost all it held, because its files are gone, is made anew: its cursor says that it has
    followed, and nobody would ever send it the past again."""
    if ledger.held_any(store.name) and store.empty():
        return rebuild(ledger, store)
    return catch_up(ledger, store)


def check(ledger: Ledger, store: Memory) -> Report:
    """Compare what a store holds with what the ledger says it holds. Changes nothing."""
    held, noted = store.held(), ledger.held(store.name)
    return Report(
        store=store.name,
        missing=noted - held,
        surplus=held - noted,
        behind=ledger.last_seq() - ledger.cursor(store.name),
    )


def repair(ledger: Ledger, store: Memory) -> Report:
    """Bring a store up to date and, if it disagrees with the ledger even so, make it anew. Returns
    what was found before anything was mended."""
    found = check(ledger, store)
    attend(ledger, store)
    if not check(ledger, store).agrees:
        rebuild(ledger, store)
    return found


def rebuild(ledger: Ledger, store: Memory) -> int:
    """Make a store anew from the ledger alone; returns how many events it followed."""
    ledger.reset(store.name)
    store.clear()
    return catch_up(ledger, store)


def _given(store: Memory, records: Iterable[Record | None]) -> Iterator[Record]:
    """Those that are there, trusted at all, and of a kind that the store is for."""
    for record in records:
        if record and record.trust and record.kind in store.capabilities.kinds:
            yield record


def _write(store: Memory, records: list[Record]) -> dict[RecordId, list[Artefact]]:
    """Send each record once, in ledger order; returns what the store now holds of each."""
    once = {record.id: record for record in records}
    edges: dict[RecordId, list[Artefact]] = {id: [] for id in once}
    if once:
        for edge in store.write(list(once.values())):
            edges.setdefault(edge.record, []).append(edge)
    return edges
