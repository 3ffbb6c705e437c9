"""The one folder that holds all of a user's data, and the lock that gives it to one process.

Knows nothing of what lies in it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_data_dir

from ..errors import ConfigError, HomeLocked, LedgerError
from .record import now

VARIABLE = "PALIMPSEST_HOME"


class Home:
    """A data folder; made, for its owner only, if it is not there.

    Args:
        path: the folder; by default what PALIMPSEST_HOME says, or else the platform's data folder.
        make: make it if it is not there.

    Raises:
        LedgerError: it cannot be made.
    """

    def __init__(self, path: str | Path | None = None, *, make: bool = True) -> None:
        chosen = path or os.environ.get(VARIABLE) or user_data_dir("palimpsest", appauthor=False)
        self.root = Path(chosen).expanduser().resolve()
        with _explained(self.root):
            if make or self.root.exists():
                self.root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, *parts: str) -> Path:
        """A path inside the folder. Makes nothing.

        Raises:
            ConfigError: it would lie outside, by `..`, by being absolute, or through a link.
        """
        found = self.root.joinpath(*parts).resolve()
        if not found.is_relative_to(self.root):
            raise ConfigError(
                f"path {'/'.join(parts)!r} leads out of the data folder {self.root}; name something"
                " inside it"
            )
        return found

    def holder(self) -> str | None:
        """Who holds the folder, as they wrote it down; None if nobody does. Takes no lock for
        longer than it needs to see."""
        if not self.path("lock").exists():
            return None
        lock = FileLock(self.path("lock"), timeout=0)
        with _explained(self.root):
            try:
                lock.acquire()
            except Timeout:
                return _name(self.path("lock.json"))
            lock.release()
        return None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process. The system releases it when the process ends, in
        whatever way, so a dead process never keeps it.

        Raises:
            HomeLocked: another one holds it; says who.
            LedgerError: the folder cannot be written to.
        """
        lock = FileLock(self.path("lock"), timeout=0)
        holder = self.path("lock.json")
        with _explained(self.root):
            try:
                lock.acquire()
            except Timeout:
                raise HomeLocked(_held(self.root, holder)) from None
            try:
                _note(holder)
            except BaseException:
                lock.release()
                raise
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


def _note(holder: Path) -> None:
    """Write down who holds the lock: whole or not at all, as others read it at any time."""
    who = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": _command(),
        "since": now().isoformat(timespec="seconds"),
    }
    draft = holder.with_suffix(".new")
    draft.write_text(json.dumps(who), encoding="utf-8")
    draft.replace(holder)


def _command() -> str:
    """Program and subcommand. What follows them may be a person's words."""
    words = [Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"]
    words += [word for word in sys.argv[1:2] if word.isidentifier()]
    return " ".join(words)


def _held(root: Path, holder: Path) -> str:
    remedy = "close it, or choose another folder with --home"
    return f"data folder {root} is held by {_name(holder)}; {remedy}"


def _name(holder: Path) -> str:
    try:
        who: dict[str, Any] = json.loads(holder.read_text(encoding="utf-8"))
        return "{command!r}, process {pid} on {host}, since {since}".format_map(who)
    except (OSError, ValueError, KeyError, TypeError):
        return "another process, which has not written down its name"


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LedgerError(
            f"data folder {root}: {error.strerror or error}; make it writable, or choose another"
            f" with --home or {VARIABLE}"
        ) from error
