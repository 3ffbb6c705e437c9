"""A memory of requests to forget: it follows the ledger, learns what is new, and attaches what a
turn is about.

It knows methods by their contract. Each request has an artefact of its own, which stays as it is
whatever becomes of the others: undoing one is leaving its artefact out. The texts of a request are
a record beside its own, needed until it is learnt and certified, and then better dropped.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal, Self

from ..editors.base import Progress
from ..editors.lanes import settings
from ..editors.weights_memory import WeightsMemory
from ..errors import CapabilityError, InputError, StoreError, UnlearnFailed
from ..memory.base import Artefact, Capabilities, Erasure, StoreContext
from ..memory.record import Record, RecordId, Scope
from ..memory.screening import UNTRUSTED
from .base import UNLEARNER, Change, Method, Patch, Receipt, Request, Unlearnt, Work
from .certificate import Certificate, certify
from .registry import METHODS
from .shelf import Held, Material, Shelf

if TYPE_CHECKING:
    from ..editors.workbench import Workbench

log = logging.getLogger(__name__)

State = Literal["learnt", "pending", "lost"]
"""Lost: not learnt, for this model at least, and its texts are dropped; it is to be asked again."""


class Unlearner(WeightsMemory):
    """The requests of all scopes under one method; the memory's name is the method's.

    Options are the method's hyper-parameters; they count for what is learnt from now on.
    """

    _shelf: Shelf
    orders = "requests"
    lasting = frozenset({"changes", "begun", "receipts", "model.sha256"})
    capabilities = Capabilities(kinds=frozenset({"request", "material"}), derives=True)

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
        self._take_stock()

    def _take_stock(self) -> None:
        self._held: dict[RecordId, Held] = {each.id: each for each in self._shelf.requests()}
        self._materials: dict[RecordId, Material] = {
            each.id: each for each in self._shelf.materials()
        }

    # Requests come and go.

    def write(self, records: Sequence[Record]) -> list[Artefact]:
        """Take requests and their texts in; see `Memory.write`. They are learnt by `learn`. What is
        for another unlearner is left out, what a document or a tool orders, and what is neither."""
        own = [
            each
            for each in records
            if each.meta.get(UNLEARNER, self.name) == self.name and each.source not in UNTRUSTED
        ]
        taken = []
        with self._lock:
            for record in own:
                try:
                    if record.kind == "request":
                        self._held[record.id] = self._shelf.put(record)
                    else:
                        self._materials[record.id] = self._shelf.put_material(record)
                except InputError as error:  # else it would keep the store from all that follows
                    log.warning("record %s is left out: %s", record.id, error)
                else:
                    taken.append(Artefact(record.id, f"{record.kind}:{record.id}"))
        return taken

    def forget(self, ids: Collection[RecordId]) -> Erasure:
        """Hold nothing of these any more. Of a request: undo it. Of its texts: drop them, and keep
        what was learnt."""
        with self._lock:
            gone = frozenset(ids) & self.held()
            for id in gone:
                self._shelf.drop(id)
                # Of these alone: while the store is made anew others are still to be written.
                self._shelf.unlearn(id)
                self._held.pop(id, None)
                self._materials.pop(id, None)
            self._patches.clear()
            self._forget_changes()
        return Erasure(store=self.name, erased=gone, unknown=frozenset(ids) - gone)

    def clear(self) -> None:
        """Hold nothing. What was learnt stays in its files until `purge`, and is found again if the
        same requests are written: it could not be learnt anew once their texts are dropped."""
        with self._lock:
            for id in self.held():
                self._shelf.drop(id)
            self._held.clear()
            self._materials.clear()
            self._patches.clear()

    def held(self) -> frozenset[RecordId]:
        """Ids of all requests, and of the texts that are not dropped."""
        with self._lock:
            return frozenset(self._held) | frozenset(self._materials)

    def requests(self, scope: Scope) -> list[tuple[Held, State]]:
        """Those of a user and agent, by age."""
        with self._lock:
            return [(held, self._state(held)) for held in self._of(scope)]

    def material(self, id: RecordId) -> Material | None:
        """The texts of a request; None once they are dropped."""
        with self._lock:
            return next((each for each in self._materials.values() if each.request == id), None)

    # Learning.

    def pending(self) -> list[RecordId]:
        """Requests that are still to be learnt, and can be, by age."""
        with self._lock:
            return [id for id in sorted(self._held) if self._state(self._held[id]) == "pending"]

    def learn(
        self, progress: Progress = lambda done, total: None, cancel: Event | None = None
    ) -> list[RecordId]:
        """Learn all that is pending, the oldest first; returns what was learnt.

        Raises:
            Cancelled: `cancel` was set; learning goes on from the last whole pass.
            UnlearnFailed: requests cannot be learnt; `failed` names them. The others are.
        """
        made: list[RecordId] = []
        failures: list[UnlearnFailed] = []
        with self.sole(cancel):
            for id in self.pending():
                material = self.material(id)
                if material is None:  # undone while an earlier one was learnt
                    continue
                try:
                    self.learn_from(id, material.content, progress, cancel)
                except UnlearnFailed as error:  # the others are none the worse
                    failures.append(error)
                else:
                    made.append(id)
        if failures:
            failures[0].failed = tuple(id for each in failures for id in each.failed)
            raise failures[0]
        return made

    def learn_from(
        self,
        id: RecordId,
        request: Request,
        progress: Progress = lambda done, total: None,
        cancel: Event | None = None,
    ) -> None:
        """Learn a request from its texts, which may be written down nowhere; one that is learnt by
        now is left as it is.

        Raises:
            Cancelled, UnlearnFailed: as for `learn`. StoreError: it is not held.
        """
        with self.sole(cancel):
            with self._lock:
                held = self._held.get(id)
                if held is None:
                    raise StoreError(f"request {id} is not held; it was undone meanwhile")
                key = self._key(held)
                if self._change(key) is not None:
                    return
                before = [each for each in self._learnt(held.owner) if each.id < id]
            begun = self._begun_key(key)
            work = Work(
                progress=progress,
                cancel=cancel or Event(),
                begun=self._shelf.begun(begun),
                keep=lambda passes, tensors: self._shelf.begin(begun, passes, tensors),
            )
            try:
                change = self._taught(request, before, work)
                if not change.finite:
                    raise UnlearnFailed(
                        f"what {self.name!r} learnt holds values that are no numbers; choose a"
                        " lower rate"
                    )
            except UnlearnFailed as error:
                self._shelf.end(id)
                error.failed = (id,)
                raise
            with self._lock:
                if id in self._held:  # else it was undone meanwhile
                    self._shelf.keep(key, change)
                    self._changes[key] = change
                self._shelf.end(id)

    def _taught(self, request: Request, before: Sequence[Unlearnt], work: Work) -> Change:
        with self._lock:  # a turn that is being routed has layers of the bench's model out
            bench = self._at_work().second()
        return self.method.learn(bench, request, before, work)

    # Answering.

    def _patch(self, scope: Scope) -> tuple[Patch | None, int]:
        owner = scope.across_sessions()
        with self._lock:
            learnt = self._learnt(owner) if self._able else []
            if not learnt:
                return None, 0
            keys = tuple(self._key(self._held[each.id]) for each in learnt)
            known, patch = self._patches.get(owner, ((), None))
            if patch is None or known != keys:
                patch = self._made(self._at_work, learnt)
                self._patches[owner] = keys, patch
            return patch, len(learnt)

    @property
    def _able(self) -> bool:
        """Whether there is what a patch is made with."""
        return self._bench is not None

    def _made(self, bench: Callable[[], Workbench], learnt: Sequence[Unlearnt]) -> Patch:
        return self.method.patch(bench(), learnt)

    # What shows it.

    def receipt(self, id: RecordId) -> Receipt:
        """What became of a request.

        Raises:
            StoreError: it is not held, or not learnt yet.
        """
        with self._lock:
            held, change = self._known(id)
            noted = self._shelf.receipt(id) or {}
            mine = noted.get("of") == self._key(held)  # else it is of what another model learnt
        certificate = noted.get("certificate") if mine else None
        made = Certificate.parse(certificate) if isinstance(certificate, dict) else None
        return Receipt(
            id=id,
            name=held.name,
            reason=held.reason,
            method=settings(self.method),
            means=self.method.means,
            samples=len(held.fingerprints),
            seconds=change.seconds,
            curve=change.curve,
            bytes=change.nbytes,
            gate=dict(change.numbers),
            certificate=made,
            dropped=str(noted["dropped"]) if noted.get("dropped") else None,
            advice=" ".join(made.advice) if made else "",
        )

    def learnt(self, id: RecordId) -> Change:
        """What was learnt of a request.

        Raises:
            StoreError: it is not held, or not learnt yet.
        """
        with self._lock:
            return self._known(id)[1]

    @property
    def attackable(self) -> bool:
        """Whether the model's weights are in this process, so that it can be attacked."""
        try:
            return bool(self._at_work())
        except CapabilityError:
            return False

    def certify(self, id: RecordId, request: Request, **how: Any) -> Receipt:
        """Attack what was learnt with the texts it was learnt from, and keep the numbers.

        Args:
            how: see `certificate.certify`.

        Raises:
            Cancelled: nothing was kept. StoreError: it is not held, or not learnt yet.
            InputError: these are other texts.
        """
        with self._lock:
            held, _ = self._known(id)
            held.check(request)
            key = self._key(held)
            bench = self._at_work().second()
            patch = self._made(lambda: bench, self._learnt(held.owner))
        made = certify(bench, patch, request, **how)
        self._note(id, certificate=made.plain(), of=key)
        return self.receipt(id)

    def note_dropped(self, id: RecordId, report: str) -> None:
        """Keep which signed report says that the texts of a request are in no file."""
        self._note(id, dropped=report)

    def _note(self, id: RecordId, **more: object) -> None:
        with self._lock:
            if id not in self._held:  # undone meanwhile
                return
            self._shelf.certify(id, {**(self._shelf.receipt(id) or {}), **more})

    # What follows from the requests that are held.

    def _of(self, scope: Scope) -> list[Held]:
        owner = scope.across_sessions()
        return [held for _, held in sorted(self._held.items()) if held.owner == owner]

    def _state(self, held: Held) -> State:
        if self._change(self._key(held)) is not None:
            return "learnt"
        return "pending" if self.material(held.id) else "lost"

    def _known(self, id: RecordId) -> tuple[Held, Change]:
        held = self._held.get(id)
        change = self._change(self._key(held)) if held else None
        if held is None or change is None:
            state = "is not learnt yet" if held else "is not held"
            raise StoreError(f"request {id} {state}; `palimpsest unlearned` lists those there are")
        return held, change

    def _learnt(self, owner: Scope) -> list[Unlearnt]:
        return [
            Unlearnt(id=held.id, name=held.name, change=change)
            for held in self._of(owner)
            if (change := self._change(self._key(held))) is not None
        ]

    def _key(self, held: Held) -> str:
        """Under which what is learnt of a request lies, or will lie. Not of the method's options:
        what was learnt with others holds, and could not be learnt again without the texts."""
        content = [self._fingerprint, self.method.name, held.id, held.name, *held.fingerprints]
        return f"{held.id}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:40]}"

    def _begun_key(self, key: str) -> str:
        """Under which lies how far learning has come, by the options in use: an adapter of another
        shape cannot be gone on with."""
        options = json.dumps(settings(self.method), sort_keys=True)
        return f"{key}-{hashlib.sha256(options.encode()).hexdigest()[:16]}"

    # As every store.

    def digest(self) -> str:
        """SHA-256, hex, of the requests, the texts that are left, and what was learnt; certificates
        are measurements, and no part of it."""
        seal = hashlib.sha256()
        with self._lock:
            for id, held in sorted(self._held.items()):
                change = self._change(self._key(held))
                seal.update(f"{id} {_plain(held)} {change.digest if change else ''}".encode())
            for id, material in sorted(self._materials.items()):
                seal.update(f"{id} {_plain(material)}".encode())
        return seal.hexdigest()

    def save(self, path: Path) -> None:
        """Write all folders of the store."""
        with self._lock:
            self._shelf.copy(path)

    def load(self, path: Path) -> None:
        """Replace everything by what `save` wrote, or nothing and raise StoreError."""
        with self._lock:
            self._shelf.replace(path)
            self._take_stock()
            self._changes.clear()
            self._patches.clear()

    def purge(self, *, rewrite: bool = True) -> None:
        """Leave no file of what is not held. What was learnt of a request for another model
        stays: it could not be learnt again."""
        with self._lock:
            self._shelf.keep_only(self._held.keys())
            self._forget_changes()

    def _forget_changes(self) -> None:
        wanted = {self._key(held) for held in self._held.values()}
        self._changes = {key: self._changes[key] for key in self._changes.keys() & wanted}

    def marks(self, ids: Collection[RecordId] | None = None) -> Iterator[bytes]:
        """The first bytes of what was learnt of each request."""
        with self._lock:
            for id in self._held if ids is None else self._held.keys() & frozenset(ids):
                if (change := self._change(self._key(self._held[id]))) is not None:
                    yield from change.marks


def _plain(value: Held | Material) -> str:
    return json.dumps(asdict(value), sort_keys=True, ensure_ascii=False)
