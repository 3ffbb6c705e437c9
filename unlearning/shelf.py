"""What an unlearner keeps on disk: requests without their texts, the texts until they are dropped,
what was learnt, and how far a request that is being learnt has come.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save

from ..editors.changes import Changes, write_whole
from ..errors import InputError, StoreError
from ..memory.record import Record, RecordId, Scope
from .base import META, Request

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A request as it is held, with whose it is. Its texts lie elsewhere, if they are still there.

    Args:
        fingerprints: SHA-256 of each sample.
    """

    id: RecordId
    scope: Scope
    name: str
    reason: str
    fingerprints: tuple[str, ...]

    @property
    def owner(self) -> Scope:
        """Whom it is for: all sessions of its user and agent."""
        return self.scope.across_sessions()

    def check(self, request: Request) -> None:
        """That these are its texts.

        Raises:
            InputError: they are others.
        """
        if request.fingerprints != self.fingerprints:
            raise InputError(
                f"request {self.id} ({self.name!r}) was learnt from {len(self.fingerprints)} other"
                f" samples than the {len(request.samples)} given; give the same ones"
            )

    @classmethod
    def of(cls, record: Record) -> Held:
        """The request that a record is of.

        Raises:
            InputError: it is of none.
        """
        try:
            given = record.meta[META]
            return cls(
                id=record.id,
                scope=record.scope,
                name=given["name"],
                reason=given["reason"],
                fingerprints=tuple(given["samples"]),
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"record {record.id} is no request: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Material:
    """The texts of a request."""

    id: RecordId
    request: RecordId
    content: Request


class Shelf(Changes):
    """Files in a folder: `requests/ID.json`, `materials/ID.json`, `changes/KEY.*`, `begun/KEY.*`
    and `receipts/ID.json`. A key begins with the id of its request, so that whatever was learnt of
    it, also for another model, stays while it is held and goes with it."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        super().__init__(folder, read_only=read_only)
        self._requests = self.part("requests")
        self._materials = self.part("materials")
        self._begun = self.part("begun")
        self._receipts = self.part("receipts")

    def put(self, record: Record) -> Held:
        """Keep a request; durable when this returns."""
        held = Held.of(record)
        _write(self._requests / f"{held.id}.json", asdict(held))
        return held

    def put_material(self, record: Record) -> Material:
        """Keep the texts of a request; durable when this returns.

        Raises:
            InputError: it holds none, or hangs on none.
        """
        if not record.parents:
            raise InputError(f"record {record.id} hangs on no request")
        made = Material(record.id, record.parents[0], Request.of(record))
        _write(
            self._materials / f"{record.id}.json",
            {"request": made.request, "content": asdict(made.content)},
        )
        return made

    def drop(self, id: RecordId) -> None:
        """Keep a request, or the texts of one, no longer; what was learnt of it stays."""
        for folder in (self._requests, self._materials):
            (folder / f"{id}.json").unlink(missing_ok=True)

    def unlearn(self, id: RecordId) -> None:
        """Keep nothing that was learnt or noted of a request."""
        for folder in (self._changes, self._begun, self._receipts):
            for path in folder.glob(f"{id}*"):
                path.unlink(missing_ok=True)

    def requests(self) -> list[Held]:
        """All of them, by age.

        Raises:
            StoreError: a file is damaged.
        """
        return _every(
            self._requests,
            lambda id, given: Held(
                **given
                | {
                    "id": id,
                    "scope": Scope(**given["scope"]),
                    "fingerprints": tuple(given["fingerprints"]),
                }
            ),
        )

    def materials(self) -> list[Material]:
        """All texts that are not dropped.

        Raises:
            StoreError: a file is damaged.
        """
        return _every(
            self._materials,
            lambda id, given: Material(
                id, RecordId(given["request"]), Request.from_plain(given["content"])
            ),
        )

    def replace(self, path: Path) -> None:
        """Hold what `copy` wrote, and nothing else.

        Raises:
            StoreError: it is damaged or not there; nothing has changed.
        """
        saved = Shelf(path, read_only=True)
        saved.requests(), saved.materials()
        super().replace(path)

    def begin(self, key: str, passes: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep how far learning has come."""
        write_whole(
            self._begun / f"{key}.safetensors", save(dict(tensors), {"passes": str(passes)})
        )

    def begun(self, key: str) -> tuple[int, Mapping[str, Tensor]]:
        """How far learning has come; (0, {}) if it has not begun, or what there is is not whole."""
        try:
            content = (self._begun / f"{key}.safetensors").read_bytes()
            length = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + length])
            return int(header["__metadata__"]["passes"]), load(content)
        except (OSError, ValueError, KeyError, SafetensorError):
            return 0, {}

    def end(self, id: RecordId) -> None:
        """Keep no longer how far learning of a request has come."""
        for path in self._begun.glob(f"{id}*"):
            path.unlink(missing_ok=True)

    def certify(self, id: RecordId, receipt: Mapping[str, object]) -> None:
        """Keep a receipt, as plain JSON values."""
        _write(self._receipts / f"{id}.json", receipt)

    def receipt(self, id: RecordId) -> Mapping[str, object] | None:
        """The last receipt of a request; None if there is none that is whole."""
        try:
            kept: Mapping[str, object] = json.loads((self._receipts / f"{id}.json").read_text())
            return kept
        except (OSError, ValueError):
            return None

    def keep_only(self, ids: Collection[RecordId]) -> None:
        """Keep nothing that was learnt or noted but of these requests."""
        for folder in (self._changes, self._begun, self._receipts):
            for path in folder.iterdir():
                if path.stem.partition("-")[0] not in ids:
                    path.unlink(missing_ok=True)


def _write(path: Path, content: Mapping[str, object]) -> None:
    write_whole(path, json.dumps(content, ensure_ascii=False).encode())


def _every(folder: Path, made: Callable[[RecordId, Any], T]) -> list[T]:
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(made(RecordId(path.stem), json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(  # no words of the error's, which may be words of the text
                f"{path} cannot be read: {type(error).__name__}; `palimpsest doctor --fix` makes"
                " it anew from the ledger"
            ) from error
    return found
