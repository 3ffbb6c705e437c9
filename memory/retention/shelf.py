"""Live caches of sessions: the last used in memory, the others in files.

All of it is derived from a transcript and may be lost at any time. Whoever has a file has the text
that was read, so what was forgotten takes its caches with it. Knows nothing of turns or ledgers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import struct
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import PalimpsestError, StoreError
from ..record import RecordId, Scope
from .base import RetentionPolicy, settings
from .files import restore, save
from .storage import StorageFormat

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .cache import RetentionCache

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mark:
    """The first `rows` of a cache's rows are all that held of its session up to place `seq`, unless
    the transcript was revised since."""

    revision: int = 0
    rows: int = 0
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """A cache, and what went into it.

    Args:
        cache: never written to; whoever goes on forks it.
        rows: rows of the transcript that it stands for.
        touched: all records whose text it may hold.
        unread: ids to be read before anything else.
        mark: how far `rows` are known to stand; None: not at all.
    """

    cache: RetentionCache
    rows: tuple[RecordId, ...]
    touched: frozenset[RecordId]
    unread: tuple[int, ...] = ()
    mark: Mark | None = None


@dataclass(slots=True)
class _Place:
    """What is known of one session: its cache, the one before the last turn, and the one that a
    turn left whose reply is not in the ledger yet, with that turn's message."""

    scope: Scope
    live: Kept | None = None
    before: Kept | None = None
    offered: tuple[RecordId, Kept] | None = None

    def all(self) -> list[Kept]:
        """Those that a turn can go on from, the newest first."""
        return [kept for kept in (self.live, self.before) if kept is not None]


class Shelf:
    """Caches by session.

    Args:
        folder: where those go that are not in memory; None: nowhere.
        limit: sessions in memory.

    Attributes:
        version: changes whenever something was dropped: what was built before is not to be kept.
    """

    def __init__(
        self, folder: Path | None, policy: RetentionPolicy, form: StorageFormat, limit: int
    ) -> None:
        self._folder, self._limit = folder, limit
        self._policy, self._form = policy, form
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self.version = 0

    def find(self, scope: Scope, model: PreTrainedModel | None) -> list[Kept]:
        """The session's caches, the newest first; from a file if none is in memory."""
        key = key_of(scope)
        if key in self._places:
            self._places.move_to_end(key)
            return self._places[key].all()
        kept = self._restored(key, model) if model is not None else None
        if kept is None:
            return []
        assert model is not None
        self._place(scope, model).live = kept
        return [kept]

    def offer(self, scope: Scope, message: RecordId, kept: Kept, model: PreTrainedModel) -> None:
        """What a turn left; it becomes the session's cache with `commit`."""
        self._place(scope, model).offered = (message, kept)

    def withdraw(self, scope: Scope) -> None:
        """Whatever was offered is not to be kept."""
        if place := self._places.get(key_of(scope)):
            place.offered = None

    def commit(
        self, scope: Scope, message: RecordId, reply: RecordId, made: Collection[str]
    ) -> None:
        """The turn is in the ledger: what it left is now the session's cache.

        Args:
            made: what the reply was made from.
        """
        place = self._places.get(key_of(scope))
        if place is None or place.offered is None or place.offered[0] != message:
            return
        kept = place.offered[1]
        touched = kept.touched | {message, reply} | {RecordId(id) for id in made}
        again = place.live is not None and message in place.live.rows[-2:]
        if not again:  # else the cache before the first answer is still the one before the turn
            place.before = place.live
        place.offered = None
        place.live = replace(kept, rows=(*kept.rows, message, reply), touched=touched)

    def put(self, scope: Scope, kept: Kept, model: PreTrainedModel) -> None:
        """The session's cache from now on."""
        place = self._place(scope, model)
        place.live, place.before, place.offered = kept, None, None

    def drop(self, ids: Collection[RecordId]) -> dict[str, Scope]:
        """Whatever holds text of these records, in memory and in files; returns whose it was."""
        self.version += 1
        gone: dict[str, Scope] = {}
        for key, place in list(self._places.items()):
            offered = [place.offered[1]] if place.offered else []
            place.offered = None  # whose notes it has read is known with `commit` only
            if any(not kept.touched.isdisjoint(ids) for kept in [*place.all(), *offered]):
                del self._places[key]
                gone[key] = place.scope
        for key, note in self._notes():
            if key in gone or not set(note["touched"]).isdisjoint(ids):
                self._remove(key)
                gone[key] = Scope(*note["scope"])
        self._remove_half_written()
        return gone

    def clear(self) -> None:
        """Hold nothing."""
        self.version += 1
        self._places.clear()
        for key in {path.name.partition(".")[0] for path in self._files("*")}:
            self._remove(key)

    def sweep(self, held: Collection[RecordId]) -> None:
        """Remove what a crash has left half done, and what stands for records that are gone."""
        for key, note in self._notes():
            if not set(note["rows"]) <= set(held):
                self._remove(key)
        self._remove_half_written()

    def _remove_half_written(self) -> None:
        """Files without a note: nobody knows whose text they hold."""
        whole = {key for key, _ in self._notes()}
        for path in self._files("*"):
            if path.name.partition(".")[0] not in whole or path.suffix == ".new":
                path.unlink(missing_ok=True)

    def spill(self, model: PreTrainedModel) -> None:
        """Write what is in memory to files, and keep nothing in memory."""
        for place in self._places.values():
            if place.live is not None:
                self._write(place.scope, place.live, model)
        self._places.clear()

    def marks(self, ids: Collection[RecordId] | None) -> Iterator[bytes]:
        """The token ids in every file that holds text of these records, or of any."""
        for key, note in self._notes():
            if ids is None or not set(note["touched"]).isdisjoint(ids):
                yield _ids_in(self._path(key))

    def _place(self, scope: Scope, model: PreTrainedModel) -> _Place:
        """The session's, made the last used; whoever has not been used for longest gives way."""
        place = self._places.setdefault(key_of(scope), _Place(scope))
        self._places.move_to_end(key_of(scope))
        while len(self._places) > self._limit:
            _, leaving = self._places.popitem(last=False)
            if leaving.live is not None:
                self._write(leaving.scope, leaving.live, model)
        return place

    def _write(self, scope: Scope, kept: Kept, model: PreTrainedModel) -> None:
        """The note last: a cache without one was not written whole. It can always be read again,
        so a full disk is only told of."""
        if self._folder is None:
            return
        key, owner = key_of(scope), astuple(scope)
        note = {"scope": owner, "policy": self._spec, "rows": kept.rows}
        try:
            self._remove(key)
            self._folder.mkdir(parents=True, exist_ok=True)
            save(kept.cache, self._path(key), model)
            text = json.dumps(note | {"touched": sorted(kept.touched), "unread": kept.unread})
            self._path(key, ".json").write_text(text, encoding="utf-8")
        except (OSError, StoreError) as error:
            self._remove(key)
            log.warning("the cache of a session is not kept: %s", error)

    def _restored(self, key: str, model: PreTrainedModel) -> Kept | None:
        """None too where another policy or another model wrote it: it is then read anew."""
        note = self._note(key)
        if note is None or note["policy"] != self._spec:
            return None
        try:
            cache = restore(self._path(key), model)
        except PalimpsestError as error:
            log.warning("%s", error)
            return None
        rows, touched = map(RecordId, note["rows"]), map(RecordId, note["touched"])
        return Kept(cache, tuple(rows), frozenset(touched), tuple(note["unread"]))

    @property
    def _spec(self) -> dict[str, Any]:
        parts: dict[str, RetentionPolicy | StorageFormat] = {
            "policy": self._policy,
            "format": self._form,
        }
        return {kind: {"name": part.name, **settings(part)} for kind, part in parts.items()}

    def _notes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What lies in files, by key."""
        for path in self._files("*.json"):
            if (note := self._note(path.stem)) is not None:
                yield path.stem, note

    def _note(self, key: str) -> dict[str, Any] | None:
        """What a session's file says of itself; None if there is none, or no whole one."""
        if self._folder is None or not self._path(key).exists():
            return None
        try:
            note: dict[str, Any] = json.loads(self._path(key, ".json").read_text(encoding="utf-8"))
            return note if note["rows"] is not None else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _files(self, pattern: str) -> list[Path]:
        return sorted(self._folder.glob(pattern)) if self._folder is not None else []

    def _path(self, key: str, suffix: str = ".safetensors") -> Path:
        assert self._folder is not None
        return self._folder / f"{key}{suffix}"

    def _remove(self, key: str) -> None:
        for path in self._files(f"{key}.*"):
            path.unlink(missing_ok=True)


def key_of(scope: Scope) -> str:
    """What a session's files are called: says nothing of its name."""
    return hashlib.sha256(json.dumps(astuple(scope)).encode()).hexdigest()[:32]


def _ids_in(path: Path) -> bytes:
    """The bytes of a file's table of token ids (safetensors: the length of a JSON header in eight
    bytes, that header, then the tables)."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        start, end = json.loads(file.read(length))["tokens.id"]["data_offsets"]
        file.seek(8 + length + start)
        return file.read(end - start)
