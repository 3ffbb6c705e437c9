"""What is wrong with a data folder, and what of it can be mended: all that is made from the ledger.

The stores are looked after in `mending`. Knows nothing of what is in them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from ..errors import ConfigError, LedgerError, StoreError
from ..llm.open import UnopenedLLM
from ..memory.backup_file import LEDGER, STORES, checked
from ..memory.backups import Restored, left_alone, listed, outlook, restore
from ..memory.base import StoreContext
from ..memory.database import MEND
from ..memory.home import Home
from ..memory.ledger import Ledger
from ..memory.registry import DEFAULT_MEMORIES, MEMORIES
from ..memory.vectors import Embedder
from ..registry import parse_spec
from .building import lazily
from .mending import Care, Trouble, is_passing

ROOM = 100 * 1024 * 1024
"""Bytes that should be free on the disk, beside room for another ledger."""

State = Literal["well", "ill", "mended", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Args:
        state: `ill` wants something done; a `note` does not.
        remedy: what to do about it.
    """

    part: str
    state: State
    what: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """All that was looked at, in order."""

    home: str
    findings: Sequence[Finding]

    @property
    def healthy(self) -> bool:
        """Whether nothing is left that is ill."""
        return all(finding.state != "ill" for finding in self.findings)


def examine(
    home: str | Path | None,
    *,
    fix: bool = False,
    rebuild: bool = False,
    memories: Sequence[str] | None = None,
    embedder: str | Embedder = "minilm",
    device: str = "auto",
    ledger_url: str | None = None,
    chroma_url: str | None = None,
) -> Examination:
    """Look at a data folder; see `Operations.doctor`.

    Raises:
        HomeLocked: it is to be mended, and somebody has it open.
        ConfigError: `rebuild` without `fix`.
    """
    if rebuild and not fix:
        raise ConfigError("rebuild makes the stores anew, and fix is off; ask for fix, too")
    root = Home(home, make=False).root
    fix = fix and (bool(ledger_url) or (root.exists() and any(root.iterdir())))  # else make nothing
    folder = Home(root, make=fix)
    context = StoreContext(
        folder=folder.path(STORES),
        llm=_Unasked("nobody"),
        embedder=lazily(embedder, device),
        database_url=ledger_url,
        chroma_url=chroma_url,
        read_only=not fix,
    )
    doctor = _Doctor(folder, context, ledger_url or folder.path(LEDGER), fix, rebuild)
    with ExitStack() as stack:
        if fix:
            stack.enter_context(folder.lock())
        else:
            doctor.see_lock()
        doctor.run(memories)
    return Examination(home=str(folder.root), findings=tuple(doctor.findings))


def put_back(
    file: Path, home: str | Path | None, *, replace: bool, dry_run: bool, **how: Any
) -> tuple[Restored, Examination | None]:
    """Restore a backup and mend the stores; see `Operations.restore`."""
    folder = Home(home, make=not dry_run)
    if dry_run:
        return outlook(folder, checked(file)), None
    with folder.lock():
        restored = restore(folder, file, replace=replace)
    return restored, examine(folder.root, fix=True, **how)


class _Unasked(UnopenedLLM):
    """Stands for the model, which no examination asks anything."""

    def count_tokens(self, text: str) -> int:
        """About."""
        return len(text) // 4 + 1


class _Doctor:
    """One examination."""

    def __init__(
        self, home: Home, context: StoreContext, ledger: str | Path, fix: bool, anew: bool
    ) -> None:
        self.findings: list[Finding] = []
        self._home, self._context, self._where = home, context, ledger
        self._fix, self._anew = fix, anew

    def run(self, memories: Sequence[str] | None) -> None:
        """Look at everything. Stores are left alone where the ledger cannot be trusted."""
        self._room()
        try:
            with self._ledger() as ledger:
                if ledger is not None:
                    for spec in self._specs(ledger, memories):
                        self._store(ledger, spec)
                    self._erasures(ledger)
        finally:
            self._backups()

    def see_lock(self) -> None:
        """Who has the folder open."""
        try:
            holder = self._home.holder()
        except LedgerError as error:
            self._say("lock", "ill", str(error))
            return
        self._say("lock", "note" if holder else "well", f"held by {holder}" if holder else "free")

    def _room(self) -> None:
        if not self._home.root.exists():
            return
        free = shutil.disk_usage(self._home.root).free
        path = self._home.path(LEDGER)
        needed = ROOM + (path.stat().st_size if path.exists() else 0)
        self._say(
            "disk",
            "well" if free >= needed else "ill",
            f"{free / 1e9:.1f} GB free",
            None if free >= needed else f"free {needed / 1e9:.1f} GB: an erasure writes it anew",
        )

    @contextmanager
    def _ledger(self) -> Iterator[Ledger | None]:
        """The ledger, if it is whole; it is looked at first, and never touched."""
        if isinstance(self._where, Path) and not self._where.exists():
            if left := left_alone(self._home):
                self._say("ledger", "ill", f"it is gone; left are {left}", self._way_back())
            else:
                self._say("ledger", "note", "there is none yet")
            yield None
            return
        try:
            opened = Ledger.open(self._where, read_only=not self._fix)
        except LedgerError as error:
            way = None if is_passing(error) else self._way_back()
            self._say("ledger", "ill", str(error), way)
            yield None
            return
        with opened as ledger:
            yield ledger if self._whole(ledger) else None

    def _whole(self, ledger: Ledger) -> bool:
        try:
            faults = ledger.upkeep.faults()
            if not faults:
                ledger.verify_chain()
        except LedgerError as error:
            faults = [str(error)]
        for fault in faults:
            self._say("ledger", "ill", fault, self._way_back())
        if not faults:
            count = ledger.stats()
            self._say(
                "ledger",
                "well",
                f"{count['records']:,} records, and {count['events']:,} events whose chain holds",
            )
        return not faults

    def _way_back(self) -> str:
        """What to do about a damaged ledger, which nothing here ever touches."""
        try:
            paths = [row["path"] for row in listed(self._home) if Path(row["path"]).exists()]
        except LedgerError:
            paths = []
        if not paths and not self._home.path(LEDGER).exists():
            return "there is no backup on the list; look for one elsewhere before all else"
        if not paths:
            return (
                "there is no backup on the list; copy the data folder as it is, then try"
                " `sqlite3 ledger.sqlite3 .recover` on the copy"
            )
        return f"copy the data folder as it is, then `palimpsest restore {quote(paths[-1])}`"

    def _specs(self, ledger: Ledger, memories: Sequence[str] | None) -> list[str]:
        """The memories to look at: those named or usual, and others that were used once."""
        specs = list(DEFAULT_MEMORIES if memories is None else memories)
        named = {parse_spec(spec)[0] for spec in specs}
        for name in sorted(ledger.upkeep.followers() - named):
            if name in MEMORIES:
                specs.append(name)
            else:
                self._say(f"store {name}", "note", "it is not known here and was not looked at")
        return specs

    def _store(self, ledger: Ledger, spec: str) -> None:
        care = Care(ledger, spec, self._context)
        part = f"store {care.name}"
        if care.unused and not self._fix:
            self._say(part, "note", "it was not used yet")
            return
        trouble = care.look()
        mend = self._fix and not trouble.passing and (trouble.found or self._anew)
        before = "; ".join(trouble.found) or "nothing was wrong with it"
        if mend:
            try:
                care.mend(anew=trouble.broken or self._anew)
                trouble = care.look()
            except StoreError as error:
                trouble = Trouble(found=(str(error),), passing=True)
        for what in trouble.found:
            self._say(part, "ill", what, None if self._fix or trouble.passing else MEND)
        if trouble.untried:
            self._say(part, "note", f"a recall could not be tried: {trouble.untried}")
        if mend and not trouble.found:
            self._say(part, "mended", f"in line with the ledger again; before: {before}")
        elif not trouble.found:
            self._say(part, "well", f"holds {len(ledger.held(care.name)):,} records")

    def _erasures(self, ledger: Ledger) -> None:
        for note in ledger.erasures.every("noted", "erased"):
            what = f"erasure {note.id} was cut short"
            self._say("erasures", "note", what, "opening the agent for writing finishes it")

    def _backups(self) -> None:
        try:
            rows = listed(self._home)
        except LedgerError as error:
            self._say("backups", "ill", str(error))
            return
        gone = [row["path"] for row in rows if not Path(row["path"]).exists()]
        missing = f", {len(gone)} no longer where they were: {gone[-1]}" if gone else ""
        newest = f"; the newest is of {rows[-1]['created']}" if rows else ""
        self._say("backups", "note", f"{len(rows)} listed{missing}{newest}")

    def _say(self, part: str, state: State, what: str, remedy: str | None = None) -> None:
        self.findings.append(Finding(part=part, state=state, what=what, remedy=remedy))
