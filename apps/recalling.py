"""`palimpsest recall`: what the memories hold on a question, and why."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from .opening import open_keeper
from .output import Home, Json, Memories, Model, User, emit, out, reporting

Time = Annotated[
    datetime | None,
    typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"], metavar="TIME"),
]


def recall(
    query: str,
    kind: Annotated[list[str] | None, typer.Option(help="Only such records; repeatable.")] = None,
    source: Annotated[list[str] | None, typer.Option(help="Only from there; repeatable.")] = None,
    session: Annotated[
        list[str] | None, typer.Option("--session", "-s", help="Only these.")
    ] = None,
    since: Time = None,
    until: Time = None,
    as_of: Time = None,
    k: Annotated[int | None, typer.Option("-k", min=1, help="Most notes.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show what each score is of.")] = False,
    home: Home = None,
    user: User = "default",
    memory: Memories = None,
    model: Model = "smollm2",
    json: Json = False,
) -> None:
    """What the memories hold on a question, best first; the model is not asked.

    Times are UTC. --as-of answers from the past: by what held then, superseded since or not.
    """
    where = {"kind": kind, "source": source, "session": session}
    with (
        reporting(json),
        open_keeper(home, model, memory or None, user, read_only=True) as agent,
    ):
        found = agent.recall(
            query,
            where={key: values for key, values in where.items() if values},
            since=_utc(since),
            until=_utc(until),
            as_of=_utc(as_of),
            k=k,
        )
    if json:
        emit(found)
        return
    table = Table("score", "when", "who", "form", "text", "record", box=None, pad_edge=False)
    for note in found.notes:
        when = f"{note.when:%Y-%m-%d %H:%M}" if note.when else ""
        records = "\n".join(note.records)
        table.add_row(f"{note.score:.3f}", when, note.source, note.form, note.text, records)
    out.print(table if found.notes else "nothing found")
    if explain:
        for memory_name, account in found.explain.items():
            _explain(memory_name, account)


def _explain(memory: str, account: Mapping[str, Any]) -> None:
    """The gate, and by each candidate how much each signal adds to the log odds of its score."""
    gate = account.get("gate", {})
    if gate.get("value") is not None:
        done = "opened" if gate["open"] else "stayed shut"
        out.print(f"\n{memory}: {done}, best {gate['value']:.3f}, needs {gate['threshold']:.3f}")
    candidates = account.get("candidates", [])
    names = list(dict.fromkeys(name for each in candidates for name in each["signals"]))
    if not names:
        return
    table = Table("item", "probability", *names, box=None, pad_edge=False)
    for each in candidates:
        shares = (
            f"{each['signals'][name]:+.2f}" if name in each["signals"] else "" for name in names
        )
        table.add_row(each["item"], f"{each['relevance']:.3f}", *shares)
    out.print(table)


def _utc(time: datetime | None) -> datetime | None:
    return time.replace(tzinfo=UTC) if time else None
