"""Files into the ledger: documents as passages, other systems' memories as facts.

A record's id follows from what it is, so that a file that was ingested is known when it comes
again, and one that was cut short goes on where it ended. Knows formats by their registry only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any, get_args

from ulid import ULID

from ..errors import ConfigError, InputError, LedgerError, StoreError
from ..memory.chain import canonical
from ..memory.formats.base import Document, Memo, Parsed
from ..memory.formats.passages import passages
from ..memory.formats.registry import parser, require, why_not
from ..memory.ledger import Ledger
from ..memory.reading import Progress
from ..memory.record import (
    Record,
    RecordId,
    Scope,
    Source,
    content_hash,
    next_id,
    now,
    vouched,
)
from ..memory.screening import admitted
from .documents import shelf_of
from .receipt import FileCount, Ingested, Unread

Keep = Callable[[list[Record]], None]

BATCH = 256
"""Records in a transaction."""

LARGEST = 256 * 1024 * 1024
"""Bytes of a file that is read."""

_PARTS = "\f"
"""Between the parts of a document, where its content names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingester:
    """Takes files in.

    Args:
        keep: appends records durably and brings the stores up to date; None to see only what it
            would be given.
        scope: of all records; with a session, they all go into that one.
        source: whom the files speak for, which is what they are trusted as.
        again: take in what was forgotten here, too.
    """

    ledger: Ledger
    keep: Keep | None
    scope: Scope
    source: Source = "document"
    again: bool = False
    progress: Progress | None = None
    cancel: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise ConfigError(f"source={self.source!r} must be one of {get_args(Source)}")

    def run(self, path: Path) -> Ingested:
        """Take in a file, or every file of a folder that is of a known kind, in order of name.

        Raises:
            InputError: the file cannot be read; or there is no file at all. In a folder, one that
                cannot be read is listed, and the others go on.
        """
        path = path.expanduser()
        if not path.exists():
            raise InputError(f"cannot read {str(path)!r}: No such file or folder")
        alone = not path.is_dir()
        if alone:
            require(path.name)
        found = [(path.name, path)] if alone else [*_walk(path, path)]
        if not found:
            raise InputError(f"folder {str(path)!r} has no files; name one that has")
        skipped = [Unread(name=name, why=why) for name, each in found if (why := _unfit(each))]
        files = [(name, each) for name, each in found if not _unfit(each)]
        total = sum(_size(file) for _, file in files)
        batch = _Batch(self)
        failed, done = [], 0
        for name, file in files:
            size = _size(file)
            try:
                self._take(name, file, batch, done, total)
            except InputError as error:
                if alone:
                    raise
                failed.append(Unread(name=name, why=str(error)))
            if self.cancel.is_set():
                break
            done += size
            self._tell(done, total)
        batch.flush()
        counts = [each for each in batch.counts.values() if any(astuple(each)[1:])]
        cut = self.cancel.is_set()
        return Ingested(files=counts, skipped=skipped, failed=failed, cancelled=cut)

    def _take(self, name: str, file: Path, batch: _Batch, done: int, total: int) -> None:
        """One file, all of which is read before any of it is kept."""
        records = list(self._records(name, _parsed(name, file)))
        if not records:
            raise InputError(f"{name!r} has no text")
        size = _size(file)
        for number, record in enumerate(records):
            if self.cancel.is_set():
                return
            batch.add(name, record)
            self._tell(done + size * number // len(records), total)

    def _records(self, name: str, parsed: Sequence[Parsed]) -> Iterator[Record]:
        texts = _PARTS.join(part.text for part in parsed if isinstance(part, Document))
        shelf = self.scope if self.scope.session else shelf_of(texts, self.scope, "document")
        began, count = now(), 0
        for part in parsed:
            if isinstance(part, Memo):
                yield self._fact(name, part, began)
                continue
            for passage in passages(part.text):
                place = {**part.meta, "start": passage.start, "end": passage.end}
                yield Record(
                    id=derived_id(shelf, passage.text, place, None),
                    text=passage.text,
                    scope=shelf,
                    kind="document",
                    source=self.source,
                    # in the order of the text, which neighbours are told by
                    created=began + timedelta(microseconds=count),
                    meta={"title": part.title, "name": name, **place},
                )
                count += 1

    def _fact(self, name: str, memo: Memo, began: datetime) -> Record:
        scope = self.scope if self.scope.session else replace(self.scope, session=memo.session)
        return Record(
            id=derived_id(scope, memo.text, memo.place, memo.created),
            text=memo.text,
            scope=scope,
            kind="fact",
            source=self.source,
            created=memo.created or began,
            meta={**memo.meta, "name": name},
        )

    def _tell(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)


class _Batch:
    """Records on their way into the ledger, from whichever files."""

    def __init__(self, ingester: Ingester) -> None:
        self._ingester = ingester
        self._held: dict[RecordId, tuple[str, Record]] = {}
        self._kept = 0
        self.counts: dict[str, FileCount] = {}

    def add(self, name: str, record: Record) -> None:
        """Take one in, and send them off when there are enough."""
        count = self.counts.setdefault(name, FileCount(name=name))
        if record.id in self._held:
            count.known += 1
            return
        self._held[record.id] = (name, record)
        if len(self._held) == BATCH:
            self.flush()

    def flush(self) -> None:
        """Send off what there is."""
        family = replace(self._ingester.scope, session=None)
        last = self._last(family)
        fresh: list[Record] = []
        for id, (name, record) in self._held.items():
            count, given, held = self.counts[name], admitted(record), last.get(id)
            if isinstance(held, Record):
                if held.current and _less(held, given):
                    fresh.append(vouched(held, given.source))
                    count.vouched += 1
                else:
                    count.known += 1
            elif held is not None and not self._ingester.again:
                count.forgotten += 1
            else:
                fresh.append(given if held is None else replace(given, id=next_id(held)))
                count.added += 1
                count.quarantined += not given.trust
        if fresh and self._ingester.keep is not None:
            self._keep(self._ingester.keep, fresh, family)
        self._held = {}

    def _keep(self, keep: Keep, fresh: list[Record], family: Scope) -> None:
        """An error says how far this has come: the lots before it are kept, and so is this one if
        only a store failed."""
        try:
            keep(fresh)
        except (LedgerError, StoreError) as error:
            ids = [record.id for record in fresh]
            kept = self._kept + len(self._ingester.ledger.find(ids, family))
            raise type(error)(
                f"{error}; {kept:,} of the records are in the ledger and stay there: ingest the"
                " same again, and it goes on from there"
            ) from error
        self._kept += len(fresh)

    def _last(self, family: Scope) -> dict[RecordId, Record | RecordId]:
        """Of each id that the ledger knows, what was last taken in under it or an id that follows
        from it: the record, or its id if it is forgotten."""
        ledger = self._ingester.ledger
        found: dict[RecordId, Record | RecordId] = {}
        origin = {id: id for id in self._held}
        while origin:
            known: dict[RecordId, Record | RecordId] = {}
            known |= {RecordId(id): RecordId(id) for id in ledger.erasures.forgotten(origin)}
            known |= {record.id: record for record in ledger.find(origin, family)}
            found |= {origin[id]: held for id, held in known.items()}
            origin = {next_id(id): origin[id] for id in known}
        return found


def _less(held: Record, given: Record) -> bool:
    """Whether it is trusted less."""
    return (held.trust or 0.0) < (given.trust or 0.0)


def derived_id(scope: Scope, text: str, place: Any, time: datetime | None) -> RecordId:
    """A ULID that says which text, where, and whose: 80 bits of a SHA-256 behind the time that the
    text has of itself, or behind zeros if it has none."""
    owner = [scope.tenant, scope.user, scope.agent, scope.session]
    content = canonical([owner, content_hash(text), place], "a place")
    since = int(time.timestamp() * 1000) if time else 0
    stamp = min(max(since, 0), (1 << 48) - 1).to_bytes(6)
    return RecordId(str(ULID(stamp + hashlib.sha256(content.encode()).digest()[:10])))


def _parsed(name: str, file: Path) -> list[Parsed]:
    try:
        size = file.stat().st_size
        if size > LARGEST:
            raise InputError(f"{name!r} has {size:,} bytes and {LARGEST:,} are read; cut it up")
        return list(require(name)(file.read_bytes(), name))
    except OSError as error:
        raise InputError(f"cannot read {name!r}: {error.strerror or error}") from None


def _walk(folder: Path, root: Path) -> Iterable[tuple[str, Path]]:
    """Every file below, by the name it has from the root on; hidden folders as one."""
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith(".")
        if path.is_dir() and not path.is_symlink() and not hidden:
            yield from _walk(path, root)
        else:
            yield path.relative_to(root).as_posix(), path


def _unfit(path: Path) -> str | None:
    """Why a file of a folder is not even tried."""
    if path.name.startswith("."):
        return "it is hidden"
    if path.is_symlink():
        return "it is a link, and may lead anywhere"
    return None if parser(path.name) else why_not(path.name)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0  # it cannot be read either, which is told when its turn comes
