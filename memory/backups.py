"""Backups of a data folder: made while it is in use, listed in it, and put in its place again.

The copies of the stores in one spare a rebuild and are not relied upon. Knows stores only as
folders; what a backup is as a file is in `backup_file`.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ..errors import ConfigError, LedgerError
from .backup_file import KEYS, LEDGER, STORES, Backup, described, pack, unpacked
from .home import Home
from .ledger import Ledger
from .record import RecordId, now

LISTED = "backups.json"
"""In the data folder: a list of {"path", "created", "head"}; a report of an erasure names those
that still hold what was forgotten."""

_SQLITE = b"SQLite format 3\0"
_LOGS = ("-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """An erasure that was done after a backup was made.

    Args:
        user: whose records it was about; None for several users'.
        records: ids of those of them that are in the backup: to be forgotten again.
    """

    id: str
    user: str | None
    records: tuple[RecordId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore did, or would do.

    Args:
        replaced: records of the ledger that was there before; None if there was none to read.
        undone: erasures that were done after the backup was made: what they forgot is back.
    """

    backup: Backup
    replaced: int | None
    undone: tuple[Undone, ...]


def back_up(home: Home, ledger: Ledger, where: Path) -> Backup:
    """Write a backup, while the folder is in use.

    Args:
        where: a file that is not there yet; or a folder, in which one is made.

    Raises:
        ConfigError: the file is there already, or the ledger lies on a server.
        LedgerError: it cannot be written; nothing is left of it.
    """
    created = now()
    target = where.expanduser().absolute()
    if target.is_dir():
        target /= f"palimpsest-{created:%Y%m%dT%H%M%S}.zip"
    if target.exists():
        raise ConfigError(f"backup {str(target)!r} is there already; choose another name")
    with (
        _explained(target),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".backup-") as at,
    ):
        staging = Path(at)
        ledger.upkeep.copy(staging / LEDGER)
        with Ledger.open(staging / LEDGER, read_only=True) as copy:
            head, events, records = copy.head(), copy.last_seq(), copy.stats()["records"]
        made = created.isoformat(timespec="seconds")
        row = {"path": str(target), "created": made, "head": head}
        about = {"events": events, "records": records} | row
        _list(home, lambda rows: [*rows, row])  # before it is there: a listed one may be missing
        try:
            _copy_files(home, staging)
            pack(staging, staging / "new.zip", about)
            (staging / "new.zip").replace(target)
        except BaseException:
            _list(home, lambda rows: [each for each in rows if each != row])
            raise
    return described(target, about)


def listed(home: Home) -> list[dict[str, str]]:
    """The backups that were made of this folder, oldest first.

    Raises:
        LedgerError: the list cannot be read.
    """
    path = home.path(LISTED)
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [{name: str(row[name]) for name in ("path", "created", "head")} for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LedgerError(
            f"the list of backups {path} cannot be read ({error!r}); mend or remove it"
        ) from error


def left_alone(home: Home) -> str | None:
    """What there is that comes only beside a ledger, where there is no ledger; None if nothing."""
    if home.path(LEDGER).exists():
        return None
    found = [name for name in (KEYS, LISTED) if home.path(name).exists()]
    if any(home.path(STORES).rglob("*.sqlite3")):
        found.append(STORES)
    return ", ".join(found) or None


def restore(home: Home, file: Path, *, replace: bool = False) -> Restored:
    """Put a backup in the place of what the folder holds. Checked as by `checked` before anything
    is touched; the caller holds the folder's lock, and brings the stores up to date afterwards.

    Args:
        replace: the folder may hold records, which are lost.

    Raises:
        ConfigError: it holds some and may not be replaced.
    """
    staging = home.path("restore.new")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    try:
        backup = unpacked(file, staging)
        found = outlook(home, backup)
        if not replace and found.replaced != 0:
            held = "a ledger that cannot be read"
            held = held if found.replaced is None else f"{found.replaced:,} records"
            raise ConfigError(
                f"data folder {home.root} holds {held}, which a restore replaces; say --yes"
                " (replace=True) if they may go, or restore into another folder with --home"
            )
        _swap(home, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    row = {"path": backup.path, "created": backup.created, "head": backup.head}
    _list(home, lambda rows: rows if row in rows else [*rows, row])
    return found


def outlook(home: Home, backup: Backup) -> Restored:
    """What a restore would replace. Changes nothing."""
    path = home.path(LEDGER)
    if not path.exists():
        return Restored(backup=backup, replaced=0, undone=())
    try:
        with Ledger.open(path, read_only=True) as ledger:
            records = ledger.stats()["records"]
            return Restored(backup=backup, replaced=records, undone=_undone(ledger, backup.events))
    except LedgerError:
        return Restored(backup=backup, replaced=None, undone=())


def _undone(ledger: Ledger, seq: int) -> tuple[Undone, ...]:
    """What was forgotten after event `seq` and had been there by then."""
    found = []
    for note in ledger.erasures.every("done"):
        first, last = (note.data["chain"][end]["seq"] for end in ("before", "after"))
        if last <= seq:
            continue
        events = ledger.events(first, last - first)
        ids = [RecordId(event.subject) for event in events if event.kind == "erase"]
        if there := ledger.erasures.appended_by(seq, ids):
            found.append(Undone(id=note.id, user=note.reach.user, records=tuple(there)))
    return tuple(found)


def _copy_files(home: Home, staging: Path) -> None:
    """Stores and keys. A store's database is copied in one state, its other files as they are;
    what does not go with the ledger is found out, and made anew, when it is restored."""
    for folder in (STORES, KEYS):
        for source in sorted(home.path(folder).rglob("*")):
            name = source.relative_to(home.root)
            if source.is_symlink() or not source.is_file() or source.name.endswith(_LOGS):
                continue
            copy = staging / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                _copy_file(source, copy)
            except sqlite3.Error:
                copy.unlink(missing_ok=True)  # damaged: better made anew than kept


def _copy_file(source: Path, copy: Path) -> None:
    with source.open("rb") as file:
        is_database = file.read(len(_SQLITE)) == _SQLITE
    if not is_database:
        shutil.copyfile(source, copy)
        return
    with (
        closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True)) as database,
        closing(sqlite3.connect(copy)) as target,
    ):
        database.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")


def _swap(home: Home, staging: Path) -> None:
    """The ledger last but for what can be made anew from it: a crash leaves the old one or the new
    one, whole, and stores that are made anew when the folder is next opened."""
    shutil.rmtree(home.path(STORES), ignore_errors=True)
    ledger = home.path(LEDGER)
    if ledger.exists():
        with suppress(LedgerError), Ledger.open(ledger) as old:  # a damaged one is past saving
            old.purge(rewrite=False)  # its log goes into it, and can be removed
    for log in _LOGS:
        ledger.with_name(f"{LEDGER}{log}").unlink(missing_ok=True)
    (staging / LEDGER).replace(ledger)
    if (staging / STORES).exists():
        (staging / STORES).replace(home.path(STORES))
    if (staging / KEYS).exists() and not home.path(KEYS).exists():
        (staging / KEYS).replace(home.path(KEYS))


def _list(home: Home, change: Callable[[list[dict[str, str]]], list[dict[str, str]]]) -> None:
    """Change the list of backups, whole or not at all, also beside another process."""
    path = home.path(LISTED)
    with _explained(path), FileLock(home.path("backups.lock")):
        rows = change(listed(home))
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        draft.replace(path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LedgerError(
            f"cannot write {str(path)!r}: {error.strerror or error}; choose a place you may write"
            " to, with room for a copy of the data folder"
        ) from error
