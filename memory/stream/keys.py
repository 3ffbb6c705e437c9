"""The texts that an item is found by, each an entry of the index.

Knows nothing of the index itself, nor of what is found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Literal

from ..record import Record, RecordId
from ..search.base import Entry
from .items import Item

Keys = Literal["all", "paper", "raw"]

KEYS: dict[Keys, frozenset[str]] = {
    "all": frozenset({"message", "reply", "summary"}),
    "paper": frozenset({"raw", "summary"}),
    "raw": frozenset({"raw"}),
}
"""`message` and `reply` are the two sides of an exchange, `raw` is both as one text. One by one
they are found better: a long reply drowns a short statement, and each has a speaker of its own."""


PAST = "past-"
"""In front of a key that says what holds no longer."""


def entries(item: Item, keys: Keys) -> Iterator[Entry]:
    """The entries of an item."""
    texts: dict[str, tuple[str, Record]] = {
        "message": (item.head.text, item.head),
        "raw": (item.said, item.head),
    }
    if item.reply is not None:
        texts["reply"] = (item.reply.text, item.reply)
    if item.summary is not None:
        texts["summary"] = (item.summary.text, item.summary)
    for key in sorted(texts.keys() & KEYS[keys]):
        text, record = texts[key]
        speaker = {"speaker": str(record.meta["speaker"])} if "speaker" in record.meta else {}
        yield Entry(
            id=entry_id(item.id, key),
            text=text,
            scope=item.head.scope,
            created=record.valid_from or record.created,
            meta={
                "form": "summary" if key == "summary" else "turn",
                "kind": record.kind,
                "role": record.role,
                "source": record.source,
                **speaker,
            },
        )


def past_entries(item: Item, keys: Keys, gone: Collection[RecordId]) -> Iterator[Entry]:
    """The entries of an item that once was, of those of its records that hold no longer."""
    said = keys_saying(item, keys, gone)
    for entry in entries(item, keys):
        if (key := key_of(entry)) in said:
            yield replace(entry, id=entry_id(item.id, PAST + key), past=True)


def keys_saying(item: Item, keys: Keys, records: Collection[RecordId]) -> list[str]:
    """Which of an item's texts say something of any of the records."""
    said: dict[str, tuple[Record | None, ...]] = {
        "message": (item.head,),
        "raw": item.parts,
        "reply": (item.reply,),
        "summary": (item.summary,),
    }
    return [
        key
        for key in sorted(KEYS[keys])
        if any(record is not None and record.id in records for record in said[key])
    ]


def entry_id(item: RecordId, key: str) -> str:
    """The id of an item's entry, whether it has one or not."""
    return f"{item}:{key}"


def possible_ids(items: Iterable[RecordId]) -> list[str]:
    """The ids of all entries that items can have."""
    every = sorted(frozenset().union(*KEYS.values()))
    both = [*every, *(PAST + key for key in every)]
    return [entry_id(item, key) for item in items for key in both]


def item_of(entry: Entry) -> RecordId:
    """The id of the item that an entry is of."""
    return RecordId(entry.id.rpartition(":")[0])


def key_of(entry: Entry) -> str:
    """Which of the item's texts an entry is."""
    return entry.id.rpartition(":")[2].removeprefix(PAST)
