"""What memories that patch the weights have in common: a bench, one learner at a time, a patch for
each user that is opened by a turn's message.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Event, RLock
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import Cancelled, CapabilityError, EditError, UnlearnError
from ..llm.open import UnopenedLLM
from ..llm.places import Place, Weights
from ..memory.base import Cue, Memory, StoreContext
from ..memory.record import Record, Scope
from .base import Change, Patch, Progress
from .changes import Changes
from .workbench import Workbench

if TYPE_CHECKING:
    from ..llm.base import LLM
    from ..memory.record import RecordId

log = logging.getLogger(__name__)


class WeightsMemory(Memory):
    """See the module. Safe to use from several threads; learning is done by one at a time, beside
    turns."""

    place: ClassVar[Place] = "weights"
    orders: ClassVar[str]
    """What it holds, as it says in the trace of a turn."""

    def __init__(self, name: str, context: StoreContext, shelf: Changes) -> None:
        self.name = name
        self._context = context
        self._lock, self._learning = RLock(), RLock()
        self._shelf = shelf
        self._changes: dict[str, Change] = {}
        self._patches: dict[Scope, tuple[tuple[str, ...], Patch]] = {}
        self._bench: Workbench | None = None
        if not isinstance(context.llm, UnopenedLLM):
            self._bench = self._workbench(context.llm)

    def _workbench(self, llm: LLM) -> Workbench | None:
        model, tokenizer = getattr(llm, "model", None), getattr(llm, "tokenizer", None)
        if model is None or tokenizer is None:
            return None
        return Workbench(model, tokenizer, self._context.folder / "model")

    def check_model(self, llm: LLM) -> None:
        """That its weights are in this process, and that it has a matrix to be changed.

        Raises:
            CapabilityError: it has not.
        """
        self._at_work().down(0)

    def _at_work(self) -> Workbench:
        if self._bench is None:
            self._bench = self._workbench(self._context.llm)
        if self._bench is None:
            raise CapabilityError(
                f"memory {self.name!r} changes weights, and those of {self._context.llm.name!r} are"
                " not in this process; open a local model"
            )
        return self._bench

    @contextmanager
    def sole(self, cancel: Event | None = None) -> Iterator[None]:
        """Nobody else learns inside the block, so that who writes orders is who learns them.

        Raises:
            Cancelled: `cancel` was set while somebody else was learning.
        """
        while not self._learning.acquire(timeout=0.05):
            if cancel is not None and cancel.is_set():
                raise Cancelled("it was cancelled before it began; nothing of it was kept")
        try:
            yield
        finally:
            self._learning.release()

    @abstractmethod
    def learn(
        self, progress: Progress = lambda done, total: None, cancel: Event | None = None
    ) -> list[RecordId]:
        """Learn all that is pending, the oldest first; returns what was learnt."""

    def derive(self, cancel: Event) -> Iterator[Record]:
        """Learn what is pending between turns, unless somebody is learning it already; it leads to
        no records."""
        if self._learning.acquire(blocking=False):
            try:
                self.learn(cancel=cancel)
            except Cancelled:
                return
            except (EditError, UnlearnError) as error:  # it stays pending; others have work to do
                failed = getattr(error, "failed", ())
                log.warning("%s: %s is not learnt: %s", self.name, ", ".join(failed), error)
            finally:
                self._learning.release()
        yield from ()

    def recall(self, cue: Cue) -> Weights:
        """The patch that the message opens, if any."""
        with self._lock:  # one prompt at a time is routed by the bench's model
            patch, count = self._patch(cue.scope)
            if patch is None:
                return Weights(memory=self.name, layers=frozenset(), open=lambda ids: {})
            opened = patch.open([cue.message])
            why: Mapping[str, Any] = patch.explain(cue.message)
        behind = tuple(verdict.entry for verdict in opened.verdicts if verdict)
        return Weights(
            memory=self.name,
            layers=frozenset(opened.deltas),
            adds=patch.adds,
            records=behind,
            explain={self.orders: count, **why},
            open=lambda ids: opened.deltas,
        )

    def patch(self, scope: Scope) -> Patch | None:
        """All that was learnt for a user and agent as one patch; None if there is nothing, or no
        model is open."""
        return self._patch(scope)[0]

    @abstractmethod
    def _patch(self, scope: Scope) -> tuple[Patch | None, int]:
        """The patch, and how many orders are in it."""

    # What was learnt, in memory and in files.

    @property
    def _fingerprint(self) -> str:
        """Of the model in use; without one, of that which the changes were learnt with."""
        if self._bench is None:
            return self._shelf.fingerprint
        if not self._context.read_only:
            self._shelf.fingerprint = self._bench.fingerprint
        return self._bench.fingerprint

    def _change(self, key: str) -> Change | None:
        if key not in self._changes and (change := self._shelf.change(key)) is not None:
            self._changes[key] = change
        return self._changes.get(key)

    def close(self) -> None:
        """Let go of the model's twin and of what is in memory. May be called twice."""
        with self._lock:
            self._bench = None
            self._changes.clear()
            self._patches.clear()
