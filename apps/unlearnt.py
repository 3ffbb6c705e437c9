"""What became of requests to unlearn, as pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from .output import Listing, hinted, many, out

if TYPE_CHECKING:
    from ..agent.requests import StandingRequest, UnlearnPlan
    from ..unlearning.base import Means, Receipt
    from ..unlearning.certificate import Certificate, Finding

DOES: dict[Means, str] = {
    "suppresses": "suppresses: an adapter is loaded for prompts that are about it, and the weights"
    " below still hold it",
    "changes weights": "changes weights: what is added to them holds for every prompt",
}
"""In one sentence, what a method does."""


def show_plan(plan: UnlearnPlan) -> None:
    """Print what a request would come to."""
    table = Table.grid("", "", padding=(0, 2, 0, 0))

    def tell(what: str, text: str) -> None:
        table.add_row(what, escape(text))

    tell("request", f"{plan.name}, {many(plan.samples, 'sample')}")
    tell(plan.unlearner, DOES[plan.means])
    if plan.known:
        tell("holds", f"already, as {plan.known}; it is not learnt again")
    for each in plan.overlaps:
        shared = f"{many(each.shared, 'sample')} of it"
        tell("overlaps", f"{each.id} ({each.name}) has {shared}, and stays as it is")
    if not plan.known:
        tell("takes", took(plan.seconds))
    out.print(table)


def took(seconds: float | None) -> str:
    """About how long learning is."""
    if seconds is None:
        return "not known before the first one is learnt; minutes on a CPU, often"
    return f"about {seconds:.0f} s" if seconds < 90 else f"about {seconds / 60:.0f} minutes"


def show_receipt(receipt: Receipt) -> None:
    """Print what became of a request."""
    table = Table.grid("", "", padding=(0, 2, 0, 0))

    def tell(what: str, text: str) -> None:
        table.add_row(what, escape(text))

    tell("request", f"{receipt.id}  {receipt.name}, {many(receipt.samples, 'sample')}")
    if receipt.reason:
        tell("reason", receipt.reason)
    tell(str(receipt.method["name"]), DOES[receipt.means])
    tell("took", f"{receipt.seconds:.1f} s, {receipt.bytes / 1024:,.0f} KiB")
    if "separation" in receipt.gate:
        numbers = receipt.gate
        tell("gate", f"half open at {numbers['threshold']:.2f}; AUROC {numbers['separation']:.3f}")
    tell("texts", _texts(receipt))
    out.print(table)
    if receipt.certificate is not None:
        show_certificate(receipt.certificate)
    out.print(verdict(receipt), soft_wrap=True)


def _texts(receipt: Receipt) -> str:
    if receipt.dropped is None:
        return "kept with the request; undo or forget it to erase them"
    return hinted(f"dropped, and no file holds them: `palimpsest verify {receipt.dropped}`")


def show_certificate(made: Certificate) -> None:
    """Print what attacks found: how much came back before and after, and what was not tried."""
    table = Listing("attack", "before", "after", "up to", "stood", "of what", gives_way="of what")
    for each in made.findings:
        table.add(each.attack, *_numbers(each), "yes" if each.stood else "no", each.yardstick)
    out.print(table)
    drawn = many(made.samples, "sample")
    drawn += f" of {made.of:,}" if made.samples < made.of else ""
    out.print(f"attacked with {drawn}, in {made.seconds:.0f} s", markup=False)
    if "identical" in made.kept:
        share, count = made.kept["identical"], made.kept.get("neutral", 0)
        kept = f"{share:.0%} of {count:.0f} unrelated questions have the same logits, bit for bit"
        out.print(kept, markup=False)
    if made.unchecked:
        out.print(f"not tried: {'; '.join(made.unchecked)}", markup=False, soft_wrap=True)


def _numbers(each: Finding) -> tuple[str, str, str]:
    return f"{each.before:.2f}", f"{each.after:.2f}", f"{each.limit:.2f}"


def verdict(receipt: Receipt) -> str:
    """In a line, whether it stood."""
    if receipt.certificate is None:
        return "[yellow]not attacked[/yellow]"
    if receipt.verified:
        return "[green]every attack that was tried was stood[/green]"
    return f"[yellow]it does not stand[/yellow]  {escape(hinted(receipt.advice))}"


def show_requests(found: Sequence[StandingRequest]) -> None:
    """Print a list of requests."""
    if not found:
        none = 'nothing was unlearnt yet; `palimpsest unlearn NAME --pair "QUESTION=>ANSWER"` does'
        out.print(escape(hinted(none)), soft_wrap=True)
        return
    table = Listing("request", "since", "state", "what", gives_way="what")
    for each in found:
        reason = f" ({each.reason})" if each.reason else ""
        texts = ", texts kept" if each.texts else ""
        table.add(
            each.id,
            f"{each.created:%Y-%m-%d}" if each.created else "",
            f"{each.means}, {_stood(each.receipt)}" if each.state == "learnt" else each.state,
            f"{each.name}{reason}: {many(each.samples, 'sample')}, {each.unlearner}{texts}",
        )
    out.print(table)
    if any(each.state == "pending" for each in found):
        out.print(hinted("`palimpsest unlearn --resume` learns those that are not yet"))
    if any(each.state == "learnt" and each.texts for each in found):
        told = (
            "`palimpsest unlearn --resume` attacks those whose texts were to be dropped, and drops"
        )
        out.print(hinted(f"{told} these"))
    if any(each.state == "lost" for each in found):
        out.print("lost: its texts were dropped before it was learnt for this model; ask it again")


def _stood(receipt: Receipt | None) -> str:
    if receipt is None or receipt.certificate is None:
        return "not tried"
    return "stood" if receipt.verified else "did not stand"
