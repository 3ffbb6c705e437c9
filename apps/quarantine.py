"""`palimpsest quarantine`: what documents and tools said that gives orders, and its fate."""

from __future__ import annotations

from textwrap import shorten
from typing import Annotated

import typer

from ..errors import ConfigError
from .opening import open_keeper
from .output import Home, Json, Memories, User, agreed, emit, many, out, reporting

quarantine = typer.Typer(
    name="quarantine",
    help="What documents and tools said that gives orders: kept, and given to no memory.",
    no_args_is_help=True,
)

SHOWN = 160
"""Characters of a text that the list shows."""

Records = Annotated[list[str], typer.Argument(help="Ids of records; `list` shows them.")]


@quarantine.command("list")
def list_(home: Home = None, user: User = "default", json: Json = False) -> None:
    """What is in quarantine, oldest first, and why."""
    with reporting(json), open_keeper(home, "", [], user, read_only=True) as agent:
        held = agent.quarantined()
    if json:
        emit(held)
        return
    for each in held:
        named = [each.meta[key] for key in ("name", "title", "tool") if key in each.meta]
        origin = f"{each.source} {named[0]}" if named else each.source
        why = each.meta.get("quarantined", "no reason given")
        out.print(f"{each.id}  {origin}: {why}", markup=False, soft_wrap=True)
        out.print(f"    {shorten(each.text, SHOWN)}", markup=False, soft_wrap=True)
    if not held:
        out.print("nothing is in quarantine")


@quarantine.command()
def release(
    records: Records,
    home: Home = None,
    user: User = "default",
    memory: Memories = None,
    json: Json = False,
) -> None:
    """Let the memories have these after all, trusted as their source is."""
    with reporting(json), open_keeper(home, "", memory or None, user) as agent:
        freed = [agent.release(each) for each in records]
        if json:
            emit(freed)
            return
        for old, new in zip(records, freed, strict=True):
            out.print(f"{new.id} stands for {old} and can be recalled")


@quarantine.command()
def drop(
    records: Records,
    home: Home = None,
    user: User = "default",
    memory: Memories = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Erase these for good, as `forget` does."""
    with reporting(json), open_keeper(home, "", memory or None, user) as agent:
        held = {each.id for each in agent.quarantined()}
        if strange := [each for each in records if each not in held]:
            raise ConfigError(f"{strange} not in quarantine; `palimpsest forget` erases any record")
        plan = agent.forget(records, dry_run=True)
        if not yes and not agreed(f"Erase {many(len(plan.records), 'record')} for good?"):
            raise typer.Abort
        done = agent.forget(plan)
        gone = many(len(done.records), "record")
        emit(done.to_json()) if json else out.print(f"erased {gone} for good")
    if done.residue:
        raise typer.Exit(1)
