"""An index as two files: `entries.json` and `vectors.safetensors`, row by row in order of id.

Knows nothing of tables. Both files are written beside their place and moved into it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError, StoreError
from .base import Entry
from .packing import Packed

FORMAT = 2


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What `write_snapshot` was given."""

    embedder: str
    digest: str
    entries: list[Entry]
    encodings: list[Packed]


def write_snapshot(
    path: Path, embedder: str, digest: str, entries: Sequence[Entry], made: Sequence[Packed]
) -> None:
    """Write N entries and their N encodings into the folder `path`."""
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
    arrays = {
        "vectors": np.stack([each.vector for each in made]) if made else np.zeros((0, 0), "<f2"),
        "tokens": np.concatenate([each.tokens for each in made]) if made else np.zeros(0, "u1"),
        "counts": np.array([len(each.tokens) for each in made], np.int64),
    }
    save_file(arrays, new[1], metadata={"digest": digest})
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
            vectors, tokens, counts = map(file.get_tensor, ("vectors", "tokens", "counts"))
        if digest != described["digest"] or not len(vectors) == len(counts) == len(entries):
            raise ValueError("its two files are of different snapshots")
        parts = np.split(tokens, np.cumsum(counts)[:-1]) if len(counts) else []
    except (OSError, ValueError, KeyError, TypeError, InputError, SafetensorError) as error:
        raise StoreError(
            f"the snapshot in {path} cannot be read: {error}; take another one, or rebuild the"
            " store from the ledger"
        ) from error
    made = [Packed(vector, part) for vector, part in zip(vectors, parts, strict=True)]
    return Snapshot(described["embedder"], digest, entries, made)
