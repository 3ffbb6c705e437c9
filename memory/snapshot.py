"""An index as two files: `entries.json` and `vectors.safetensors`, row by row in order of id.

Knows nothing of SQLite or Chroma. Both files are written beside their place and moved into it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, StoreError
from .entry import Entry

if TYPE_CHECKING:
    from .vectors import Vectors

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What `write_snapshot` was given."""

    embedder: str
    digest: str
    entries: list[Entry]
    vectors: Vectors


def write_snapshot(
    path: Path, embedder: str, digest: str, entries: Sequence[Entry], vectors: Vectors
) -> None:
    """Write N entries and their vectors [N, D] into the folder `path`."""
    from safetensors.numpy import save_file

    path.mkdir(parents=True, exist_ok=True)
    described = {
        "format": FORMAT,
        "embedder": embedder,
        "digest": digest,
        "entries": [entry.canonical() for entry in entries],
    }
    new = path / "entries.json.new", path / "vectors.safetensors.new"
    new[0].write_text(json.dumps(described, ensure_ascii=False, sort_keys=True), encoding="utf-8")
    save_file({"vectors": vectors}, new[1], metadata={"digest": digest})
    for file in new:
        file.replace(file.with_suffix(""))


def read_snapshot(path: Path) -> Snapshot:
    """Read a snapshot back.

    Raises:
        StoreError: a file is missing or damaged, or the two do not belong together.
    """
    from safetensors import SafetensorError, safe_open

    try:
        described = json.loads((path / "entries.json").read_text(encoding="utf-8"))
        if described["format"] != FORMAT:
            raise ValueError(f"format {described['format']}, where this version reads {FORMAT}")
        entries = [Entry.from_canonical(values) for values in described["entries"]]
        with safe_open(path / "vectors.safetensors", framework="numpy") as file:
            digest = file.metadata()["digest"]
            vectors = file.get_tensor("vectors")
        if digest != described["digest"] or len(vectors) != len(entries):
            raise ValueError("its two files are of different snapshots")
    except (OSError, ValueError, KeyError, TypeError, InputError, SafetensorError) as error:
        raise StoreError(
            f"the snapshot in {path} cannot be read: {error}; take another one, or rebuild the"
            " store from the ledger"
        ) from error
    return Snapshot(described["embedder"], digest, entries, vectors)
