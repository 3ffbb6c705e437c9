"""One store: what is wrong with it, and how it is made anew from the ledger.

Opens it by itself, as an agent could not be opened on a broken one. Knows a store by its contract,
its name and its folder.
"""

from __future__ import annotations

import shutil
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, ModelError, PalimpsestError, StoreError
from ..memory.base import Cue, Memory, StoreContext
from ..memory.database import MEND, Database, Purpose
from ..memory.ledger import Ledger
from ..memory.projection import Report, check, rebuild, repair
from ..memory.record import now
from ..memory.registry import MEMORIES, open_memory
from ..registry import parse_spec

RECENT = 50
"""Events among which the newest record is looked for that a store holds."""

PASSING = ("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_BUSY", "SQLITE_LOCKED")
"""Faults that are no fault of the files: to make them anew would fail in the same way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What is wrong with a store; nothing, if `found` is empty.

    Args:
        broken: its files cannot be used as they are.
        passing: what is wrong lies elsewhere, a full disk for one.
        untried: why a recall could not be tried, if it could not.
    """

    found: tuple[str, ...] = ()
    broken: bool = False
    passing: bool = False
    untried: str | None = None


class Care:
    """Of one store.

    Args:
        spec: as an agent names it.
        context: read-only unless it is to be mended.
    """

    def __init__(self, ledger: Ledger, spec: str, context: StoreContext) -> None:
        self._ledger, self._spec, self._context = ledger, spec, context
        self.name = parse_spec(spec)[0]
        self._folder = context.folder / self.name

    @property
    def unused(self) -> bool:
        """Whether nothing was ever written to it."""
        return not self._ledger.cursor(self.name) and not self._folder.exists()

    def look(self) -> Trouble:
        """Its files, whether it agrees with the ledger, and whether it can be asked."""
        try:
            for file in sorted(self._folder.rglob("*.sqlite3")):
                if faults := _faults(file, self.name):
                    return Trouble(found=tuple(faults), broken=True)
            with closing(open_memory(self._spec, self._context)) as store:
                report = self._compared(store)
                untried = self._try(store) if report.agrees else None
        except StoreError as error:
            passing = is_passing(error)
            what = str(error).removesuffix(f"; {MEND}")  # which is said beside it
            return Trouble(found=(what,), broken=not passing, passing=passing)
        counts = {
            "records are missing from it": len(report.missing),
            "records are in it that should not be": len(report.surplus),
            "events were not followed yet": report.behind,
        }
        found = tuple(f"{count:,} {what}" for what, count in counts.items() if count)
        return Trouble(found=found, untried=untried)

    def mend(self, *, anew: bool) -> None:
        """Bring it in line with the ledger.

        Args:
            anew: remove its files first, but for what is not in the ledger; see `Memory.lasting`.

        Raises:
            StoreError: it cannot be written either.
        """
        if anew and self._folder.is_dir():
            for path in self._folder.iterdir():
                if path.name not in MEMORIES.load(self.name).lasting:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif anew:
            self._folder.unlink(missing_ok=True)
        with closing(open_memory(self._spec, self._context)) as store:
            if anew:
                rebuild(self._ledger, store)
            else:
                repair(self._ledger, store)

    def _compared(self, store: Memory) -> Report:
        """With the ledger. Somebody may be writing both just now: then what counts is what stays
        wrong, and a store that is moving on is not behind."""
        cursor, found = self._ledger.cursor(self.name), check(self._ledger, store)
        for _ in range(3 if self._context.read_only else 0):
            if found.agrees:
                break
            time.sleep(0.2)
            again = check(self._ledger, store)
            moving = self._ledger.cursor(self.name) != cursor
            found = Report(
                store=self.name,
                missing=found.missing & again.missing,
                surplus=found.surplus & again.surplus,
                behind=0 if moving else min(found.behind, again.behind),
            )
        return found

    def _try(self, store: Memory) -> str | None:
        """Ask it for the newest record that it holds."""
        held, last = store.held(), self._ledger.last_seq()
        changes = self._ledger.changes(max(0, last - RECENT), RECENT)
        asked = [record for _, record in changes if record is not None and record.id in held]
        if asked:
            cue = Cue(message=asked[-1].text[:200], scope=asked[-1].scope, budget=256, now=now())
            try:
                store.recall(cue)
            except (ModelError, ConfigError) as error:
                return str(error)
        return None


def is_passing(error: PalimpsestError) -> bool:
    """Whether a database's error is no fault of its files."""
    origin = getattr(error.__cause__, "orig", error.__cause__)
    return getattr(origin, "sqlite_errorname", "").startswith(PASSING)


def _faults(file: Path, name: str) -> list[str]:
    purpose = Purpose(f"store {name}", StoreError, MEND, lambda connection, where: None)
    with closing(Database(file, purpose, read_only=True)) as database:
        return database.faults()
