"""The cache of model files: folders built whole or not at all, sealed by what they hold.

The seal is a JSON file that lists the sha256 and the bytes of every other file in its folder. Knows
nothing of models, nor of where files come from.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ..errors import ModelError
from .fetch import sha256_of

logger = logging.getLogger(__name__)

State = Literal["pulled", "absent", "damaged"]

_SEAL = "palimpsest.json"


def cache_dir() -> Path:
    """Folder of all model files: PALIMPSEST_CACHE, else the platform's cache folder."""
    chosen = os.environ.get("PALIMPSEST_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("palimpsest", appauthor=False)


def sealed_files(folder: Path) -> dict[str, tuple[str, int]]:
    """(sha256, bytes) by file, as the seal has it; empty without a readable seal."""
    try:
        files = json.loads((folder / _SEAL).read_text(encoding="utf-8"))["files"]
        return {name: (str(row["sha256"]), int(row["bytes"])) for name, row in files.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        logger.warning("%s is not readable; the model counts as damaged", folder / _SEAL)
        return {}


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, as far as sizes tell; None if nothing is."""
    files = sealed_files(folder)
    if not files:
        return f"{folder} has no readable seal ({_SEAL})"
    for name, (_, size) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size:,} bytes, expected {size:,}"
    return None


def state_of(folder: Path) -> State:
    """Whether a sealed folder is there, and whole as far as sizes tell."""
    if not folder.exists():
        return "absent"
    return "damaged" if damage(folder) else "pulled"


@contextmanager
def building(folder: Path) -> Iterator[Path | None]:
    """An empty folder that becomes `folder`, sealed, when the block ends well; else it is removed.

    Gives None if another process has just built it.
    """
    from filelock import FileLock

    staging = folder.with_name(f".{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if state_of(folder) == "pulled":
                yield None
                return
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            try:
                yield staging
                _seal(staging)
                if folder.exists():
                    shutil.rmtree(folder)
                staging.replace(folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"model files cannot be written to {cache_dir()} ({error}); make room there, or set"
            " PALIMPSEST_CACHE to a folder that can be written"
        ) from error


def _seal(folder: Path) -> None:
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": sha256_of(path),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    text = json.dumps({"files": files}, indent=2)
    (folder / _SEAL).write_text(text, encoding="utf-8")
