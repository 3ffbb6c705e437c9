"""What became of edits, as pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from .output import Listing, hinted, many, out

if TYPE_CHECKING:
    from ..agent.edits import Edited, StandingEdit, Undone
    from ..editors.base import Answer, Receipt
    from ..memory.record import RecordId

LISTED = 20
"""Receipts that a page shows whole; of more, those that want attention."""


def show_receipt(receipt: Receipt) -> None:
    """Print what became of an edit."""
    table = Table.grid("", "", padding=(0, 2, 0, 0))

    def tell(what: str, text: str) -> None:
        table.add_row(what, escape(text))

    edit, before, after = receipt.edit, receipt.before, receipt.after
    tell("edit", f"{receipt.id}  {edit.prompt} => {edit.target}")
    tell("before", f"{_said(before)}, ln P(target) {before.logprob:.2f}")
    tell("after", f"{_said(after)}, ln P(target) {after.logprob:.2f}")
    for answer in receipt.paraphrases:
        tell("", f"{answer.prompt} => {_said(answer)}")
    for (prompt, _), share in zip(edit.locality, receipt.locality, strict=True):
        tell("stays", f"{share:.0%} of the answer to {prompt}")
    if receipt.gate is not None:
        tell("gate", f"{receipt.gate.score:.3f}, opens above {receipt.gate.threshold:.3f}")
    tell("took", f"{receipt.seconds:.1f} s, {receipt.bytes / 1024:,.0f} KiB")
    out.print(table)
    holds = "[green]verified[/green]" if receipt.verified else "[yellow]does not hold[/yellow]"
    out.print(f"{holds}  {escape(receipt.advice)}".rstrip(), soft_wrap=True)


def _said(answer: Answer) -> str:
    """What was said in as many tokens as the target has, which may be blanks alone."""
    return repr(answer.text) if answer.text else "(only blanks)"


def show_edits(found: Sequence[StandingEdit]) -> None:
    """Print a list of edits."""
    if not found:
        none = "no edits yet; make one with `palimpsest edit PROMPT TARGET`"
        out.print(escape(hinted(none)))
        return
    table = Listing(
        "edit", "since", "learnt", "what is answered how", gives_way="what is answered how"
    )
    for each in found:
        since = f"{each.created:%Y-%m-%d %H:%M}" if each.created else ""
        what = f"{each.edit.prompt} => {each.edit.target}"
        table.add(each.id, since, "yes" if each.learnt else "not yet", what)
    out.print(table)
    if not all(each.learnt for each in found):
        out.print(escape(hinted("`palimpsest edit --resume` learns those that are not yet")))


def show_undone(done: Undone, requests: Mapping[RecordId, str] | None = None) -> None:
    """Print what an undoing did.

    Args:
        requests: names of the requests to unlearn that held before, by id.
    """
    names = [requests[id] for id in done.ids if id in requests] if requests else []
    count = len(done.ids) - len(names)
    parts = [many(count, "edit")] if count else []
    parts += [f"the request {name!r}, which the model no longer forgets" for name in names]
    again = f", and learnt {many(len(done.again), 'other')} again" if done.again else ""
    what = " and ".join(parts)
    out.print(f"undid {what}{again}, in {done.seconds:.1f} s", markup=False, soft_wrap=True)


def show_edited(done: Edited) -> None:
    """Print what became of edits; of many, those that want attention."""
    receipts = done.receipts
    wanting = receipts if len(receipts) <= LISTED else [r for r in receipts if not r.verified]
    for receipt in wanting:
        show_receipt(receipt)
    for edit in done.planned[:LISTED]:
        out.print(f"would be learnt: {edit.prompt} => {edit.target}", markup=False)
    for failed in done.failed:
        what = f"{failed.edit.prompt} => {failed.edit.target}"
        out.print(f"not kept: {what}: {failed.why}", markup=False, style="yellow", soft_wrap=True)
    counts = {
        "would be learnt": len(done.planned),
        "learnt": len(receipts),
        "verified": sum(each.verified for each in receipts),
        "held already": len(done.skipped),
        "not kept": len(done.failed),
    }
    if len(receipts) != 1 or done.skipped or done.failed or done.cancelled:
        out.print(", ".join(f"{count:,} {what}" for what, count in counts.items() if count))
    if done.cancelled:
        out.print("cancelled; what was learnt is kept, and the same command goes on from there")
