"""What an editor keeps on disk: its edits, and what was learnt of each.

The key of a change is made of everything that it follows from: the model, the method, the edit and
those before it in its lane. So undoing an edit is no longer asking for its key.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import StoreError
from ..memory.record import Record, RecordId, Scope
from .base import Edit
from .changes import Changes, write_whole


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


class Shelf(Changes):
    """Files in a folder: `edits/ID.json`, `changes/KEY.safetensors` and `.json`."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        super().__init__(folder, read_only=read_only)
        self._edits = self.part("edits")

    def put(self, record: Record) -> Held:
        """Keep an edit; durable when this returns."""
        held = Held(record.id, record.scope, Edit.of(record), record.supersedes)
        content = {
            "scope": asdict(held.scope),
            "edit": asdict(held.edit),
            "supersedes": held.supersedes,
        }
        write_whole(
            self._edits / f"{held.id}.json", json.dumps(content, ensure_ascii=False).encode()
        )
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

    def replace(self, path: Path) -> None:
        """Hold what `copy` wrote, and nothing else.

        Raises:
            StoreError: it is damaged or not there; nothing has changed.
        """
        Shelf(path, read_only=True).edits()
        super().replace(path)
