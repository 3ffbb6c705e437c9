"""What a user has the model forget: requests that are made, listed, attacked, and undone.

The verbs only: what a request is and how it is learnt lies in `unlearning`, and is learnt beside
turns, under no lock that a turn waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..errors import Cancelled, ConfigError, InputError, UnlearnFailed
from ..memory.record import Record, RecordId, Scope, Source
from ..memory.registry import DEFAULT_MEMORIES, DEFAULT_UNLEARNERS
from ..memory.screening import UNTRUSTED
from ..unlearning.base import UNLEARNER, Receipt, Request, Sample
from .forgetting import Forgettable, asked_scope
from .jobs import Job, Progress
from .requests import KEPT, StandingRequest, UnlearnPlan, planned, same

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
        attacked: int | None = None,
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
            attacked: how many of the samples are attacked, by default 8; fewer take less.
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
        self._loop.follow()
        known = [each.id for each in self._requests(scope) if same(each, request, chosen.name)]
        id = known[0] if known else self._put(chosen, request, scope, source, keep=keep_texts)
        try:
            if self._state(chosen, id, scope) != "learnt":
                chosen.learn_from(id, request, tell, stop)
        except Cancelled:
            raise
        except Exception:  # whatever it was, the request is not where the texts live on
            self._erase([each.id for each in self._requests(scope) if each.id == id], scope)
            raise
        if certify and chosen.attackable:
            watched: dict[str, Any] = {"progress": progress, "cancel": stop}
            attacks = {"thorough": thorough, "sample": attacked}
            self._certify(chosen, id, request, scope, **attacks, **watched)
        if not keep_texts:
            self._drop(chosen, id, scope)
        return chosen.receipt(id)

    def start_unlearn(self, name: str, **how: Any) -> Job[Receipt]:
        """`unlearn`, as a job beside whatever else is done; closing the agent cancels it."""
        return self._start(
            lambda progress, cancel: self.unlearn(name, progress=progress, cancel=cancel, **how)
        )

    def resume_unlearning(
        self,
        *,
        certify: bool = True,
        progress: Progress | None = None,
        cancel: Event | None = None,
    ) -> tuple[RecordId, ...]:
        """Go on with requests that were cut short: learn those that are not learnt, attack them,
        and drop their texts, unless they were to be kept. Returns which were learnt. Background
        work learns by itself, and leaves the rest to this.

        Raises:
            Cancelled: what was learnt until then stays.
            UnlearnFailed: those that `failed` names cannot be learnt, and nothing of them was kept;
                the others are learnt.
        """
        self._loop.follow()
        made: list[RecordId] = []
        failures: list[UnlearnFailed] = []
        for chosen in self.unlearners:
            try:
                made += chosen.learn(progress or _quiet, cancel)
            except UnlearnFailed as error:
                own = {each.id for each in self._requests(self.scope)}
                self._erase([RecordId(id) for id in error.failed if id in own], self.scope)
                failures.append(error)
            for each in self._requests(self.scope):
                texts = chosen.material(each.id)
                if each.unlearner != chosen.name or each.state != "learnt" or texts is None:
                    continue
                [record] = self.ledger.find([texts.id], self.scope.across_sessions())
                if record.meta.get(KEPT):
                    continue
                if certify and chosen.attackable:
                    self._certify(chosen, each.id, texts.content, self.scope, cancel=cancel)
                self._drop(chosen, each.id, self.scope)
        if failures:
            raise failures[0]
        return tuple(made)

    def unlearned(self, **options: Any) -> list[StandingRequest]:
        """All requests that hold for the user, oldest first."""
        return self._requests(asked_scope(self.scope, options))

    def plan_unlearn(
        self, request: Request, *, unlearner: str | None = None, **options: Any
    ) -> UnlearnPlan:
        """What a request would come to; nothing is done."""
        chosen, scope = self._unlearner(unlearner), asked_scope(self.scope, options)
        return planned(request, chosen.name, chosen.method.means, self._requests(scope))

    def export_unlearned(self, id: str, folder: str | Path, **options: Any) -> Path:
        """Write what was learnt of a request as a LoRA that `peft` opens. It holds no gate: what
        was suppressed for the prompts of the request alone is then suppressed by an adapter that
        is loaded for every prompt.

        Raises:
            CapabilityError: its method learns no LoRA. StoreError: it is not learnt yet.
            InputError: there is no such request. ConfigError: the folder is there already.
        """
        from ..unlearning.adapter_files import write_adapter

        for each in self._requests(asked_scope(self.scope, options)):
            if each.id == id:
                chosen = self._unlearner(each.unlearner)
                change = chosen.learnt(each.id)
                return write_adapter(self.llm.model, change, Path(folder))  # type: ignore[attr-defined]
        raise InputError(f"{id} is no request that holds; `palimpsest unlearned` lists those")

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
                watched: dict[str, Any] = {"progress": progress, "cancel": cancel}
                return self._certify(chosen, held.id, request, scope, thorough=thorough, **watched)
        raise InputError(f"{id} is no request that holds; `palimpsest unlearned` lists those")

    def forget_deeply(
        self, what: Forgettable | Report | None = None, *, certify: bool = True, **options: Any
    ) -> tuple[Report, Receipt | None]:
        """`forget`, and then have the model unlearn the texts that went, which by then are written
        down nowhere: first erased from every store, then unlearnt, then attacked. The request is
        named by the erasure's id. No receipt if there was nothing that is text of somebody's.

        Raises:
            ConfigError: no memory can unlearn; nothing has gone.
            InputError: some of it is another user's; nothing has gone.
            UnlearnFailed: all has gone, and the model could not be made to forget it.
        """
        how = {name: options.pop(name, None) for name in ("progress", "cancel", "unlearner")}
        whose = {name: value for name, value in options.items() if name in _SCOPES}
        scope = asked_scope(self.scope, whose)
        chosen = self._unlearner(how["unlearner"])
        plan = self.forget(what, **options, dry_run=True)
        records = self.ledger.find(sorted(plan.ids), scope.across_sessions())
        if len(records) < len(plan.ids):
            raise InputError(
                "records of several users are to go, and a request to unlearn is one user's; forget"
                " each user's by themselves, or without having the model unlearn them"
            )
        texts = dict.fromkeys(each.text for each in records if each.kind in _SAID)
        report = self.forget(plan, **whose)
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
        chosen.note_dropped(id, report.id)
        if certify and chosen.attackable:
            self._certify(chosen, id, request, scope)
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

    def _put(
        self,
        chosen: Unlearner,
        request: Request,
        scope: Scope,
        source: Source,
        *,
        written: bool = True,
        keep: bool = False,
    ) -> RecordId:
        """Append the request, and its texts if they are to be written down.

        Args:
            keep: whether the texts are to stay when it is learnt.

        Raises:
            InputError: its source is not trusted to have anything forgotten.
        """
        if source in UNTRUSTED:
            raise InputError(
                f"request {request.name!r} gives orders, and its source {source!r} may not; nothing"
                " of it was kept: let the user make it"
            )
        record = request.record(scope.across_sessions(), source=source)
        if len(self.unlearners) > 1:
            record = replace(record, meta={**record.meta, UNLEARNER: chosen.name})
        records: list[Record] = [record]
        if written:
            texts = request.material(record)
            records.append(replace(texts, meta={**texts.meta, **({KEPT: True} if keep else {})}))
        with self._background.paused():
            self.ledger.append(records)
            self._loop.follow()
        return record.id

    def _certify(
        self, chosen: Unlearner, id: RecordId, request: Request, scope: Scope, **how: Any
    ) -> Receipt:
        """Attack a request; `how` as for `certificate.certify`, and None for what it has itself."""
        from ..unlearning.attacks.backflow import Backflow
        from ..unlearning.attacks.registry import DEFAULT

        memories = Backflow(recalled=lambda question: self._recalled(question, scope))
        given = {name: value for name, value in how.items() if value is not None}
        return chosen.certify(id, request, attacks=(*DEFAULT, memories), **given)

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
        # As the ledger has them: the memory that is to learn them may not be open.
        made = self.ledger.find(self.ledger.children(ids), scope.across_sessions())
        texts = [each.id for each in made if each.kind == "material"]
        with self._background.paused(), self._loop.stores:
            self.ledger.erase([*ids, *texts], scope.across_sessions())
            self._loop.follow()
            if texts:
                self.ledger.purge()

    def _state(self, chosen: Unlearner, id: RecordId, scope: Scope) -> State:
        return next(state for held, state in chosen.requests(scope) if held.id == id)

    def _requests(self, scope: Scope) -> list[StandingRequest]:
        """All requests of a user and agent, oldest first."""
        found = [
            self._standing_request(each, held.id, scope.across_sessions())
            for each in self.unlearners
            for held, _ in each.requests(scope)
        ]
        return sorted(found, key=lambda standing: standing.id)

    def _standing_request(self, chosen: Unlearner, id: RecordId, scope: Scope) -> StandingRequest:
        held, state = next(each for each in chosen.requests(scope) if each[0].id == id)
        records = self.ledger.find([id], scope)
        return StandingRequest(
            id=id,
            name=held.name,
            reason=held.reason,
            fingerprints=held.fingerprints,
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
