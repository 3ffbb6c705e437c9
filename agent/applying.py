"""Keeping edits and having them learnt; whatever comes between, nothing is left half applied.

An edit is a record of the ledger like any other, and editors follow the ledger. Learning holds no
lock that a turn waits for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING

from ..editors.base import EDITOR, Edit, Progress
from ..errors import Cancelled, EditFailed, InputError
from ..memory.record import Record, RecordId, Scope, Source
from .edits import Edited, FailedEdit, StandingEdit, sort_out

if TYPE_CHECKING:
    from ..editors.editor import Editor
    from ..memory.ledger import Ledger
    from .background import Background
    from .loop import Loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Edits that are to hold.

    Args:
        replace: they take the place of those that they contradict.
        many: an edit that fails, or cancelling, is reported and not raised.
    """

    edits: tuple[Edit, ...]
    scope: Scope
    source: Source
    replace: bool
    many: bool = False


@dataclass(frozen=True, slots=True)
class Applier:
    """See the module.

    Args:
        alone: there is one editor; else an edit says which of them it is for.
    """

    ledger: Ledger
    loop: Loop
    background: Background
    alone: bool

    def apply(self, asked: Asked, editor: Editor, progress: Progress, cancel: Event) -> Edited:
        """Keep what is new and have it learnt, with whatever else is pending.

        Raises:
            EditConflict, InputError: nothing was done.
            EditFailed: of an edit that was pending before, or, but for `many`, of these.
            Cancelled: not for `many`.
        """
        with self._sole(editor, cancel):
            self.loop.follow()
            held = standing(self.ledger, editor, asked.scope)
            found = sort_out(asked.edits, held, replace=asked.replace)
            records = {record.id: record for record in self._records(found.new, asked, editor)}
            failed, cancelled = list(found.outdone), False
            try:
                self._keep(records.values(), editor)
                failed += self._learn(records, asked, editor, progress, cancel)
            except Cancelled:
                if not asked.many:
                    raise
                cancelled = True
            finally:
                unlearnt = records.keys() - self._learnt(editor, asked.scope)
                self.erase(unlearnt, asked.scope)
            made = [id for id in records if id not in unlearnt]
        return Edited(
            receipts=tuple(editor.verify(made)),
            skipped=found.known,
            failed=tuple(failed),
            cancelled=cancelled,
        )

    def erase(self, ids: Collection[RecordId], scope: Scope) -> None:
        """Have the ledger and every store hold nothing of these edits."""
        if ids:
            with self.background.paused(), self.loop.stores:
                self.ledger.erase(ids, scope.across_sessions())
                self.loop.follow()

    @contextmanager
    def _sole(self, editor: Editor, cancel: Event) -> Iterator[None]:
        """Nobody else learns inside the block; background work steps aside for it."""
        with self.background.paused():
            sole = editor.sole(cancel)
            sole.__enter__()
        try:
            yield
        finally:
            sole.__exit__(None, None, None)

    def _records(
        self, new: Collection[tuple[Edit, RecordId | None]], asked: Asked, editor: Editor
    ) -> Iterator[Record]:
        for edit, old in new:
            record = edit.record(asked.scope, source=asked.source, supersedes=old)
            meta = record.meta if self.alone else {**record.meta, EDITOR: editor.name}
            yield replace(record, meta=meta)

    def _keep(self, records: Collection[Record], editor: Editor) -> None:
        """Append them, and see that the editor was given them.

        Raises:
            InputError: one is trusted less than what it would replace, or not at all.
        """
        with self.background.paused():
            self.ledger.append(records)
            self.loop.follow()
        held = editor.held()
        for record in records:
            if record.id not in held:
                raise InputError(
                    f"the edit {record.text[:80]!r} gives orders, and its source"
                    f" {record.source!r} may not; nothing of it was kept: let the user make it"
                )

    def _learn(
        self,
        records: dict[RecordId, Record],
        asked: Asked,
        editor: Editor,
        progress: Progress,
        cancel: Event,
    ) -> list[FailedEdit]:
        """Learn all that is pending; returns those of these that cannot be learnt."""
        failed: list[FailedEdit] = []
        while True:
            try:
                editor.learn(progress, cancel)
                return failed
            except EditFailed as error:
                mine = [RecordId(id) for id in error.failed if id in records]
                if not mine:
                    raise EditFailed(
                        f"edit {', '.join(error.failed)}, which was pending, cannot be learnt:"
                        f" {error}; `palimpsest undo` drops it"
                    ) from error
                if not asked.many:
                    raise
                self.erase(mine, asked.scope)
                failed += [FailedEdit(edit=Edit.of(records[id]), why=str(error)) for id in mine]

    def _learnt(self, editor: Editor, scope: Scope) -> set[RecordId]:
        return {held.id for held, learnt in editor.edits(scope) if learnt}


def standing(ledger: Ledger, editor: Editor, scope: Scope) -> list[StandingEdit]:
    """The edits that hold for a user and agent, by age."""
    found = editor.edits(scope)
    records = ledger.find([held.id for held, _ in found], scope.across_sessions())
    created = {record.id: record.created for record in records}
    return [
        StandingEdit(
            id=held.id,
            edit=held.edit,
            editor=editor.name,
            learnt=learnt,
            created=created.get(held.id),
        )
        for held, learnt in found
    ]
