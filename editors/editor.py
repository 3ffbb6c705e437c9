"""A memory of edits: it follows the ledger, learns what is new, and attaches what a turn is about.

It knows methods by their contract. What is attached is always a function of the edits that hold, by
age, so undoing any of them in any order leaves what applying only the rest would have made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Self

from ..errors import EditFailed, StoreError
from ..memory.base import Artefact, Capabilities, Erasure, StoreContext
from ..memory.record import Record, RecordId, Scope
from .base import EDITOR, Change, Learnt, Method, Patch, Progress, Receipt
from .lanes import Step, lanes, settings
from .receipts import receipts
from .registry import METHODS
from .shelf import Held, Shelf
from .weights_memory import WeightsMemory

if TYPE_CHECKING:
    from .workbench import Workbench


class Editor(WeightsMemory):
    """The edits of all scopes under one method; the memory's name is the method's.

    Options are the method's hyper-parameters. Safe to use from several threads; learning is done by
    one at a time, beside turns.
    """

    _shelf: Shelf
    orders = "edits"
    capabilities = Capabilities(kinds=frozenset({"edit"}), derives=True)

    @classmethod
    def open(cls, name: str, context: StoreContext, options: Mapping[str, Any]) -> Self:
        """Open the store in `context.folder`.

        Raises:
            ConfigError: no such option, or one breaks a rule.
        """
        return cls(name, context, METHODS.build(name, **options))

    def __init__(self, name: str, context: StoreContext, method: Method) -> None:
        super().__init__(name, context, Shelf(context.folder, read_only=context.read_only))
        self.method = method
        self._held: dict[RecordId, Held] = {held.id: held for held in self._shelf.edits()}
        self._plan: tuple[str, list[Step]] | None = None

    # Edits come and go.

    def write(self, records: Sequence[Record]) -> list[Artefact]:
        """Take edits in; see `Memory.write`. They are learnt by `learn`, and attached from then
        on. One that is for another editor is left out."""
        own = [each for each in records if each.meta.get(EDITOR, self.name) == self.name]
        with self._lock:
            for record in own:
                self._held[record.id] = self._shelf.put(record)
            self._plan = None
        return [Artefact(record.id, f"edit:{record.id}") for record in own]

    def forget(self, ids: Collection[RecordId]) -> Erasure:
        """Hold nothing of these edits any more: undo them. Edits of the same lane that were learnt
        on top of them are detached, and are to be learnt again."""
        with self._lock:
            before = self._wanted()
            gone = frozenset(ids) & self._held.keys()
            for id in gone:
                self._shelf.drop(id)
                del self._held[id]
            self._plan = None
            self._patches.clear()
            after = self._wanted()
            self._sweep()
        again = [id for id, key in after.items() if before.get(id) != key]
        return Erasure(
            store=self.name,
            erased=gone,
            unknown=frozenset(ids) - gone,
            rebuilt=tuple(f"edit:{id}" for id in again),
        )

    def clear(self) -> None:
        """Hold nothing."""
        self.forget(self.held())

    def held(self) -> frozenset[RecordId]:
        """Ids of all edits, those that a newer one supersedes included."""
        with self._lock:
            return frozenset(self._held)

    def edits(self, scope: Scope) -> list[tuple[Held, bool]]:
        """The edits that hold for a user and agent, by age, each with whether it is learnt."""
        with self._lock:
            wanted = self._wanted()
            return [
                (held, self._change(wanted[held.id]) is not None)
                for held in self._holding()
                if held.owner == scope.across_sessions()
            ]

    # Learning.

    def pending(self) -> list[RecordId]:
        """Edits that hold and are still to be learnt, by age."""
        with self._lock:
            return [id for id, key in self._wanted().items() if self._change(key) is None]

    def learn(
        self, progress: Progress = lambda done, total: None, cancel: Event | None = None
    ) -> list[RecordId]:
        """Learn all that is pending, the oldest first; returns what was learnt.

        Raises:
            Cancelled: `cancel` was set; what was learnt until then stays.
            EditFailed: an edit cannot be learnt; `failed` names those that were learnt together.
        """
        cancel = cancel or Event()
        made: list[RecordId] = []
        with self.sole(cancel):
            total = len(self.pending())
            if not total:
                return made
            with self._lock:  # a turn that is being routed has layers of the bench's model out
                bench = self._at_work().second()
            while (found := self._next()) is not None:
                step, before = found
                done = len(made)

                def within(part: int, parts: int, step: Step = step, done: int = done) -> None:
                    share = part / max(parts, 1) * len(step.edits)
                    progress(round(100 * (done + share)), 100 * max(total, done + len(step.edits)))

                changes = self._learn(bench, step, before, within, cancel)
                with self._lock:
                    wanted = frozenset(self._wanted().values())
                    for held, key, change in zip(step.edits, step.keys, changes, strict=True):
                        if key in wanted:  # else it was undone meanwhile
                            self._shelf.keep(key, change)
                            self._changes[key] = change
                            made.append(held.id)
            with self._lock:
                self._sweep()  # not before: what a failing edit was to replace holds again
        return made

    def _learn(
        self,
        bench: Workbench,
        step: Step,
        before: Sequence[Learnt],
        progress: Progress,
        cancel: Event,
    ) -> list[Change]:
        edits = [held.edit for held in step.edits]
        try:
            bench.check(edits)
            changes = self.method.learn(bench, edits, before, progress, cancel)
            if not all(change.finite for change in changes):
                raise EditFailed(
                    f"what {self.name!r} learnt holds values that are no numbers; choose a lower"
                    " rate, or undo edits"
                )
        except EditFailed as error:
            error.failed = tuple(h.id for h in step.edits if error.edit in (None, h.edit))
            raise
        return changes

    def _next(self) -> tuple[Step, list[Learnt]] | None:
        """The next edits that are to be learnt together, and what was learnt of those before them
        in their lane."""
        with self._lock:
            for step in self._steps():
                if any(self._change(key) is None for key in step.keys):
                    return step, [
                        Learnt(id=held.id, edit=held.edit, change=change)
                        for held, key in step.before
                        if (change := self._change(key)) is not None  # as lanes go in order
                    ]
        return None

    # Answering.

    def _patch(self, scope: Scope) -> tuple[Patch | None, int]:
        owner = scope.across_sessions()
        with self._lock:
            if self._bench is None:
                return None, 0
            wanted = self._wanted()
            learnt = self._learnt(owner, wanted)
            keys = tuple(wanted[each.id] for each in learnt)
            if not learnt:
                return None, 0
            known, patch = self._patches.get(owner, ((), None))
            if patch is None or known != keys:
                patch = self.method.patch(self._bench, learnt)
                self._patches[owner] = keys, patch
            return patch, len(learnt)

    def learnt(self, scope: Scope) -> list[Learnt]:
        """What was learnt of the edits that hold for a user and agent, by age."""
        with self._lock:
            return self._learnt(scope.across_sessions(), self._wanted())

    def _learnt(self, owner: Scope, wanted: Mapping[RecordId, str]) -> list[Learnt]:
        return [
            Learnt(id=held.id, edit=held.edit, change=change)
            for held in self._holding()
            if held.owner == owner and (change := self._change(wanted[held.id])) is not None
        ]

    def verify(self, ids: Collection[RecordId]) -> list[Receipt]:
        """Ask the model again about these edits, without them and with all that hold.

        Raises:
            StoreError: one is not held, or still to be learnt.
        """
        with self._lock:
            bench = self._at_work().second()
            wanted = self._wanted()
            found: dict[Scope, list[Learnt]] = {}
            for id in ids:
                held = self._held.get(id)
                change = self._change(wanted[id]) if id in wanted else None
                if held is None or change is None:
                    state = "is not learnt yet" if id in wanted else "does not hold"
                    raise StoreError(f"edit {id} {state}; `palimpsest edits` lists those that do")
                found.setdefault(held.owner, []).append(
                    Learnt(id=id, edit=held.edit, change=change)
                )
            # Built at a bench of their own: turns are routed at the other one meanwhile.
            patches = {
                owner: self.method.patch(bench, self._learnt(owner, wanted)) for owner in found
            }
        made = {
            receipt.id: receipt
            for owner, learnt in found.items()
            for receipt in receipts(bench, settings(self.method), learnt, patches[owner])
        }
        return [made[id] for id in ids]

    # What follows from the edits that hold.

    def _holding(self) -> list[Held]:
        """Edits that no other one supersedes, by age."""
        superseded = {held.supersedes for held in self._held.values()}
        return [self._held[id] for id in sorted(self._held) if id not in superseded]

    def _steps(self) -> list[Step]:
        """All steps; kept, since a turn asks for them and hashing a thousand edits takes long."""
        model = self._fingerprint
        if self._plan is None or self._plan[0] != model:
            self._plan = model, list(lanes(self.method, model, self._holding()))
        return self._plan[1]

    def _wanted(self) -> dict[RecordId, str]:
        """The key under which what is learnt of each edit that holds lies, or will lie."""
        return {
            held.id: key
            for step in self._steps()
            for held, key in zip(step.edits, step.keys, strict=True)
        }

    def _sweep(self) -> None:
        """Keep only what follows from the edits that hold."""
        wanted = frozenset(self._wanted().values())
        self._shelf.sweep(wanted)
        self._changes = {key: self._changes[key] for key in self._changes.keys() & wanted}

    # As every store.

    def digest(self) -> str:
        """SHA-256, hex, of the edits and of what was learnt of them."""
        seal = hashlib.sha256()
        with self._lock:
            wanted = self._wanted()
            for id in sorted(self._held):
                held = self._held[id]
                content = [id, asdict(held.scope), asdict(held.edit), held.supersedes]
                seal.update(json.dumps(content, ensure_ascii=False, sort_keys=True).encode())
                change = self._change(wanted[id]) if id in wanted else None
                if change is not None:
                    seal.update(change.digest.encode())
        return seal.hexdigest()

    def save(self, path: Path) -> None:
        """Write the folders `edits` and `changes`."""
        with self._lock:
            self._shelf.copy(path)

    def load(self, path: Path) -> None:
        """Replace everything by what `save` wrote, or nothing and raise StoreError."""
        with self._lock:
            self._shelf.replace(path)
            self._held = {held.id: held for held in self._shelf.edits()}
            self._plan = None
            self._changes.clear()
            self._patches.clear()

    def marks(self, ids: Collection[RecordId] | None = None) -> Iterator[bytes]:
        """The first bytes of what was learnt of each edit."""
        with self._lock:
            wanted = self._wanted()
            for id in wanted if ids is None else wanted.keys() & ids:
                if (change := self._change(wanted[id])) is not None:
                    yield from change.marks
