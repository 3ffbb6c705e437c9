"""What an editor keeps on disk: its edits, and what was learnt of each.

A change lies under a key made of everything that it follows from: the model, the method, the edit
and those before it in its lane. So what is there is right, what is not there is to be learnt, and
undoing an edit is no longer asking for its key.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copytree, rmtree

from safetensors import SafetensorError
from safetensors.torch import load, save

from ..errors import StoreError
from ..memory.record import Record, RecordId, Scope
from .base import Change, Edit


@dataclass(frozen=True, slots=True)
class Held:
    """An edit as it is held, with whose it is."""

    id: RecordId
    scope: Scope
    edit: Edit
    supersedes: RecordId | None = None

    @property
    def owner(self) -> Scope:
        """Whom it answers: all sessions of its user and agent."""
        return self.scope.across_sessions()


class Shelf:
    """Files in a folder: `edits/ID.json`, `changes/KEY.safetensors` and `.json`."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self._edits, self._changes = folder / "edits", folder / "changes"
        self._model = folder / "model.sha256"
        if not read_only:
            for part in (self._edits, self._changes):
                part.mkdir(parents=True, exist_ok=True)
                for left in part.glob("*.new"):  # a crash while it was written; it may say what
                    left.unlink(missing_ok=True)  # is to be forgotten

    def put(self, record: Record) -> Held:
        """Keep an edit; durable when this returns."""
        held = Held(record.id, record.scope, Edit.of(record), record.supersedes)
        content = {
            "scope": asdict(held.scope),
            "edit": asdict(held.edit),
            "supersedes": held.supersedes,
        }
        _write(self._edits / f"{held.id}.json", json.dumps(content, ensure_ascii=False).encode())
        return held

    def drop(self, id: RecordId) -> None:
        """Keep an edit no longer."""
        (self._edits / f"{id}.json").unlink(missing_ok=True)

    def edits(self) -> list[Held]:
        """All edits, by age.

        Raises:
            StoreError: a file is damaged.
        """
        return [self._read(path) for path in sorted(self._edits.glob("*.json"))]

    def _read(self, path: Path) -> Held:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            given = content["edit"]
            edit = Edit(
                prompt=given["prompt"],
                target=given["target"],
                subject=given["subject"],
                paraphrases=tuple(given["paraphrases"]),
                locality=tuple((prompt, answer) for prompt, answer in given["locality"]),
            )
            scope = Scope(**content["scope"])
            return Held(RecordId(path.stem), scope, edit, content["supersedes"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"edit {path} cannot be read: {error!r}; `palimpsest doctor --fix` makes it anew"
                " from the ledger"
            ) from error

    def keep(self, key: str, change: Change) -> None:
        """Keep a change under its key: the tensors first, so that one with numbers is whole."""
        tensors = {name: tensor.contiguous() for name, tensor in change.tensors.items()}
        _write(self._changes / f"{key}.safetensors", save(tensors))
        content = {
            "numbers": dict(change.numbers),
            "curve": change.curve,
            "seconds": change.seconds,
        }
        _write(self._changes / f"{key}.json", json.dumps(content).encode())

    def change(self, key: str) -> Change | None:
        """What lies under a key; None if nothing does, or nothing that is whole."""
        try:
            content = json.loads((self._changes / f"{key}.json").read_text(encoding="utf-8"))
            tensors = load((self._changes / f"{key}.safetensors").read_bytes())
            return Change(
                tensors=tensors,
                numbers=content["numbers"],
                curve=tuple(content["curve"]),
                seconds=content["seconds"],
            )
        except (OSError, ValueError, KeyError, SafetensorError):
            return None

    def sweep(self, wanted: Collection[str]) -> None:
        """Keep no change but those wanted."""
        for path in self._changes.iterdir():
            if path.stem not in wanted:
                path.unlink(missing_ok=True)

    @property
    def fingerprint(self) -> str:
        """Of the model that the changes were learnt with; empty if none were."""
        try:
            return self._model.read_text()
        except FileNotFoundError:
            return ""

    @fingerprint.setter
    def fingerprint(self, value: str) -> None:
        if value != self.fingerprint:
            _write(self._model, value.encode())

    def copy(self, path: Path) -> None:
        """Write all of it into the folder `path`."""
        for part in (self._edits, self._changes):
            rmtree(path / part.name, ignore_errors=True)
            copytree(part, path / part.name)
        _write(path / self._model.name, self.fingerprint.encode())

    def replace(self, path: Path) -> None:
        """Hold what `copy` wrote, and nothing else.

        Raises:
            StoreError: it is damaged or not there; nothing has changed.
        """
        saved = Shelf(path, read_only=True)
        if not all((path / part.name).is_dir() for part in (self._edits, self._changes)):
            raise StoreError(f"{path} holds no saved edits; save them again")
        saved.edits()
        for part in (self._edits, self._changes):
            rmtree(part)
            copytree(path / part.name, part)
        # Without it a keeper, which opens no model, would take all changes for another model's.
        self.fingerprint = saved.fingerprint


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing, and on disk when this returns."""
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
