"""`palimpsest forget` and `palimpsest verify`: what goes, what went, and whether that is true."""

from __future__ import annotations

import json as _json
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..errors import ConfigError, InputError
from .bar import waited
from .editing import verify_edits
from .opening import open_agent, open_keeper
from .output import (
    Home,
    Json,
    Listing,
    Memories,
    Model,
    User,
    agreed,
    emit,
    hinted,
    many,
    out,
    plain,
    read_text,
    reporting,
    time,
)
from .unlearning import document as told_of
from .unlearning import verify_requests
from .unlearnt import show_receipt

if TYPE_CHECKING:
    from ..agent.agent import Agent
    from ..memory.ledger import Ledger
    from ..unlearning.base import Receipt
    from ..unlearning.report import Report
    from ..unlearning.verification import Verdict

LISTED = 40
"""Records that a table shows; the report has all of them."""


def forget(
    what: Annotated[
        list[str] | None, typer.Argument(help="Ids of records; or one text, as with --query.")
    ] = None,
    query: Annotated[str | None, typer.Option(help="All that has all of these words.")] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="All of the user, or of --session.")
    ] = False,
    all_users: Annotated[
        bool, typer.Option("--all-users", help="Of every user and agent, not just --user.")
    ] = False,
    source: Annotated[
        str | None, typer.Option(help='All that came from it: "document", "tool", ...')
    ] = None,
    origin: Annotated[
        str | None, typer.Option(help='Of --source only this file or tool; "*.pdf" for several.')
    ] = None,
    since: Annotated[
        datetime | None, time("Of --source only what was taken in since; UTC, or with an offset.")
    ] = None,
    session: Annotated[
        str | None, typer.Option("--session", "-s", help="Only of this conversation.")
    ] = None,
    user: User = "default",
    deep: Annotated[
        bool, typer.Option("--deep", help="Then have the model unlearn the texts, too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write the signed report here.")] = None,
    home: Home = None,
    memory: Memories = None,
    model: Model = "smollm2",
    json: Json = False,
) -> None:
    """Erase records for good, with all that was made from them, from every store and file.

    Shows what goes, asks, and reports what went; fails if anything of it was found afterwards.
    With --deep, also if the model still says something of it when it is attacked.
    """
    with (
        reporting(json),
        _opened(home, model, memory, user, dry_run=dry_run, deep=deep) as agent,
    ):
        named = what[0] if what and len(what) == 1 else what
        asked: dict[str, Any] = {"query": query, "everything": everything, "session": session}
        asked |= {"source": source, "origin": origin, "since": since}
        if report is not None and not dry_run:
            _try_to_write(report)
        plan = agent.forget(named, all_users=all_users, dry_run=True, **asked)
        if not json:
            show_plan(agent, plan)
        if dry_run:
            if json:
                emit(plan.to_json())
            return
        if not yes and not agreed(f"Erase {many(len(plan.records), 'record')} for good?"):
            raise typer.Abort
        done, receipt = _forgotten(agent, plan, deep=deep)
        document = done.to_json()
        if report is not None:
            _write(report, document, done.id)
        if json:
            emit({"erasure": document, "unlearnt": _told(receipt)} if deep else document)
        else:
            _show_report(done, report)
            if deep:
                _show_unlearnt(receipt)
    if done.residue or (receipt is not None and receipt.advice):
        raise typer.Exit(1)


def verify(
    report: Annotated[
        str | None,
        typer.Argument(
            help="A file, or the id of an erasure, an edit or a request to unlearn; without, all"
            " erasures that the ledger keeps."
        ),
    ] = None,
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="The report is of another data folder.")
    ] = False,
    home: Home = None,
    user: User = "default",
    model: Model = "smollm2",
    json: Json = False,
) -> None:
    """Check the signed report of a `forget`: who signed it, and that it still holds. Of an edit,
    ask the model again; of a request to unlearn, attack it again."""
    from ..memory import ledger as ledgers
    from ..memory.home import Home as Folder
    from ..memory.record import RecordId, Scope
    from ..unlearning.verification import verify as check

    with reporting(json):
        folder = Folder(home, make=False)
        if elsewhere:
            verdicts = [check(_document(report, None))]
        elif not folder.path("ledger.sqlite3").exists():
            raise ConfigError(
                f"data folder {folder.root} keeps no ledger to check a report by; name the one it"
                " is of with --home, or check the signature alone with --elsewhere"
            )
        else:
            with ledgers.Ledger.open(folder.path("ledger.sqlite3")) as ledger:
                asked = ledger.find([RecordId(report or "")], Scope(user=user))
                kind = asked[0].kind if asked else None
                if kind in ("edit", "request"):
                    check_model = verify_edits if kind == "edit" else verify_requests
                    check_model(home, model, user, [asked[0].id], as_json=json)
                    return
                documents = [_document(report, ledger)] if report else _kept(ledger)
                verdicts = [check(document, folder, ledger) for document in documents]
        if json:
            emit([plain(verdict) | {"holds": verdict.holds} for verdict in verdicts])
        else:
            _show_verdicts(verdicts, elsewhere=elsewhere)
    if not all(verdict.holds for verdict in verdicts):
        raise typer.Exit(1)


def show_plan(agent: Agent, plan: Report) -> None:
    """Print what would go, and why."""
    shown = plan.records[:LISTED]
    number = {each.id: str(at) for at, each in enumerate(plan.records, 1)}
    found = agent.ledger.erasures.contents([each.id for each in shown], plan.who.across_sessions())
    texts = {each.id: " ".join(each.text.split()) for each in found}
    table = Listing("", "what goes", "why", "record", gives_way="what goes", cut=True)
    for each in shown:
        why = f"{each.why} {number[each.of]}" if each.of else each.why
        table.add(number[each.id], texts[each.id], why, each.id)
    out.print(table)
    if len(plan.records) > LISTED:
        out.print(f"and {len(plan.records) - LISTED:,} more; --dry-run --json lists all of them")
    also = [f"{many(plan.traces, 'trace')} of turns"] if plan.traces else []
    for part in plan.stores:
        also.append(f"in store {part.store} {many(len(part.erased), 'artefact')}")
        also[-1] += f" ({len(part.rebuilt):,} more made anew)" if part.rebuilt else ""
    out.print(f"and with them {', '.join(also)}" if also else "")


def _opened(
    home: Path | None, model: str, memory: list[str] | None, user: str, *, dry_run: bool, deep: bool
) -> Agent:
    """With its model, if it is to unlearn."""
    if deep and not dry_run:
        return open_agent(home, model, memory or None, user)
    return open_keeper(home, model, memory or None, user, read_only=dry_run)


def _forgotten(agent: Agent, plan: Report, *, deep: bool) -> tuple[Report, Receipt | None]:
    from ..agent.jobs import Job

    if not deep:
        return agent.forget(plan), None
    return waited(
        Job(lambda tell, end: agent.forget_deeply(plan, progress=tell, cancel=end)), "forgetting"
    )


def _told(receipt: Receipt | None) -> dict[str, Any] | None:
    return told_of(receipt) if receipt else None


def _show_unlearnt(receipt: Receipt | None) -> None:
    if receipt is None:
        out.print("none of it is a text that somebody said, so nothing was unlearnt")
    else:
        show_receipt(receipt)


def _show_report(done: Report, file: Path | None) -> None:
    page = Table.grid("", "", padding=(0, 2, 0, 0))

    def tell(what: str, *lines: str) -> None:
        for at, line in enumerate(lines):
            page.add_row("" if at else f"[bold]{what}[/bold]", line)

    whys = Counter(each.why for each in done.records)
    tell("forgotten", ", ".join(f"{count:,} {why}" for why, count in whys.items()))
    if done.traces:
        tell("traces", f"{many(done.traces, 'trace')} of turns that mentioned them")
    for part in done.stores:
        tell(f"store {part.store}", *map(escape, part.checked))
    tell("files", *_searched(done))
    for backup in done.backups:
        tell("[yellow]backup[/yellow]", escape(f"{backup.path} of {backup.created} holds it still"))
    tell("not checked", *map(escape, done.unchecked))
    where = f"written to {file} and " if file else ""
    tell("report", escape(hinted(f"signed, {where}kept: `palimpsest verify {done.id}`")))
    out.print(page)
    out.print(outcome(done))


def outcome(done: Report) -> Text:
    """In a line, whether it is gone."""
    count = len(done.records)
    forgot, them = f"forgot {many(count, 'record')}", "it" if count == 1 else "them"
    if done.search is None:
        return Text(f"{forgot}; the files could not be searched for {them}", "yellow")
    if done.residue:
        left = f"files still hold something of {them}, in {many(done.residue, 'place')}"
        return Text(f"{forgot}, and {left}", "red")
    if plain := len(done.search.unsearchable):
        short = "it was" if count == 1 else f"{plain} of them {'was' if plain == 1 else 'were'}"
        told = f"{short} too short or too plain to be searched for by the text"
        return Text(f"{forgot}, and no file was found to hold anything of {them}; {told}", "yellow")
    return Text(f"{forgot}, and no file holds anything of {them}", "green")


def _searched(done: Report) -> Iterator[str]:
    yield "written anew" if done.rewritten else "what was deleted is overwritten where it stood"
    if done.search is None:
        return
    read = f"{many(done.search.files, 'file')} of {done.search.bytes:,} bytes"
    strings = many(done.search.strings, "string")
    yield f"then searched, {read} for {strings}: {done.search.residue:,} found"
    for hit in done.search.hits:
        yield escape(f"{hit.file}, byte {hit.offset:,}: {hit.form} of {hit.of}, {hit.count} times")
    for unread in done.search.unread:
        yield escape(f"not read: {unread}")
    if also := done.search.also_said:
        yield f"a record that stays says something that {many(len(also), 'forgotten one')} said"
    if plain := done.search.unsearchable:
        yield f"{many(len(plain), 'record')} too short or too plain to be searched for"


def _show_verdicts(verdicts: list[Verdict], *, elsewhere: bool) -> None:
    colours = {"holds": "green", "fails": "red", "not checked": "yellow"}
    for verdict in verdicts:
        out.print(f"erasure {verdict.report}")
        page = Table.grid("", "", padding=(0, 2, 0, 0))
        for each in verdict.checks:
            page.add_row(f"[{colours[each.state]}]{each.state}[/]", escape(each.claim))
            page.add_row("", f"[dim]{escape(each.because)}[/dim]")
        out.print(page)
        if not verdict.holds:
            out.print("[red]it does not hold[/red]")
        elif elsewhere:
            out.print("[green]the signature holds[/green]; the rest could not be checked")
        else:
            out.print("[green]the report holds[/green]")
    if not verdicts:
        out.print("nothing was forgotten yet")


def _try_to_write(file: Path) -> None:
    """See that a report can be written, before there is anything to report."""
    new = not file.exists()
    try:
        file.open("a").close()
    except OSError as error:
        raise InputError(
            f"--report {str(file)!r} cannot be written ({error.strerror}); name a file that can;"
            " nothing was forgotten"
        ) from None
    if new:
        file.unlink()


def _write(file: Path, document: Any, id: str) -> None:
    try:
        file.write_text(_json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"the erasure is done, but --report {str(file)!r} cannot be written"
            f" ({error.strerror}); the ledger keeps the report: `palimpsest verify {id}`"
        ) from None


def _document(report: str | None, ledger: Ledger | None) -> Any:
    """The report in a file, or the one that the ledger keeps under an id."""
    if report is None:
        raise ConfigError("--elsewhere needs the file of a report: no ledger is asked for any")
    kept = {} if ledger is None else {each["report"]["id"]: each for each in _kept(ledger)}
    if report in kept:
        return kept[report]
    if ledger is not None and report != "-" and not Path(report).exists():
        raise InputError(
            f"cannot read {report!r}: it is no file, no erasure and no edit or request of this"
            " user's; `palimpsest edits` and `palimpsest unlearned` list those, and `palimpsest"
            " verify` alone checks all erasures"
        )
    text = read_text(Path(report))
    try:
        return _json.loads(text)
    except ValueError:
        raise ConfigError(f"{report!r} is not JSON; give the file of a report") from None


def _kept(ledger: Ledger) -> list[Any]:
    return [note.data["report"] for note in ledger.erasures.every("done")]
