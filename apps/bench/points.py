"""What a long bench has measured so far, kept at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...memory.record import now


class Points:
    """What was measured so far, one line of JSON each, so that a run that breaks off keeps it and
    the next one with the same settings goes on from there.

    Args:
        path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        self.resumed = 0
        if path is not None and path.is_file():
            lines = map(_line, path.read_text(encoding="utf-8").splitlines())
            self._known = {line["key"]: line for line in lines if line}

    def get(
        self, about: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        """The scores under these settings: as they were kept, or measured now."""
        text = json.dumps(about, sort_keys=True, ensure_ascii=False)
        key = hashlib.sha256(text.encode()).hexdigest()[:20]
        if (known := self._known.get(key)) is not None:
            self.resumed += 1
            scores: Mapping[str, Any] = known["scores"]
            return scores
        found = measure()
        if self._path is not None:
            line = {"key": key, "at": now().isoformat(), **about, "scores": found}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return found


def _line(text: str) -> dict[str, Any]:
    """One line; nothing where the run broke off within it."""
    try:
        line: dict[str, Any] = json.loads(text)
    except ValueError:
        return {}
    return line
