"""Where an erasure's reach ends: backups, servers, and whatever else nobody here can look into.

A report that leaves these out claims more than is known. Knows nothing of how erasing is done.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..memory.chain import GENESIS
from ..memory.erasures import Erasures
from ..memory.home import Home
from ..memory.ledger import Ledger
from ..memory.record import RecordId
from .report import Backup, Search

BACKUPS = "backups.json"
"""In the data folder: a list of {"path", "created", "head"}, one for each backup that was made."""

ALWAYS = (
    "what the language model knew before it was told anything here: its weights are not searched",
    "copies made elsewhere: exports, screens, logs of a served model, backups that are not listed",
    "what is compressed or encrypted: the search reads bytes as they stand",
    "what the file system keeps of deleted files: a disk overwrites their blocks in its own time",
    "the titles of conversations that go on, which nobody but their user gives",
    "the ids of the records and the names of tenant, user, agent and session: the ledger's chain of"
    " events and this report keep them",
)


def version() -> str:
    """Of this software."""
    from .. import __version__

    return __version__


def unchecked(ledger: Ledger, outside: Sequence[str], search: Search | None) -> list[str]:
    """What no check of an erasure reaches."""
    found = list(ALWAYS)
    if search is None:
        found.append(
            "the files, for the forgotten texts: the process ended after the texts were erased and"
            " before the files were searched, and the texts are known to nobody any more"
        )
    elif search.unsearchable:
        found.append(
            "the files, for texts too short or too plain to be told from chance; what stands beside"
            " them was searched for"
        )
    if ledger.file is None:
        found.append(
            f"the files, the log and the backups of the database server at {ledger.name}, and the"
            " stores of other processes on it, which follow when they next run"
        )
    return found + [f"the files behind {place}" for place in outside]


def backups(
    home: Home, erasures: Erasures, ids: Collection[RecordId]
) -> tuple[list[Backup], list[str]]:
    """The backups that hold any of the records, and what could not be found out about backups.

    One holds them if the ledger had come at least as far, when it was made, as their first one's
    append. A backup of a history that is not this ledger's may hold them, so it counts.
    """
    path = home.path(BACKUPS)
    if not path.exists():
        return [], []
    try:
        listed: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        rows = [(Backup(path=row["path"], created=row["created"]), row["head"]) for row in listed]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [], [f"which backups hold it: {path.name} cannot be read ({error!r})"]
    first = erasures.appended(ids) or 0
    return [backup for backup, head in rows if _reaches(erasures, head, first)], []


def files_of(database: Path) -> list[Path]:
    """A SQLite file that lies outside the data folder, and its log."""
    log = database.with_name(f"{database.name}-wal")
    return [path for path in (database, log) if path.exists()]


def _reaches(erasures: Erasures, head: str, first: int) -> bool:
    event = erasures.event(head)
    return head != GENESIS and (event is None or event.seq >= first)
