"""What a keeper does with an agent: files in, everything out and in again, backups, accounts.

The verbs only; each one's substance lies in a file of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..memory.backup_file import Backup
from ..memory.backups import Restored, back_up
from ..memory.erasures import Position
from ..memory.home import Home
from ..memory.ledger import Ledger
from ..memory.merging import Taken
from ..memory.record import Record, RecordId, Scope, Source, vouched
from .doctor import Examination, examine, put_back
from .exchange import Exported, export, take_in
from .forgetting import asked_scope
from .ingest import Ingester
from .receipt import Ingested
from .request import turn_scope
from .stats import Stats, stats

if TYPE_CHECKING:
    from ..memory.reading import Progress
    from .background import Background
    from .loop import Loop


class Operations:
    """The part of an agent that looks after its data folder."""

    home: Home
    ledger: Ledger
    scope: Scope
    _background: Background
    _loop: Loop

    def append(self, records: Sequence[Record]) -> None:
        """Store records of your own making, such as a conversation from elsewhere."""
        with self._background.paused():
            self.ledger.append(records)
            self._loop.follow()

    def ingest(
        self,
        path: str | Path,
        *,
        source: Source = "document",
        again: bool = False,
        progress: Progress | None = None,
        cancel: Event | None = None,
        dry_run: bool = False,
        **options: Any,
    ) -> Ingested:
        """Take in a file, or a folder of files: text, Markdown, HTML and PDF as passages, the
        exports of mem0 and Letta as facts. Taking the same in again adds nothing; what was cut
        short goes on where it ended; what was forgotten here stays out.

        Args:
            source: whom it speaks for, which is what it is trusted as. What is in and trusted less
                gets a version that is trusted so.
            again: take in what was forgotten here, too.
            progress: called as (bytes done, bytes expected).
            cancel: set it from another thread to end early.
            dry_run: add nothing; the receipt says what would be added.
            options: with `session=`, everything goes into that one; else documents go into one
                named by their content, and memories into one named by their system.

        Raises:
            InputError: the file cannot be read. In a folder, such a file is listed instead.
        """
        return Ingester(
            ledger=self.ledger,
            keep=None if dry_run else self.append,
            scope=asked_scope(self.scope, options),
            source=source,
            again=again,
            progress=progress,
            cancel=cancel or Event(),
        ).run(Path(path))

    def read_ahead(
        self, *, progress: Progress | None = None, cancel: Event | None = None, **options: Any
    ) -> dict[str, dict[str, Any]]:
        """Let the session's caches read what was said or taken in since they last read, so that
        the next answer does not wait for it. Returns each one's account of itself, by its name.

        Args:
            progress: called as (tokens read, tokens to read).
            cancel: set it from another thread to end early; the rest is read before the next reply.
        """
        scope = turn_scope(self.scope, options)
        with self._background.paused():
            self._loop.follow()
            read = self._loop.read_ahead(scope, progress, cancel)
        return {each.memory: dict(each.explain) for each in read}

    def quarantined(self, **options: Any) -> list[Record]:
        """What documents and tools said that gives orders, oldest first: kept in the ledger and
        given to no memory. `meta["quarantined"]` says why."""
        scope = asked_scope(self.scope, options)
        return self.ledger.records(scope, current_only=True, quarantined=True)

    def release(self, record: str, **options: Any) -> Record:
        """Let memories have a record that is in quarantine, trusted as its source is; returns the
        version that they are given. To be rid of it instead, `forget` it.

        Raises:
            InputError: it is not in quarantine, or not any more.
            RecordNotFound: there is no such record.
        """
        held = self.ledger.get(RecordId(record), asked_scope(self.scope, options))
        if held.trust or not held.current:
            raise InputError(
                f"record={record!r} is not in quarantine; `quarantined()` lists those that are"
            )
        freed = vouched(held, held.source)
        with self._background.paused():
            self.ledger.append([freed], screened=False)
            self._loop.follow()
        return freed

    def export_to(self, path: str | Path, *, replace: bool = False, **options: Any) -> Exported:
        """Write the whole ledger to a file of JSON lines, or with `user=`, `session=` or the like
        a part of it. `import_from` reads it back.

        Args:
            replace: the file may be there already.

        Raises:
            ConfigError: it is there already. InputError: it cannot be written.
        """
        scope = asked_scope(self.scope, options) if options else None
        return export(self.ledger, Path(path), scope, replace=replace)

    def import_from(self, path: str | Path) -> Taken:
        """Take in what `export_to` wrote: a whole ledger exactly, if this one is empty; else the
        records that are not here yet. All or nothing.

        Raises:
            InputError: the file is damaged. LedgerError: an id stands here for other content.
        """
        with self._background.paused():
            taken = take_in(self.ledger, Path(path))
            self._loop.follow()
        return taken

    def backup(self, where: str | Path) -> Backup:
        """Write a consistent copy of the data folder to a file, or to a new one in a folder, while
        it is in use. It is noted in the data folder: what is forgotten later is still in it.

        Raises:
            ConfigError: the file is there already, or the ledger lies on a server.
            LedgerError: it cannot be written.
        """
        with self._background.paused(), self._loop.stores:
            return back_up(self.home, self.ledger, Path(where))

    @classmethod
    def restore(
        cls,
        file: str | Path,
        *,
        home: str | Path | None = None,
        replace: bool = False,
        dry_run: bool = False,
        **how: Any,
    ) -> tuple[Restored, Examination | None]:
        """Put a backup in the place of what a data folder holds, after checking all of it, and
        bring the stores in line. Nobody may have the folder open.

        Args:
            replace: the folder may hold records; they are lost.
            dry_run: only check the backup, and say what it would replace.
            how: as for `doctor`.

        Raises:
            ConfigError: the folder holds records. InputError, ChainBroken: the backup is damaged.
            HomeLocked: the folder is open somewhere.
        """
        return put_back(Path(file), home, replace=replace, dry_run=dry_run, **how)

    @classmethod
    def doctor(
        cls, *, home: str | Path | None = None, fix: bool = False, **how: Any
    ) -> Examination:
        """Look at a data folder and say what is wrong with it; without `fix`, also while somebody
        has it open.

        Args:
            fix: mend the stores. The ledger is never touched.
            how: `memories`, `embedder`, `ledger_url`, `chroma_url`, as for `open`, and `rebuild`,
                to make all stores anew whatever is found.
        """
        return examine(home, fix=fix, **how)

    def stats(self, **options: Any) -> Stats:
        """How many records of what kind, in which sessions, and what they take on disk."""
        return stats(self.home, self.ledger, asked_scope(self.scope, options))

    def verify_chain(self) -> Position:
        """Check that nobody rewrote what happened to the ledger, event by event, and that every
        record says what it said; returns the last event. Note its hash elsewhere: then nobody can
        rewrite all of it either.

        Raises:
            ChainBroken: names the first bad event.
        """
        self.ledger.verify_chain()
        return Position(seq=self.ledger.last_seq(), hash=self.ledger.head())
