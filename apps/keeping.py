"""`palimpsest backup`, `restore`, `doctor`, `verify-chain` and `stats`: the data folder, kept."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from .opening import open_keeper
from .output import (
    Home,
    Json,
    Memories,
    User,
    agreed,
    emit,
    hinted,
    many,
    out,
    plain,
    reporting,
)

if TYPE_CHECKING:
    from ..agent.doctor import Examination
    from ..agent.stats import Stats
    from ..memory.backups import Restored

COLOURS = {"well": "green", "ill": "red", "mended": "yellow", "note": "dim"}


def backup(
    where: Annotated[Path, typer.Argument(help="A new file; or a folder, to make one in.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Copy the data folder into one file, in one consistent state, also while it is in use."""
    with reporting(json), open_keeper(home, "", [], "default", read_only=True) as agent:
        done = agent.backup(where)
    if json:
        emit(done)
    else:
        out.print(
            f"{many(done.records, 'record')}, {done.bytes:,} bytes: {escape(done.path)}",
            soft_wrap=True,
        )
        out.print(f"chain head {done.head}", soft_wrap=True)
        out.print("what you forget from now on is still in this file")


def restore(
    file: Annotated[Path, typer.Argument(help="What `backup` wrote.")],
    verify: Annotated[
        bool, typer.Option("--verify", "--dry-run", help="Only check it and say what would go.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Replace what is there.")] = False,
    home: Home = None,
    memory: Memories = None,
    json: Json = False,
) -> None:
    """Put a backup in the place of the data folder, after checking all of it."""
    from ..agent.agent import Agent

    with reporting(json):
        found, _ = Agent.restore(file, home=home, dry_run=True)
        if not json:
            _show_outlook(found, home)
        if verify:
            if json:
                emit(found)
            return
        if found.replaced != 0 and not yes and not agreed("Replace it for good?"):
            raise typer.Abort
        done, health = Agent.restore(file, home=home, replace=True, memories=memory or None)
        health = health and _for_here(health)
        if json:
            emit({"restored": done, "health": health})
        elif health is not None:
            _show_health(health)
    if health is not None and not health.healthy:
        raise typer.Exit(1)


def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Mend the stores.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="With --fix: make all stores anew.")
    ] = False,
    home: Home = None,
    memory: Memories = None,
    json: Json = False,
) -> None:
    """Look at the data folder and say what is wrong with it and what to do; fails if something is.

    The ledger is never changed: it has backups. Everything else is made from it, and can be again.
    """
    from ..agent.agent import Agent

    with reporting(json):
        found = Agent.doctor(home=home, fix=fix, rebuild=rebuild, memories=memory or None)
        found = _for_here(found)
        if json:
            emit(plain(found) | {"healthy": found.healthy})
        else:
            _show_health(found)
    if not found.healthy:
        raise typer.Exit(1)


def verify_chain(home: Home = None, json: Json = False) -> None:
    """Check that nobody rewrote the history of the ledger, nor a record in it."""
    with reporting(json), open_keeper(home, "", [], "default", read_only=True) as agent:
        head = agent.verify_chain()
        if json:
            emit(head)
        else:
            out.print(f"[green]the chain holds[/green]: {many(head.seq, 'event')}")
            out.print(f"head {head.hash}", soft_wrap=True)
            out.print("note it elsewhere: then nobody can rewrite all of it unseen")


def stats(home: Home = None, user: User = "default", json: Json = False) -> None:
    """How much there is of what, and what it takes on disk."""
    with reporting(json), open_keeper(home, "", [], user, read_only=True) as agent:
        found = agent.stats()
        emit(found) if json else _show_stats(found, user)


def _show_outlook(found: Restored, home: Path | None) -> None:
    made = found.backup
    held = f"{many(made.records, 'record')}, {many(made.events, 'event')}"
    out.print(f"backup of {made.created}: {held}")
    out.print("every file is as its SHA-256 says, and the chain of events holds")
    if found.replaced is None:
        out.print("[yellow]replaces a ledger that cannot be read[/yellow]")
    elif found.replaced:
        out.print(f"[yellow]replaces {many(found.replaced, 'record')}[/yellow]")
    for each in found.undone:
        out.print(f"[red]what erasure {each.id} forgot is in it[/red]; forget it again:")
        whose = ["--all-users"] if each.user is None else ["--user", each.user]
        where = ["--home", str(home)] if home else []
        command = ["palimpsest", "forget", *each.records, *whose, *where]
        out.print(shlex.join(command), markup=False, soft_wrap=True)


def _for_here(found: Examination) -> Examination:
    """With remedies for the folder that was typed."""
    findings = [replace(f, remedy=f.remedy and hinted(f.remedy)) for f in found.findings]
    return replace(found, findings=findings)


def _show_health(found: Examination) -> None:
    for each in found.findings:
        out.print(f"[{COLOURS[each.state]}]{each.state:7}[/] {each.part}: ", end="")
        out.print(each.what, markup=False, soft_wrap=True)
        if each.remedy:
            out.print(f"        -> {each.remedy}", markup=False, soft_wrap=True)


def _show_stats(found: Stats, user: str) -> None:
    census = found.census
    out.print(
        f"{many(census.records, 'record')}, {census.current:,} of them current,"
        f" {escape(found.home)}"
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    for title, counts in (
        ("by kind", census.kinds),
        ("by source", census.sources),
        (escape(f"sessions of {user}"), census.sessions),
        ("erasures", census.erasures),
        ("bytes on disk", found.disk),
    ):
        listed = ", ".join(f"{name or '(none)'} {count:,}" for name, count in counts.items())
        table.add_row(title, escape(listed) or "none")
    for name, store in census.stores.items():
        behind = found.events - store.cursor
        held = f"{store.artefacts:,} entries of {store.records:,} records"
        table.add_row(f"store {name}", held + (f", {behind:,} events behind" if behind else ""))
    out.print(table)
    out.print(f"{found.events:,} events, chain head {found.head}", soft_wrap=True)
