"""Exports as files: written whole or not at all, and read back line by line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, InputError
from ..memory.ledger import Ledger
from ..memory.merging import Taken
from ..memory.record import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A file that was written.

    Args:
        scope: whose records; None for a whole ledger, with its chain of events.
    """

    path: str
    scope: Scope | None
    rows: int
    bytes: int


def export(ledger: Ledger, path: Path, scope: Scope | None, *, replace: bool = False) -> Exported:
    """Write what the scope covers, or everything, to a file.

    Raises:
        ConfigError: the file is there already.
        InputError: it cannot be written.
        RecordNotFound: the scope's session does not exist.
    """
    if scope is not None and scope.session is not None:
        ledger.require_session(scope)
    target = path.expanduser().absolute()
    if target.exists() and not replace:
        raise ConfigError(
            f"{str(path)!r} is there already; choose another name, or say --yes (replace=True)"
        )
    draft = target.with_name(f"{target.name}.part")
    rows = size = 0
    try:
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)  # it holds every text
        with draft.open("wb") as file:
            for line in ledger.transfer.lines(scope):
                file.write(line)
                rows += 1
                size += len(line)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}") from None
    finally:
        draft.unlink(missing_ok=True)
    # neither the header nor the end is a row of the ledger
    return Exported(path=str(target), scope=scope, rows=rows - 2, bytes=size)


def take_in(ledger: Ledger, path: Path) -> Taken:
    """Take in the file of an export; see `Transfer.take`.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.expanduser().open("rb") as file:
            return ledger.transfer.take(file)
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
