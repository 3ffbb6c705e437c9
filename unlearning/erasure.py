"""Forgetting: from the ledger through every store into the files, and a report of it.

In this order, each step done whole or done again after a crash: the request is noted; the records
go from the ledger, in one transaction; the stores follow the ledger's events; the files are purged;
every byte of them is searched; the report is signed and noted. Knows a store by its contract only.

The texts to search for are known to the process that erased them and to nothing else: they are
never written down. If it dies before the search, the report says that there was none.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from threading import RLock
from typing import Any

from ..errors import ConfigError, PlanOutdated, StoreError
from ..memory.base import Artefact, Memory
from ..memory.erasures import Note, Position
from ..memory.ledger import Ledger
from ..memory.projection import catch_up, check, rebuild
from ..memory.record import Reach, RecordId, new_id, now
from . import bounds
from .asking import ForgetRequest, asked
from .report import Doomed, Plan, Report, Signature, StoreErasure
from .signing import sign
from .sweeping import Attempt, learn, sweep
from .tiers import Tiers

log = logging.getLogger(__name__)


TRIES = 3
"""How often a request is listed anew when something was added between listing and erasing."""


class Eraser:
    """Forgets. Safe to use from several threads; one erasure at a time."""

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers
        self._ledger = tiers.ledger
        self._log = tiers.ledger.erasures
        self._stores = tiers.stores
        self._attempts: dict[str, Attempt] = {}
        self._one = RLock()

    def plan(self, request: ForgetRequest) -> Plan:
        """What would go. Changes nothing, but that stores catch up with the ledger; a reader's do
        not, so that it sees of them what their writer has brought there.

        Raises:
            RecordNotFound: one of the ids is unknown in the scope, or there is nothing to forget.
            InputError: the query has no words.
            ConfigError: a store that holds some of it is not open.
        """
        with self._one:
            if not self._tiers.read_only:
                self._follow()
            found = asked(self._log, request)
            return Plan(
                id=new_id(),
                requested=now(),
                asked=request.asked,
                who=request.reach,
                request=request,
                **self._listed(found, request.reach),
            )

    def forget(self, what: ForgetRequest | Plan) -> Report:
        """Forget what is asked for, and all that must go with it; or exactly what was planned.

        Raises:
            PlanOutdated: something else would go now than the plan lists, or records came while
                this was being prepared; nothing has gone.
            RecordNotFound, InputError, ConfigError: as for `plan`.
            LedgerError, StoreError: a step failed. If the records are gone from the ledger, the
                rest is done when this is called again, or when the agent is opened again.
        """
        with self._one:
            self.resume()
            for _ in range(TRIES - 1):
                try:
                    return self._finish(self._begin(what))
                except PlanOutdated:  # what is not a plan is listed again: a turn came in between
                    if isinstance(what, Plan):
                        raise
            return self._finish(self._begin(what))

    def resume(self) -> list[Report]:
        """Finish what was begun and cut short, by a crash for one; returns the reports."""
        with self._one:
            finished = []
            for note in self._log.every("noted", "erased"):
                report = _report(note)
                if closed := self._closed(part.store for part in report.stores):
                    log.warning(
                        "erasure %s waits until store %s is open", note.id, ", ".join(closed)
                    )
                    continue
                begun = note if note.state == "erased" else self._begin_again(note, report)
                if begun is not None:
                    finished.append(self._finish(begun))
            return finished

    def reports(self, reach: Reach) -> list[Report]:
        """Of all that was forgotten within reach, oldest first."""
        return [_report(note) for note in self._log.of(reach) if note.state == "done"]

    def _begin(self, what: ForgetRequest | Plan) -> Note:
        with self._tiers.following:  # what a turn says is kept before this or not at all
            plan = self.plan(what.request if isinstance(what, Plan) else what)
            if isinstance(what, Plan):
                if not plan.same_as(what):
                    raise PlanOutdated(
                        f"{len(what.records)} records were to be forgotten, and the ledger has"
                        f" changed: it would be {len(plan.records)} records now, or other traces of"
                        " them; list it again and look at it"
                    )
                plan = replace(plan, id=what.id, requested=what.requested)
            note = _note(plan)
            self._log.note(note)
            try:
                return self._erase(note)
            except BaseException:
                self._log.withdraw(note.id)  # or, if it was erased all the same, does nothing
                raise

    def _listed(self, asked: Collection[RecordId], reach: Reach) -> dict[str, Any]:
        """All that goes along with `asked`, as fields of a report."""
        grounds = self._log.closure(asked)
        lineage = self._ledger.lineage(grounds)
        if closed := self._closed(lineage):
            raise ConfigError(
                f"store {', '.join(closed)} holds some of these records and is not open; open the"
                " agent with it (memories=, or --memory) and forget again"
            )
        return {
            "records": tuple(Doomed(id=id, why=why, of=of) for id, (why, of) in grounds.items()),
            "rebuilt": tuple(sorted(self._log.mixed(grounds.keys()))),
            "stores": tuple(
                self._part(name, lineage.get(name, []), grounds.keys()) for name in self._stores
            ),
            "traces": len(self._log.traces(grounds.keys(), reach)),
        }

    def _part(
        self, store: str, held: Sequence[Artefact], gone: Collection[RecordId]
    ) -> StoreErasure:
        keys = sorted({artefact.key for artefact in held})
        shared = self._log.shared(store, keys, gone)
        return StoreErasure(
            store=store,
            erased=tuple(key for key in keys if key not in shared),
            rebuilt=tuple(key for key in keys if key in shared),
        )

    def _closed(self, stores: Iterable[str]) -> list[str]:
        return sorted(set(stores) - self._stores.keys())

    def _begin_again(self, note: Note, report: Report) -> Note | None:
        """Nothing has happened yet; list again what goes, as something may have been added."""
        asked = [record.id for record in report.records if record.why == "asked for"]
        left = [id for id, *_ in self._log.contents(asked, note.reach.across_sessions())]
        if not left:
            self._log.withdraw(note.id)
            return None
        self._follow()
        note = _note(replace(report, **self._listed(left, note.reach)))
        self._log.note(note)
        return self._erase(note)

    def _erase(self, note: Note) -> Note:
        """Learn by heart what to search for, then erase."""
        ids, attempt = _report(note).ids, Attempt()
        with attempt.timed("learn"):  # the first time in a process, the encoder is loaded for it
            attempt.needles = learn(self._tiers, ids, note.reach.across_sessions())
        with self._tiers.following:  # no turn recalls what the ledger has erased already
            with attempt.timed("ledger"):
                erased = self._log.erase(note, ids)
            self._attempts[note.id] = attempt
            with attempt.timed("stores"):
                self._follow()
        return erased

    def _finish(self, note: Note) -> Report:
        """From the ledger's transaction to the signed report; may be begun any number of times."""
        report, attempt = _report(note), self._attempts.get(note.id, Attempt())
        with self._tiers.following, attempt.timed("stores"):
            stores = tuple(self._mend(part) for part in report.stores)
        chain = note.data["chain"]
        backups, unreadable = bounds.backups(self._tiers.home, self._log, report.ids)
        search, rewritten = sweep(self._tiers, attempt, [each.path for each in backups])
        unchecked = [*bounds.unchecked(self._ledger, self._tiers.outside, search), *unreadable]
        report = replace(
            report,
            stores=stores,
            search=search,
            rewritten=rewritten,
            seconds=attempt.seconds,
            unchecked=tuple(unchecked),
            backups=tuple(backups),
            finished=now(),
            version=bounds.version(),
            before=Position(**chain["before"]),
            after=Position(**chain["after"]),
        )
        public, value = sign(self._tiers.home, report.to_json()["report"])
        report = replace(report, signature=Signature(public_key=public, value=value))
        data = {**note.data, "report": report.to_json()}
        self._log.note(replace(note, state="done", data=data))
        self._attempts.pop(note.id, None)
        return report

    def _follow(self) -> None:
        with self._tiers.following:
            for memory in self._stores.values():
                catch_up(self._ledger, memory)

    def _mend(self, part: StoreErasure) -> StoreErasure:
        """Let a store follow, and see that it holds nothing of the records any more."""
        memory = self._stores[part.store]
        catch_up(self._ledger, memory)
        checked = ["it holds what the ledger's lineage says, and nothing of these records"]
        if not _agrees(self._ledger, memory):
            rebuild(self._ledger, memory)
            checked.append("it was made anew from the ledger, as it had not followed it")
            if not _agrees(self._ledger, memory):
                raise StoreError(
                    f"store {part.store} still holds what was forgotten, even made anew from the"
                    " ledger; mend the store and open the agent again, which goes on from here"
                )
        return replace(part, checked=tuple(checked))


def _agrees(ledger: Ledger, memory: Memory) -> bool:
    """Whether a store that has caught up holds what the lineage says and nothing else: nothing of
    what the ledger has erased, as the lineage of that went with it."""
    found = check(ledger, memory)
    return not (found.missing or found.surplus)


def _note(report: Report) -> Note:
    document = Report.to_json(report)
    return Note(id=report.id, reach=report.who, created=report.requested, data={"report": document})


def _report(note: Note) -> Report:
    return Report.from_json(note.data["report"])
