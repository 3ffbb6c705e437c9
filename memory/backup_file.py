"""A backup as a file: a zip with a manifest that states every other file in it by its SHA-256.

In it are a copy of the ledger, the signing key, and copies of the stores. Knows nothing of data
folders: it packs one folder, and unpacks into another.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import InputError, LedgerError
from .ledger import Ledger

FORMAT = 1

LEDGER, STORES, KEYS = "ledger.sqlite3", "stores", "keys"
MANIFEST = "manifest.json"

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """One backup.

    Args:
        head, events: the last event of the chain in it, and its position.
        bytes: of the file.
    """

    path: str
    created: str
    head: str
    events: int
    records: int
    bytes: int


def checked(file: Path) -> Backup:
    """Unpack a backup somewhere and check it.

    Raises:
        InputError, ChainBroken, LedgerError: as `unpacked`.
    """
    with tempfile.TemporaryDirectory(prefix="palimpsest-") as at:
        return unpacked(file, Path(at))


def pack(staging: Path, file: Path, about: Mapping[str, Any]) -> None:
    """Write all that lies in `staging` into `file`, which may lie there too.

    Args:
        about: what the manifest says of it all: `path`, `created`, `head`, `events`, `records`.
    """
    file.touch(mode=0o600)  # it holds every text, and the key
    names = sorted(p.relative_to(staging) for p in staging.rglob("*") if p.is_file() and p != file)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        files = {}
        for name in names:
            archive.write(staging / name, name.as_posix())
            seal = _seal(staging / name)
            files[name.as_posix()] = {"sha256": seal, "bytes": (staging / name).stat().st_size}
        archive.writestr(
            MANIFEST, json.dumps({"format": FORMAT, **about, "files": files}, indent=1)
        )
    with file.open("rb") as written:
        os.fsync(written.fileno())


def unpacked(file: Path, into: Path) -> Backup:
    """Unpack a backup into an empty folder, and check it: every file by its SHA-256, the ledger by
    its chain of events.

    Raises:
        InputError: it is no backup, or damaged.
        ChainBroken, LedgerError: the ledger in it is.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            manifest: dict[str, Any] = json.loads(archive.read(MANIFEST))
            if manifest["format"] != FORMAT:
                raise InputError(
                    f"backup {str(file)!r} has format {manifest['format']!r} and this version"
                    f" reads {FORMAT}; install a newer palimpsest"
                )
            for name, stated in manifest["files"].items():
                _unpack(archive, name, stated, into)
    except OSError as error:
        raise InputError(f"cannot read {str(file)!r}: {error.strerror or error}") from None
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, TypeError, EOFError) as error:
        raise InputError(
            f"{str(file)!r} is no backup, or a damaged one ({error}); take another one"
        ) from None
    backup = described(file.absolute(), manifest)
    _check_ledger(into / LEDGER, backup)
    return backup


def _unpack(archive: zipfile.ZipFile, name: str, stated: Mapping[str, Any], into: Path) -> None:
    parts = PurePosixPath(name).parts
    if not parts or parts[0] not in (LEDGER, STORES, KEYS) or ".." in parts:
        raise InputError(f"the backup has a file {name!r}, which no backup has; take another one")
    target = into.joinpath(*parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, target.open("wb") as written:
        shutil.copyfileobj(source, written, _CHUNK)
        written.flush()
        os.fsync(written.fileno())
    if _seal(target) != stated["sha256"]:
        raise InputError(f"file {name!r} of the backup is damaged (its SHA-256 differs)")


def _check_ledger(path: Path, backup: Backup) -> None:
    if not path.exists():
        raise InputError(f"{backup.path!r} has no ledger in it; take another backup")
    with Ledger.open(path) as ledger:
        faults = ledger.upkeep.faults()
        if faults:
            raise LedgerError(f"the ledger in {backup.path!r} is damaged: {faults[0]}")
        ledger.verify_chain()
        if (ledger.head(), ledger.last_seq()) != (backup.head, backup.events):
            raise InputError(
                f"the ledger in {backup.path!r} is not the one that its manifest names; take"
                " another backup"
            )


def described(file: Path, about: Mapping[str, Any]) -> Backup:
    """A backup that is there, by what its manifest says."""
    named = {name: about[name] for name in ("created", "head", "events", "records")}
    return Backup(path=str(file), bytes=file.stat().st_size, **named)


def _seal(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
