"""Checking a report that somebody shows: its signature, its place in the ledger, and that it holds.

With the data folder all of it can be checked; without, the signature by the key that the report
carries, and the rest is said to be unchecked. Changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ChainBroken
from ..memory.erasures import Position
from ..memory.home import Home
from ..memory.ledger import Ledger
from ..memory.record import Reach
from .report import Report
from .signing import holds, public_key

State = Literal["holds", "fails", "not checked"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a report claims, whether it is so, and what that rests on."""

    claim: str
    state: State
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All checks of one report."""

    report: str
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing fails; something may not have been checked."""
        return all(check.state != "fails" for check in self.checks)


def verify(document: Any, home: Home | None = None, ledger: Ledger | None = None) -> Verdict:
    """Check a report.

    Args:
        document: what `Report.to_json` gave.
        home: the data folder it is of; None to check it elsewhere.
        ledger: that folder's.

    Raises:
        ConfigError: it is no report.
        LedgerError: the ledger or the key cannot be read.
    """
    report = Report.from_json(document)
    checks = [_signature(report, document["report"]), _signer(report, document, home, ledger)]
    if ledger is None:
        for claim in (_IN_CHAIN, _GONE):
            checks.append(Check(claim, "not checked", "the ledger is not here"))
    else:
        checks += [_chain(report, ledger), _gone(report, ledger)]
    return Verdict(report=report.id, checks=(*checks, _residue(report)))


_SIGNED = "the report is as it was signed"
_OURS = "this data folder signed it"
_IN_CHAIN = "the ledger's chain of events tells of this erasure, whole and unbroken"
_GONE = "none of the records is back"
_CLEAN = "no file held any of it"


def _signature(report: Report, body: Any) -> Check:
    signature = report.signature
    if signature is None:
        return Check(_SIGNED, "fails", "it has no signature")
    if not holds(signature.public_key, signature.value, body):
        return Check(_SIGNED, "fails", "report or signature was changed since: they do not fit")
    return Check(_SIGNED, "holds", f"by the key {signature.public_key}")


def _signer(report: Report, document: Any, home: Home | None, ledger: Ledger | None) -> Check:
    if home is None or report.signature is None:
        return Check(_OURS, "not checked", "compare the key with the one you know to be theirs")
    own = public_key(home)
    if own != report.signature.public_key and ledger is not None and _kept(document, ledger):
        why = "another folder's key signed it, and it came here with that folder's ledger"
        return Check(_OURS, "not checked", f"{why}; compare the key with the one you know")
    if own is None:
        return Check(_OURS, "fails", "this data folder has never signed anything")
    if own != report.signature.public_key:
        return Check(_OURS, "fails", f"this folder's key is {own}")
    return Check(_OURS, "holds", "it is the folder's key")


def _kept(document: Any, ledger: Ledger) -> bool:
    """Whether the ledger keeps this very report, as one has that was imported or restored."""
    return any(note.data.get("report") == document for note in ledger.erasures.every("done"))


def _chain(report: Report, ledger: Ledger) -> Check:
    try:
        ledger.verify_chain()
    except ChainBroken as error:
        return Check(_IN_CHAIN, "fails", str(error))
    if report.before is None or report.after is None:
        return Check(_IN_CHAIN, "fails", "the report names no place in it")
    first, last = report.before, report.after
    events = ledger.events(max(first.seq - 1, 0), last.seq - max(first.seq - 1, 0))
    found = {Position(event.seq, event.hash) for event in events}
    if last not in found or (first.seq and first not in found):
        return Check(_IN_CHAIN, "fails", f"event {last.seq} is another one in this ledger")
    erased = {e.subject for e in events if e.kind == "erase" and e.seq > first.seq}
    if erased != report.ids:
        return Check(_IN_CHAIN, "fails", "there, other records were erased than the report names")
    return Check(_IN_CHAIN, "holds", f"events {first.seq + 1} to {last.seq}, of the same records")


def _gone(report: Report, ledger: Ledger) -> Check:
    reach = Reach(tenant=report.who.tenant)
    back = sorted(id for id, *_ in ledger.erasures.contents(report.ids, reach))
    held = ledger.lineage(report.ids)
    if back:
        return Check(_GONE, "fails", f"{len(back)} are in the ledger again: {', '.join(back[:5])}")
    if held:
        return Check(_GONE, "fails", f"store {', '.join(sorted(held))} holds some of them")
    return Check(_GONE, "holds", f"looked up in ledger and lineage: {len(report.ids):,}")


def _residue(report: Report) -> Check:
    search = report.search
    if search is None:
        return Check(_CLEAN, "not checked", "the report says that no search could be made")
    read = f"{search.files} files of {search.bytes:,} bytes were searched then"
    if search.residue:
        return Check(_CLEAN, "fails", f"places where it was found when {read}: {search.residue}")
    return Check(_CLEAN, "holds", f"the report says so; {read}")
