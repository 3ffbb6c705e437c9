"""What a user does to the weights: edits that are made, listed, verified, undone and exported.

The verbs only: what an edit is and how it is learnt lies in `editors`, and is learnt beside turns,
under no lock that a turn waits for.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..editors.base import Edit, Receipt
from ..errors import CapabilityError, ConfigError, InputError
from ..memory.record import RecordId, Scope, Source
from ..memory.registry import DEFAULT_EDITORS, DEFAULT_MEMORIES
from .applying import Applier, Asked, standing
from .edits import Edited, StandingEdit, Undone, sort_out
from .forgetting import asked_scope
from .jobs import Job, Progress

if TYPE_CHECKING:
    from ..editors.editor import Editor
    from ..llm.base import LLM
    from ..memory.base import Memory
    from ..memory.ledger import Ledger
    from .background import Background
    from .loop import Loop

T = TypeVar("T")


class Editing:
    """The part of an agent that edits facts in the weights."""

    ledger: Ledger
    llm: LLM
    memories: tuple[Memory, ...]
    scope: Scope
    _background: Background
    _loop: Loop
    _resources: ExitStack
    _erase: Callable[[Sequence[RecordId], Scope], None]

    @property
    def editors(self) -> tuple[Editor, ...]:
        """The memories that edit weights."""
        found = [each for each in self.memories if "edit" in each.capabilities.kinds]
        return tuple(cast("list[Editor]", found))

    def edit(
        self,
        prompt: str,
        target: str,
        *,
        subject: str | None = None,
        paraphrases: Iterable[str] = (),
        locality: Iterable[tuple[str, str]] = (),
        source: Source = "user",
        replace: bool = False,
        editor: str | None = None,
        progress: Progress | None = None,
        cancel: Event | None = None,
        **options: Any,
    ) -> Receipt:
        """Have `prompt` answered with `target` from now on, by a change of the weights. The model
        answers by it when this returns, and the receipt says how well. One that holds already is
        only verified.

        Args:
            prompt, target, subject, paraphrases, locality: see `Edit`.
            source: whom it speaks for, which is what it is trusted as.
            replace: take the place of an edit that it contradicts.
            editor: name of the memory that is to have it, where there are several.
            progress: called as (steps done, steps expected).
            cancel: set it from another thread to end early.

        Raises:
            EditConflict: it contradicts an edit that holds.
            EditFailed, Cancelled: and nothing of it is kept.
            InputError: prompt or target cannot be used, or what it would replace is trusted more.
            ConfigError: no memory can edit, or which of several is not said.
        """
        edit = Edit(
            prompt=prompt,
            target=target,
            subject=subject,
            paraphrases=tuple(paraphrases),
            locality=tuple((other, answer) for other, answer in locality),
        )
        chosen, scope = self._editor(editor), asked_scope(self.scope, options)
        asked = Asked(edits=(edit,), scope=scope, source=source, replace=replace)
        done = self._applier.apply(asked, chosen, progress or _quiet, cancel or Event())
        return done.receipts[0] if done.receipts else chosen.verify(done.skipped)[0]

    def edit_many(
        self,
        edits: Iterable[Edit],
        *,
        source: Source = "user",
        replace: bool = False,
        editor: str | None = None,
        progress: Progress | None = None,
        cancel: Event | None = None,
        dry_run: bool = False,
        **options: Any,
    ) -> Edited:
        """Make many edits; one that cannot be learnt does not keep the others from it. Those that
        hold already are skipped, so giving the same again goes on where it ended.

        Args:
            dry_run: learn nothing; say which would be.

        Raises:
            EditConflict, InputError, ConfigError: as for `edit`; and nothing was done.
        """
        chosen, scope = self._editor(editor), asked_scope(self.scope, options)
        asked = Asked(edits=tuple(edits), scope=scope, source=source, replace=replace, many=True)
        if dry_run:
            found = sort_out(asked.edits, self._standing(chosen, scope), replace=replace)
            planned = tuple(edit for edit, _ in found.new)
            return Edited(planned=planned, skipped=found.known, failed=found.outdone)
        return self._applier.apply(asked, chosen, progress or _quiet, cancel or Event())

    def start_edit(self, prompt: str, target: str, **how: Any) -> Job[Receipt]:
        """`edit`, as a job beside whatever else is done; closing the agent cancels it."""
        return self._start(
            lambda progress, cancel: self.edit(
                prompt, target, progress=progress, cancel=cancel, **how
            )
        )

    def start_edits(self, edits: Iterable[Edit], **how: Any) -> Job[Edited]:
        """`edit_many`, as a job."""
        return self._start(
            lambda progress, cancel: self.edit_many(edits, progress=progress, cancel=cancel, **how)
        )

    def resume_edits(
        self, *, progress: Progress | None = None, cancel: Event | None = None
    ) -> tuple[RecordId, ...]:
        """Learn the edits that hold and are not learnt, after a crash for one, or with another
        model or other options; returns which. Background work does so by itself.

        Raises:
            Cancelled: what was learnt until then stays.
            EditFailed: one cannot be learnt; names it.
        """
        self._loop.follow()
        return tuple(id for each in self.editors for id in each.learn(progress or _quiet, cancel))

    def edits(self, *, editor: str | None = None, **options: Any) -> list[StandingEdit]:
        """All edits that hold for the user, oldest first, of all editors or of one."""
        scope = asked_scope(self.scope, options)
        chosen = self.editors if editor is None else (self._editor(editor),)
        return [standing for each in chosen for standing in self._standing(each, scope)]

    def verify_edits(
        self, ids: Collection[str] | None = None, *, editor: str | None = None, **options: Any
    ) -> list[Receipt]:
        """Ask the model again about edits, all that are learnt or these.

        Raises:
            StoreError: one does not hold, or is not learnt yet.
        """
        found = self.edits(editor=editor, **options)
        learnt = [each.id for each in found if each.learnt]
        wanted = learnt if ids is None else [RecordId(id) for id in ids]
        holder = {each.id: each.editor for each in found}
        if strange := [id for id in wanted if id not in holder]:
            raise InputError(f"{strange} are no edits that hold; `palimpsest edits` lists those")
        receipts = [
            receipt
            for each in self.editors
            for receipt in each.verify([id for id in wanted if holder[id] == each.name])
        ]
        return sorted(receipts, key=lambda receipt: wanted.index(receipt.id))

    def undo(
        self,
        *ids: str,
        progress: Progress | None = None,
        cancel: Event | None = None,
        **options: Any,
    ) -> Undone:
        """Undo edits and requests to unlearn: what is left is, bit for bit, what applying only the
        other edits would have made; other requests stay as they are. An edit that one of them
        replaced holds again. What was said meanwhile stays said; to erase all that came of an
        edit, `forget` it.

        Raises:
            InputError: no id, or the id of something else. RecordNotFound: there is no such record.
            EditFailed, Cancelled: they are undone, and what has to be learnt again is not yet.
        """
        began = time.perf_counter()
        scope = asked_scope(self.scope, options).across_sessions()
        asked = [self.ledger.get(RecordId(id), scope) for id in dict.fromkeys(ids)]
        strange = [record.id for record in asked if record.kind not in ("edit", "request")]
        if strange or not asked:
            raise InputError(
                f"ids={strange} are no edits and no requests; `palimpsest edits` and `palimpsest"
                " unlearned` list those there are"
            )
        gone = tuple(record.id for record in asked)
        learnt = {each.id for each in self.edits(**options) if each.learnt}
        self._applier.erase([each.id for each in asked if each.kind == "edit"], scope)
        self._erase([each.id for each in asked if each.kind == "request"], scope)
        made = [id for each in self.editors for id in each.learn(progress or _quiet, cancel)]
        again = tuple(id for id in made if id in learnt)
        return Undone(ids=gone, again=again, seconds=time.perf_counter() - began)

    def export_model(
        self, folder: str | Path, *, editor: str | None = None, **options: Any
    ) -> Path:
        """Write a checkpoint with the user's edits in its weights, to be served elsewhere:
        safetensors and tokenizer, which plain transformers opens.

        Raises:
            CapabilityError: the edits lie behind a gate, which no checkpoint can hold.
            InputError: there are no edits. ConfigError: the folder is there already.
        """
        from ..editors.checkpoint import exporting, write_checkpoint

        chosen, scope = self._editor(editor), asked_scope(self.scope, options)
        chosen.learn()
        patch = chosen.patch(scope)
        if patch is None:
            raise InputError("no edit holds, so there is nothing to export; make one first")
        changes = patch.merged()
        if changes is None:
            raise CapabilityError(
                f"memory {chosen.name!r} decides for each prompt which edit applies, and a"
                f" checkpoint holds no such gate; methods that can be exported: {exporting()}"
            )
        model, tokenizer = self.llm.model, self.llm.tokenizer  # type: ignore[attr-defined]
        return write_checkpoint(model, tokenizer, changes, Path(folder))

    # How it is done.

    def _editor(self, name: str | None) -> Editor:
        """The editor of that name, or the only one."""
        found = {each.name: each for each in self.editors}
        if not found:
            usual = [*DEFAULT_MEMORIES, *DEFAULT_EDITORS]
            raise ConfigError(
                f"no memory here can edit the weights of {self.llm.name!r}; open a model in this"
                f" process with memories={usual}, or on the command line with --memory for each,"
                " or --editor"
            )
        if name is None and len(found) > 1:
            raise ConfigError(f"several memories can edit, {sorted(found)}; name one as editor=")
        if name is not None and name not in found:
            raise ConfigError(f"editor={name!r} is not open; open are {sorted(found)}")
        return found[name] if name is not None else next(iter(found.values()))

    def _standing(self, editor: Editor, scope: Scope) -> list[StandingEdit]:
        return standing(self.ledger, editor, scope)

    @property
    def _applier(self) -> Applier:
        return Applier(self.ledger, self._loop, self._background, alone=len(self.editors) < 2)

    def _start(self, work: Callable[[Progress, Event], T]) -> Job[T]:
        job = Job(work)
        self._resources.callback(_close, weakref.ref(job))
        return job


def _close(job: weakref.ref[Job[Any]]) -> None:
    if (running := job()) is not None:
        running.close()


def _quiet(done: int, expected: int) -> None:
    """Tell nobody."""
