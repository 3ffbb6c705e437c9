"""An independent look at a data folder's bytes; none of the product's own search is in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from palimpsest.memory.vectors import Embedder

STRETCH = 14
"""Characters of a text whose standing together is no accident in these tests."""


def forms(text: str) -> Iterator[bytes]:
    """A text as a file may have it."""
    yield text.encode()
    yield text.encode("utf-16-le")
    yield text.encode("utf-16-be")
    yield json.dumps(text)[1:-1].encode()
    yield json.dumps(text, ensure_ascii=False)[1:-1].encode()


def stretches(text: str) -> Iterator[str]:
    """Every stretch of a text, at every offset."""
    for start in range(max(1, len(text) - STRETCH + 1)):
        yield text[start : start + STRETCH]


def vectors(embedder: Embedder, text: str) -> Iterator[bytes]:
    """The bytes of a text's vector [D] as files may have them, in pieces of 32 bytes, and the
    signs of the vector."""
    [vector] = embedder.embed([text])
    for kind in (np.float32, np.float16):
        raw = vector.astype(kind).tobytes()
        pieces = (raw[at : at + 32] for at in range(0, len(raw), 32))
        yield from (piece for piece in pieces if len(set(piece)) > 8)  # few zeros: no accident
    yield np.packbits(vector.astype(np.float16) > 0).tobytes()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under `folder`."""
    found = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found, f"{folder} has no files: nothing was looked through"
    return {str(path): data for path, data in found.items()}


def left_of(
    where: Path | Mapping[str, bytes], embedder: Embedder, *texts: str
) -> list[tuple[str, bytes]]:
    """What any file under a folder, or any of these contents, still holds of the texts: (name of
    the file, what it holds)."""
    said = [form for text in texts for part in stretches(text) for form in forms(part)]
    meant = [piece for text in texts for piece in vectors(embedder, text)]
    wanted = list(dict.fromkeys([*said, *meant]))
    files = contents(where) if isinstance(where, Path) else where
    return [(name, each) for name, data in files.items() for each in wanted if each in data]
