"""`palimpsest ingest`, `export` and `import`: files in, everything out, and in again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import DownloadColumn
from rich.table import Table

from .bar import bar
from .opening import open_keeper
from .output import (
    Home,
    Json,
    Memories,
    Model,
    User,
    emit,
    hinted,
    many,
    out,
    plain,
    reporting,
)

if TYPE_CHECKING:
    from ..agent.receipt import Ingested

COUNTS = ("added", "known", "vouched", "forgotten", "quarantined")

LISTED = 20
"""Files that a table shows; --json lists all."""

Session = Annotated[
    str | None, typer.Option("--session", "-s", help="Put everything into this conversation.")
]
Trusted = Annotated[
    str, typer.Option(help='Whom it speaks for: "document", or "user" to vouch for what it says.')
]


def ingest(
    path: Annotated[Path, typer.Argument(help="A file, or a folder of files.")],
    source: Trusted = "document",
    session: Session = None,
    again: Annotated[
        bool, typer.Option("--again", help="Take in what was forgotten here, too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what is new.")] = False,
    home: Home = None,
    memory: Memories = None,
    user: User = "default",
    model: Model = "smollm2",
    json: Json = False,
) -> None:
    """Take in text, Markdown, HTML, PDF, and what mem0 and Letta export.

    The same again adds nothing, and what was cut short goes on where it ended. What was forgotten
    stays out. Fails if a file cannot be read; the others are taken in all the same.
    """
    with (
        reporting(json),
        open_keeper(home, model, memory or None, user) as agent,
        bar(f"reading {path.name}", DownloadColumn()) as tell,
    ):
        how: dict[str, Any] = {"source": source, "session": session, "again": again}
        done = agent.ingest(path, dry_run=dry_run, progress=tell, **how)
    if json:
        emit(plain(done) | {count: getattr(done, count) for count in COUNTS})
    else:
        _show(done, dry_run)
    if done.failed:
        raise typer.Exit(1)


def export(
    file: Annotated[Path, typer.Argument(help="Where to; JSON lines.")],
    user: Annotated[str | None, typer.Option(help="Only this user's.")] = None,
    session: Annotated[
        str | None, typer.Option("--session", "-s", help="Only this conversation.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Replace a file.")] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Write the ledger, or a part of it, to a file that `import` reads back exactly.

    Also while somebody has the data folder open.
    """
    part = {key: value for key, value in (("user", user), ("session", session)) if value}
    with reporting(json), open_keeper(home, "", [], "default", read_only=True) as agent:
        done = agent.export_to(file, replace=yes, **part)
    if json:
        emit(done)
    else:
        whose = "all of the ledger, with its chain of events" if not part else _words(part)
        out.print(f"{many(done.rows, 'row')}, {done.bytes:,} bytes: {escape(whose)}")


def import_(
    file: Annotated[Path, typer.Argument(help="What `export` wrote.")],
    home: Home = None,
    memory: Memories = None,
    model: Model = "smollm2",
    json: Json = False,
) -> None:
    """Take in an export: exactly, into an empty ledger; else what is not there yet. All or
    nothing."""
    with reporting(json), open_keeper(home, model, memory or None, "default") as agent:
        done = agent.import_from(file)
    if json:
        emit(done)
        return
    how = "the ledger is now the one exported" if done.exact else "taken in behind what was there"
    out.print(f"{many(done.added, 'record')} added, {done.known:,} were there: {how}")
    if done.forgotten:
        out.print(f"{done.forgotten:,} were forgotten here and stay out")


def _show(done: Ingested, dry_run: bool) -> None:
    table = Table("file", "new", "known", box=None, pad_edge=False)
    for each in done.files[:LISTED]:
        table.add_row(escape(each.name), f"{each.added:,}", f"{each.known:,}")
    if done.files:
        out.print(table)
    if len(done.files) > LISTED:
        out.print(f"and {len(done.files) - LISTED:,} more files")
    for missed in done.skipped[:LISTED]:
        out.print(f"skipped {missed.name}: {missed.why}", markup=False, style="dim")
    if len(done.skipped) > LISTED:
        out.print(f"and {len(done.skipped) - LISTED:,} more skipped")
    for missed in done.failed:
        out.print(f"failed {missed.why}", markup=False, style="red")
    verb = "would be added" if dry_run else "added"
    out.print(f"[bold]{many(done.added, 'record')} {verb}[/bold], {done.known:,} were there")
    if done.vouched:
        now = "would be vouched for" if dry_run else "are vouched for now"
        out.print(f"{done.vouched:,} were trusted less, and {now}")
    if done.forgotten:
        out.print(f"{done.forgotten:,} were forgotten here and stay out; --again takes them in")
    if done.quarantined:
        held = f"{done.quarantined:,} of them give orders, and no memory is given these"
        see = escape(hinted("see `palimpsest quarantine list`"))
        out.print(f"[yellow]{held}[/yellow]; {see}")


def _words(part: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in part.items())
