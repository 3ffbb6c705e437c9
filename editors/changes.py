"""Files of what was learnt, each under a key that says what it follows from.

So what is there is right, and what is not there is to be learnt.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from shutil import copytree, rmtree

from safetensors import SafetensorError
from safetensors.torch import load, save

from ..errors import StoreError
from .base import Change


class Changes:
    """Files in a folder: `changes/KEY.safetensors` and `.json`, and which model they are for."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self._folder, self._read_only = folder, read_only
        self._parts: list[Path] = []
        self._changes = self.part("changes")
        self._model = folder / "model.sha256"

    def part(self, name: str) -> Path:
        """A folder of files that are copied and replaced with the rest."""
        part = self._folder / name
        self._parts.append(part)
        if not self._read_only:
            part.mkdir(parents=True, exist_ok=True)
            for left in part.glob("*.new"):  # a crash while it was written; it may say what is to
                left.unlink(missing_ok=True)  # be forgotten
        return part

    def keep(self, key: str, change: Change) -> None:
        """Keep a change under its key: the tensors first, so that one with numbers is whole."""
        tensors = {name: tensor.contiguous() for name, tensor in change.tensors.items()}
        write_whole(self._changes / f"{key}.safetensors", save(tensors))
        content = {
            "numbers": dict(change.numbers),
            "curve": change.curve,
            "seconds": change.seconds,
        }
        write_whole(self._changes / f"{key}.json", json.dumps(content).encode())

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
            write_whole(self._model, value.encode())

    def copy(self, path: Path) -> None:
        """Write all of it into the folder `path`."""
        for part in self._parts:
            rmtree(path / part.name, ignore_errors=True)
            copytree(part, path / part.name)
        write_whole(path / self._model.name, self.fingerprint.encode())

    def replace(self, path: Path) -> None:
        """Hold what `copy` wrote, and nothing else.

        Raises:
            StoreError: it is not there; nothing has changed.
        """
        if not all((path / part.name).is_dir() for part in self._parts):
            raise StoreError(f"{path} holds nothing saved of this kind; save it again")
        for part in self._parts:
            rmtree(part)
            copytree(path / part.name, part)
        # Without it a keeper, which opens no model, would take all changes for another model's.
        self.fingerprint = Changes(path, read_only=True).fingerprint


def write_whole(path: Path, content: bytes) -> None:
    """All of it or nothing, and on disk when this returns."""
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
