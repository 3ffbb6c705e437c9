"""`palimpsest forget` and `palimpsest verify`: what goes, what went, and whether that is true."""

from __future__ import annotations

import json as _json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import ConfigError, InputError
from .opening import open_keeper
from .output import Home, Json, Memories, Model, User, emit, out, plain, read_text, reporting

if TYPE_CHECKING:
    from ..agent.agent import Agent
    from ..memory.ledger import Ledger
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
        datetime | None, typer.Option(help="Of --source only what was taken in since, in UTC.")
    ] = None,
    session: Annotated[
        str | None, typer.Option("--session", "-s", help="Only of this conversation.")
    ] = None,
    user: User = "default",
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
    """
    with (
        reporting(json),
        open_keeper(home, model, memory or None, user, read_only=dry_run) as agent,
    ):
        named = what[0] if what and len(what) == 1 else what
        asked: dict[str, Any] = {"query": query, "everything": everything, "session": session}
        asked |= {"source": source, "origin": origin}
        asked |= {"since": since.replace(tzinfo=UTC) if since else None}
        plan = agent.forget(named, all_users=all_users, dry_run=True, **asked)
        if not json:
            _show_plan(agent, plan)
        if dry_run:
            if json:
                emit(plan.to_json())
            return
        if not yes:
            typer.confirm(
                f"Erase {_many(len(plan.records), 'record')} for good?", abort=True, err=True
            )
        done = agent.forget(plan)
        document = done.to_json()
        if report is not None:
            _write(report, document)
        if json:
            emit(document)
        else:
            _show_report(done, report)
    if done.residue:
        raise typer.Exit(1)


def verify(
    report: Annotated[
        str | None,
        typer.Argument(help="A file, or the id of an erasure; without, all that the ledger keeps."),
    ] = None,
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="The report is of another data folder.")
    ] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Check the signed report of a `forget`: who signed it, and that it still holds."""
    from ..memory import ledger as ledgers
    from ..memory.home import Home as Folder
    from ..unlearning.verification import verify as check

    with reporting(json):
        folder = None if elsewhere else Folder(home)
        if folder is None or not folder.path("ledger.sqlite3").exists():
            verdicts = [check(_document(report, None))]
        else:
            with ledgers.Ledger.open(folder.path("ledger.sqlite3")) as ledger:
                documents = [_document(report, ledger)] if report else _kept(ledger)
                verdicts = [check(document, folder, ledger) for document in documents]
        if json:
            emit([plain(verdict) | {"holds": verdict.holds} for verdict in verdicts])
        else:
            _show_verdicts(verdicts)
    if not all(verdict.holds for verdict in verdicts):
        raise typer.Exit(1)


def _show_plan(agent: Agent, plan: Report) -> None:
    shown = plan.records[:LISTED]
    number = {each.id: str(at) for at, each in enumerate(plan.records, 1)}
    found = agent.ledger.erasures.contents([each.id for each in shown], plan.who.across_sessions())
    texts = {each.id: " ".join(each.text.split()) for each in found}
    table = Table("", "what goes", "why", "record", box=None, pad_edge=False)
    table.columns[1].overflow, table.columns[1].no_wrap = "ellipsis", True
    for each in shown:
        why = f"{each.why} {number[each.of]}" if each.of else each.why
        table.add_row(number[each.id], escape(texts[each.id]), why, each.id)
    out.print(table)
    if len(plan.records) > LISTED:
        out.print(f"and {len(plan.records) - LISTED:,} more; --dry-run --json lists all of them")
    also = [f"{_many(plan.traces, 'trace')} of turns"] if plan.traces else []
    for part in plan.stores:
        also.append(f"in store {part.store} {_many(len(part.erased), 'artefact')}")
        also[-1] += f" ({len(part.rebuilt):,} more made anew)" if part.rebuilt else ""
    out.print(f"and with them {', '.join(also)}" if also else "")


def _show_report(done: Report, file: Path | None) -> None:
    page = Table.grid("", "", padding=(0, 2, 0, 0))

    def tell(what: str, *lines: str) -> None:
        for at, line in enumerate(lines):
            page.add_row("" if at else f"[bold]{what}[/bold]", line)

    whys = Counter(each.why for each in done.records)
    tell("forgotten", ", ".join(f"{count:,} {why}" for why, count in whys.items()))
    if done.traces:
        tell("traces", f"{_many(done.traces, 'trace')} of turns that mentioned them")
    for part in done.stores:
        tell(f"store {part.store}", *map(escape, part.checked))
    tell("files", *_searched(done))
    for backup in done.backups:
        tell("[yellow]backup[/yellow]", escape(f"{backup.path} of {backup.created} holds it still"))
    tell("not checked", *map(escape, done.unchecked))
    where = f"written to {escape(str(file))} and " if file else ""
    tell("report", f"signed, {where}kept: palimpsest verify {done.id}")
    out.print(page)
    records = _many(len(done.records), "record")
    if done.residue == 0:
        out.print(f"[green]forgot {records}, and no file holds anything of them[/green]")
    elif done.residue is None:
        out.print(f"[yellow]forgot {records}; the files could not be searched for them[/yellow]")
    else:
        left = _many(done.residue, "place")
        out.print(f"[red]forgot {records}, and {left} in files still hold something of them[/red]")


def _searched(done: Report) -> Iterator[str]:
    yield "written anew" if done.rewritten else "what was deleted is overwritten where it stood"
    if done.search is None:
        return
    read = f"{_many(done.search.files, 'file')} of {done.search.bytes:,} bytes"
    strings = _many(done.search.strings, "string")
    yield f"then searched, {read} for {strings}: {done.search.residue:,} found"
    for hit in done.search.hits:
        yield escape(f"{hit.file}, byte {hit.offset:,}: {hit.form} of {hit.of}, {hit.count} times")
    for unread in done.search.unread:
        yield escape(f"not read: {unread}")
    if also := done.search.also_said:
        yield f"a record that stays says something that {_many(len(also), 'forgotten one')} said"
    if plain := done.search.unsearchable:
        yield f"{_many(len(plain), 'record')} too short or too plain to be searched for"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _show_verdicts(verdicts: list[Verdict]) -> None:
    colours = {"holds": "green", "fails": "red", "not checked": "yellow"}
    for verdict in verdicts:
        out.print(f"erasure {verdict.report}")
        page = Table.grid("", "", padding=(0, 2, 0, 0))
        for each in verdict.checks:
            page.add_row(f"[{colours[each.state]}]{each.state}[/]", escape(each.claim))
            page.add_row("", f"[dim]{escape(each.because)}[/dim]")
        out.print(page)
        holds = (
            "[green]the report holds[/green]" if verdict.holds else "[red]it does not hold[/red]"
        )
        out.print(holds)
    if not verdicts:
        out.print("nothing was forgotten yet")


def _write(file: Path, document: Any) -> None:
    try:
        file.write_text(_json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"the erasure is done, but --report {str(file)!r} cannot be written"
            f" ({error.strerror}); the ledger keeps the report, see `palimpsest verify`"
        ) from None


def _document(report: str | None, ledger: Ledger | None) -> Any:
    """The report in a file, or the one that the ledger keeps under an id."""
    if report is None:
        raise ConfigError("name the file of a report: there is no ledger here that keeps any")
    kept = {} if ledger is None else {each["report"]["id"]: each for each in _kept(ledger)}
    if report in kept:
        return kept[report]
    text = read_text(Path(report))
    try:
        return _json.loads(text)
    except ValueError:
        raise ConfigError(f"{report!r} is not JSON; give the file of a report") from None


def _kept(ledger: Ledger) -> list[Any]:
    return [note.data["report"] for note in ledger.erasures.every("done")]
