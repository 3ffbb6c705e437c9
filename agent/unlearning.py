"""What a user has the model forget: requests that are made, listed, attacked, and undone.

The verbs only: what a request is and how it is learnt lies in `unlearning`, and is learnt beside
turns, under no lock that a turn waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..errors import ConfigError, InputError, UnlearnFailed
from ..memory.record import Record, RecordId, Scope, Source
from ..memory.registry import DEFAULT_MEMORIES, DEFAULT_UNLEARNERS
from ..unlearning.base import UNLEARNER, Means, Receipt, Request, Sample
from .forgetting import Forgettable, asked_scope
from .jobs import Job, Progress

if TYPE_CHECKING:
    from ..llm.base import LLM
    from ..memory.base import Memory
    from ..memory.ledger import Ledger
    from ..unlearning.report import Report
    from ..unlearning.unlearner import State, Unlearner
    from .background import Background
    from .loop import Loop
    from .reply import Recollection

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingRequest:
    """A request that holds.

    Args:
        unlearner: name of the memory that has it.
        state: `learnt`; `pending`, to be learnt by the next learning; or `lost`: its texts were
            dropped before it was learnt for this model, so it has to be asked again.
        texts: whether its texts are still kept.
        receipt: None unless it is learnt.
        created: None if its record is not in the ledger.
    """

    id: RecordId
    name: str
    reason: str
    samples: int
    unlearner: str
    means: Means
    state: State
    texts: bool
    receipt: Receipt | None
    created: datetime | None


class Unlearning:
    """The part of an agent that has the model forget."""

    ledger: Ledger
    llm: LLM
    memories: tuple[Memory, ...]
    scope: Scope
    _background: Background
    _loop: Loop
    _resources: ExitStack
    forget: Callable[..., Report]
    recall: Callable[..., Recollection]
    _start: Callable[[Callable[[Progress, Event], Any]], Job[Any]]

    @property
    def unlearners(self) -> tuple[Unlearner, ...]:
        """The memories that make the model forget."""
        found = [each for each in self.memories if "request" in each.capabilities.kinds]
        return tuple(cast("list[Unlearner]", found))

    def unlearn(
        self,
        name: str,
        *,
        texts: Iterable[str] = (),
        pairs: Iterable[tuple[str, str]] = (),
        samples: Iterable[Sample] = (),
        reason: str = "",
        alternatives: Iterable[str] = (),
        retain: Iterable[Sample] = (),
        keep_texts: bool = False,
        certify: bool = True,
        thorough: bool = False,
        source: Source = "user",
        unlearner: str | None = None,
        progress: Progress | None = None,
        cancel: Event | None = None,
        **options: Any,
    ) -> Receipt:
        """Make the model forget what is given, from now on and in all sessions of the user; attack
        the result; and drop the texts, so that the request is not where they live on. The same
        request again is not learnt twice.

        Whether the model's weights lose it or an adapter suppresses it is the method's, and the
        receipt says which.

        Args:
            name: of the person, text or skill. It stays in the ledger, as does the reason.
            texts: what it is not to say; taken together with the two below.
            pairs: (question, answer).
            samples: with paraphrases, to attack with.
            alternatives, retain: see `Request`.
            keep_texts: keep them, so that it can be learnt for another model, and attacked again.
            certify: attack the result; a minute or so for a small model.
            thorough: with attacks that train or copy the model, which take longer.
            source: whom it speaks for, which is what it is trusted as.
            unlearner: name of the memory that is to have it, where there are several.
            progress: called as (steps done, steps expected).
            cancel: set it from another thread to end early.

        Raises:
            UnlearnFailed: it cannot be learnt; nothing of it was kept.
            Cancelled: it goes on from the last whole pass with `resume_unlearning`, or by asking
                the same again; `undo` drops it.
            InputError: there is nothing to forget, or its source may not have things forgotten.
            ConfigError: no memory can unlearn, or which of several is not said.
        """
        given = (
            *(Sample(answer=text) for text in texts),
            *(Sample(question=question, answer=answer) for question, answer in pairs),
            *samples,
        )
        request = Request(
            name=name,
            samples=given,
            reason=reason,
            alternatives=tuple(alternatives),
            retain=tuple(retain),
        )
        chosen, scope = self._unlearner(unlearner), asked_scope(self.scope, options)
        tell, stop = progress or _quiet, cancel or Event()
        id = self._known(chosen, request, scope) or self._put(chosen, request, scope, source)
        try:
            if self._state(chosen, id, scope) != "learnt":
                chosen.learn_from(id, request, tell, stop)
        except UnlearnFailed:
            self._erase([id], scope)
            raise
        if certify:
            self._certify(chosen, id, request, scope, thorough=thorough, cancel=stop)
        if not keep_texts:
            self._drop(chosen, id, scope)
        return chosen.receipt(id)

    def start_unlearn(self, name: str, **how: Any) -> Job[Receipt]:
        """`unlearn`, as a job beside whatever else is done; closing the agent cancels it."""
        return self._start(
            lambda progress, cancel: self.unlearn(name, progress=progress, cancel=cancel, **how)
        )

    def resume_unlearning(
        self, *, progress: Progress | None = None, cancel: Event | None = None
    ) -> tuple[RecordId, ...]:
        """Learn the requests that were begun and cut short; returns which. Background work does so
        by itself.

        Raises:
            Cancelled, UnlearnFailed: what was learnt until then stays.
        """
        self._loop.follow()
        return tuple(
            id for each in self.unlearners for id in each.learn(progress or _quiet, cancel)
        )

    def unlearned(self, **options: Any) -> list[StandingRequest]:
        """All requests that hold for the user, oldest first."""
        scope = asked_scope(self.scope, options).across_sessions()
        found = [
            self._request(each, held.id, scope)
            for each in self.unlearners
            for held, _ in each.requests(scope)
        ]
        return sorted(found, key=lambda standing: standing.id)

    def verify_unlearned(
        self,
        id: str,
        samples: Sequence[Sample] = (),
        *,
        thorough: bool = False,
        progress: Progress | None = None,
        cancel: Event | None = None,
        **options: Any,
    ) -> Receipt:
        """Attack a request again.

        Args:
            samples: what it was learnt from, the same and in the same order, where its texts were
                dropped; they are checked against its fingerprints, and kept nowhere.

        Raises:
            InputError: there is no such request, its texts were dropped and none are given, or
                these are others. StoreError: it is not learnt yet.
        """
        scope = asked_scope(self.scope, options).across_sessions()
        for chosen in self.unlearners:
            for held, _ in chosen.requests(scope):
                if held.id != id:
                    continue
                material = chosen.material(held.id)
                if material is None and not samples:
                    raise InputError(
                        f"the texts of request {id} were dropped, so there is nothing to attack"
                        " with; give the same samples again, which are kept nowhere"
                    )
                request = (
                    Request(name=held.name, samples=tuple(samples))
                    if material is None
                    else material.content
                )
                how = {"cancel": cancel or Event(), "progress": progress}
                return self._certify(chosen, held.id, request, scope, thorough=thorough, **how)
        raise InputError(f"{id} is no request that holds; `palimpsest unlearned` lists those")

    def forget_deeply(
        self, what: Forgettable | Report | None = None, *, certify: bool = True, **options: Any
    ) -> tuple[Report, Receipt | None]:
        """`forget`, and then have the model unlearn the texts that went, which by then are written
        down nowhere: first erased from every store, then unlearnt, then attacked. The request is
        named by the erasure's id. No receipt if there was nothing that is text of somebody's.

        Raises:
            ConfigError: no memory can unlearn; nothing has gone.
            UnlearnFailed: all has gone, and the model could not be made to forget it.
        """
        how = {name: options.pop(name, None) for name in ("progress", "cancel", "unlearner")}
        scope = asked_scope(self.scope, options)
        chosen = self._unlearner(how["unlearner"])
        plan = self.forget(what, **options, dry_run=True)
        records = self.ledger.find(sorted(plan.ids), scope.across_sessions())
        texts = dict.fromkeys(each.text for each in records if each.kind in _SAID)
        report = self.forget(plan, **{k: v for k, v in options.items() if k in _SCOPES})
        if not texts:
            return report, None
        request = Request(
            name=f"erasure {report.id}", samples=tuple(Sample(answer=text) for text in texts)
        )
        id = self._put(chosen, request, scope, "user", written=False)
        try:
            chosen.learn_from(id, request, how["progress"] or _quiet, how["cancel"])
        except BaseException:  # its texts are known to this call alone: it could never go on
            self._erase([id], scope)
            raise
        if certify:
            self._certify(chosen, id, request, scope)
        chosen.note_dropped(id, report.id)
        return report, chosen.receipt(id)

    # How it is done.

    def _unlearner(self, name: str | None) -> Unlearner:
        """The unlearner of that name, or the only one."""
        found = {each.name: each for each in self.unlearners}
        if not found:
            usual = [*DEFAULT_MEMORIES, *DEFAULT_UNLEARNERS]
            raise ConfigError(
                f"no memory here can make {self.llm.name!r} unlearn; open a model in this process"
                f" with memories={usual}, or on the command line with --memory for each"
            )
        if name is None and len(found) > 1:
            raise ConfigError(f"several memories can unlearn, {sorted(found)}; name one of them")
        if name is not None and name not in found:
            raise ConfigError(f"unlearner={name!r} is not open; open are {sorted(found)}")
        return found[name] if name is not None else next(iter(found.values()))

    def _known(self, chosen: Unlearner, request: Request, scope: Scope) -> RecordId | None:
        """The same request, if it holds and is not lost."""
        self._loop.follow()
        for held, state in chosen.requests(scope):
            same = sorted(held.fingerprints) == sorted(request.fingerprints)
            if same and held.name == request.name and state != "lost":
                return held.id
        return None

    def _put(
        self,
        chosen: Unlearner,
        request: Request,
        scope: Scope,
        source: Source,
        *,
        written: bool = True,
    ) -> RecordId:
        """Append the request, and its texts if they are to be written down.

        Raises:
            InputError: its source is not trusted to have anything forgotten.
        """
        record = request.record(scope.across_sessions(), source=source)
        if len(self.unlearners) > 1:
            record = replace(record, meta={**record.meta, UNLEARNER: chosen.name})
        records: list[Record] = [record, *([request.material(record)] if written else [])]
        with self._background.paused():
            self.ledger.append(records)
            self._loop.follow()
        if record.id not in chosen.held():
            raise InputError(
                f"request {request.name!r} gives orders, and its source {source!r} may not; nothing"
                " of it was kept: let the user make it"
            )
        return record.id

    def _certify(
        self,
        chosen: Unlearner,
        id: RecordId,
        request: Request,
        scope: Scope,
        *,
        thorough: bool = False,
        **how: Any,
    ) -> Receipt:
        from ..unlearning.attacks.backflow import Backflow
        from ..unlearning.attacks.registry import DEFAULT

        memories = Backflow(recalled=lambda question: self._recalled(question, scope))
        given = {name: value for name, value in how.items() if value is not None}
        return chosen.certify(id, request, attacks=(*DEFAULT, memories), thorough=thorough, **given)

    def _recalled(self, question: str, scope: Scope) -> list[str]:
        """Texts that the memories would put before the model."""
        return [note.text for note in self.recall(question, scope=scope).notes]

    def _drop(self, chosen: Unlearner, id: RecordId, scope: Scope) -> None:
        """Erase the texts of a request from the ledger, the store and every file."""
        material = chosen.material(id)
        if material is not None:
            report = self.forget(material.id, scope=scope)
            chosen.note_dropped(id, report.id)

    def _erase(self, ids: Sequence[RecordId], scope: Scope) -> None:
        """Undo requests: have the ledger, the store and the files hold nothing of them."""
        if not ids:
            return
        texts = [
            material.id
            for each in self.unlearners
            for id in ids
            if (material := each.material(id)) is not None
        ]
        with self._background.paused(), self._loop.stores:
            self.ledger.erase([*ids, *texts], scope.across_sessions())
            self._loop.follow()
            if texts:
                self.ledger.purge()

    def _state(self, chosen: Unlearner, id: RecordId, scope: Scope) -> State:
        return next(state for held, state in chosen.requests(scope) if held.id == id)

    def _request(self, chosen: Unlearner, id: RecordId, scope: Scope) -> StandingRequest:
        held, state = next(each for each in chosen.requests(scope) if each[0].id == id)
        records = self.ledger.find([id], scope)
        return StandingRequest(
            id=id,
            name=held.name,
            reason=held.reason,
            samples=len(held.fingerprints),
            unlearner=chosen.name,
            means=chosen.method.means,
            state=state,
            texts=chosen.material(id) is not None,
            receipt=chosen.receipt(id) if state == "learnt" else None,
            created=records[0].created if records else None,
        )


_SAID = ("message", "fact", "correction", "document")
"""Kinds of records whose text somebody said; a summary says it again."""

_SCOPES = ("scope", "tenant", "user", "agent", "session")


def _quiet(done: int, expected: int) -> None:
    """Tell nobody."""
