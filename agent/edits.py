"""What becomes of edits, as values; and which of those that are asked for are new.

Knows nothing of how an edit is learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ..editors.base import Edit, Receipt
from ..errors import EditConflict
from ..memory.record import RecordId

REPLACING = "give replace=True (--replace) to put this one in its place"


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingEdit:
    """An edit that holds.

    Args:
        editor: name of the memory that has it.
        learnt: whether the model already answers by it; else the next learning does it.
        created: None if its record is not in the ledger.
    """

    id: RecordId
    edit: Edit
    editor: str
    learnt: bool
    created: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedEdit:
    """An edit of which nothing was kept, and why."""

    edit: Edit
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """What became of many edits.

    Args:
        receipts: of those that were learnt.
        skipped: ids of edits that held already, word for word.
        failed: those of which nothing was kept.
        planned: of a dry run, those that would be learnt.
        cancelled: whether it ended early; what is not in `receipts` is not kept, and giving the
            same edits again goes on from there.
    """

    receipts: tuple[Receipt, ...] = ()
    skipped: tuple[RecordId, ...] = ()
    failed: tuple[FailedEdit, ...] = ()
    planned: tuple[Edit, ...] = ()
    cancelled: bool = False

    @property
    def verified(self) -> bool:
        """Whether every edit is kept, and the model answers by it."""
        return not (self.cancelled or self.failed) and all(each.verified for each in self.receipts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """What an undoing did.

    Args:
        again: ids of others that had to be learnt again, as they were learnt on top of these.
    """

    ids: tuple[RecordId, ...]
    again: tuple[RecordId, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorted:
    """Edits that are asked for, beside those that hold.

    Args:
        new: those to be learnt, each with the id of the edit that it replaces.
    """

    new: tuple[tuple[Edit, RecordId | None], ...]
    known: tuple[RecordId, ...]
    outdone: tuple[FailedEdit, ...]


def sort_out(asked: Sequence[Edit], held: Sequence[StandingEdit], *, replace: bool) -> Sorted:
    """Tell what is new from what holds already.

    Args:
        replace: of two that contradict each other, the newer wins.

    Raises:
        EditConflict: an edit contradicts one that holds, or one that is asked for with it.
    """
    standing: dict[str, list[StandingEdit]] = {}
    for each in held:
        standing.setdefault(each.edit.asked, []).append(each)
    new: dict[str, list[tuple[Edit, RecordId | None]]] = {}
    known: list[RecordId] = []
    outdone: list[FailedEdit] = []
    for edit in asked:
        there = standing.get(edit.asked, [])
        if same := [each.id for each in there if each.edit == edit]:
            known.append(same[0])
            continue
        beside = new.setdefault(edit.asked, [])
        if any(edit == other for other, _ in beside):
            continue
        against = [each for each in there if edit.contradicts(each.edit)]
        rivals = [other for other, _ in beside if edit.contradicts(other)]
        _refuse(edit, against, rivals, replace=replace)
        outdone += [
            FailedEdit(edit=other, why=f"a later one of these answers {edit.target!r}")
            for other in rivals
        ]
        beside[:] = [pair for pair in beside if pair[0] not in rivals]
        beside.append((edit, against[0].id if against else None))
    return Sorted(
        new=tuple(pair for pairs in new.values() for pair in pairs),
        known=tuple(dict.fromkeys(known)),
        outdone=tuple(outdone),
    )


def _refuse(
    edit: Edit, against: Sequence[StandingEdit], rivals: Sequence[Edit], *, replace: bool
) -> None:
    """See that an edit may take the place of what it contradicts."""
    what = f"prompt={edit.prompt!r} is to be answered by target={edit.target!r}"
    if len(against) > 1 or (against and not replace):
        others = ", ".join(f"edit {each.id} answers {each.edit.target!r}" for each in against)
        remedy = "undo all but one of these" if len(against) > 1 else REPLACING + ", or undo it"
        raise EditConflict(f"{what}, and {others}; {remedy}")
    if rivals and not replace:
        raise EditConflict(
            f"{what}, and another of these edits answers {rivals[0].target!r}; leave one out, or"
            f" {REPLACING}, and the later one wins"
        )
