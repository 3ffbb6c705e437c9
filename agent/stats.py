"""How much there is: records, what stores hold of them, and what it all takes on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..memory.backup_file import LEDGER, STORES
from ..memory.home import Home
from ..memory.ledger import Ledger
from ..memory.record import Scope
from ..memory.upkeep import Census


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """An account of a data folder.

    Args:
        events, head: the position and the hash of the chain's last event.
        disk: bytes of the ledger, of each store and of everything in the folder.
    """

    home: str
    ledger: str
    census: Census
    events: int
    head: str
    disk: Mapping[str, int]


def stats(home: Home, ledger: Ledger, scope: Scope) -> Stats:
    """Count and measure. Changes nothing."""
    stores = home.path(STORES)
    folders = sorted(stores.iterdir()) if stores.is_dir() else []
    return Stats(
        home=str(home.root),
        ledger=ledger.name,
        census=ledger.upkeep.census(scope),
        events=ledger.last_seq(),
        head=ledger.head(),
        disk={
            "ledger": sum(_size(path) for path in home.root.glob(f"{LEDGER}*")),
            **{f"store {folder.name}": _size(folder) for folder in folders},
            "all": _size(home.root),
        },
    )


def _size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder; of what goes while it is looked at, none."""
    try:
        if not path.is_dir():
            return path.stat().st_size
        return sum(_size(each) for each in path.iterdir())
    except FileNotFoundError:
        return 0
