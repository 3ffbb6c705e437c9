"""`palimpsest recall`: what the memories hold on a question, and why."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .opening import open_keeper
from .output import Home, Json, Listing, Memories, Model, User, emit, many, out, reporting, time

if TYPE_CHECKING:
    from ..agent.reply import Recollection


def recall(
    query: str,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="Only such: message, fact, correction (a fact that replaced one), document,"
            " summary; repeatable."
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(help="Only from there: user, assistant, document, tool; repeatable."),
    ] = None,
    session: Annotated[
        list[str] | None, typer.Option("--session", "-s", help="Only these.")
    ] = None,
    since: Annotated[datetime | None, time("Only what began to hold from then on.")] = None,
    until: Annotated[datetime | None, time("Only what began to hold before.")] = None,
    as_of: Annotated[datetime | None, time("Answer by what held then.")] = None,
    k: Annotated[int | None, typer.Option("-k", min=1, help="Most notes.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show what each score is of.")] = False,
    home: Home = None,
    user: User = "default",
    memory: Memories = None,
    model: Model = "smollm2",
    json: Json = False,
) -> None:
    """What the memories hold on a question, best first; the model is not asked.

    A TIME is UTC, or has an offset; any that is printed can be given. --as-of answers from the
    past: by what held then, superseded since or not.
    """
    where = {"kind": kind, "source": source, "session": session}
    with (
        reporting(json),
        open_keeper(home, model, memory or None, user, read_only=True) as agent,
    ):
        found = agent.recall(
            query,
            where={key: values for key, values in where.items() if values},
            since=since,
            until=until,
            as_of=as_of,
            k=k,
        )
    if json:
        emit(found)
    else:
        _show(found)
        if explain:
            for name, account in found.explain.items():
                _explain(name, account)
        elif not found.notes:
            out.print("--explain says why")


def _show(found: Recollection) -> None:
    from ..memory.pieces import unquoted

    table = Listing("score", "when", "who", "form", "text", "record", gives_way="text")
    for note in found.notes:
        when = f"{note.when:%Y-%m-%d %H:%M}" if note.when else ""
        records = "\n".join(note.records)
        text = unquoted(note.text)
        table.add(f"{note.score:.3f}", when, note.source, note.form, text, records)
    out.print(table if found.notes else "nothing found")


def _explain(memory: str, account: Mapping[str, Any]) -> None:
    """What was let through, and of each candidate what adds up to the log odds."""
    gate, limits = account.get("gate", {}), account.get("limits", {})
    if gate.get("value") is not None:
        done = "opened" if gate["open"] else "stayed shut, so nothing is shown"
        out.print(f"\n{memory}: {done}; best {gate['value']:.3f}, needs {gate['threshold']:.3f}")
    elif gate and not gate["open"]:
        out.print(f"\n{memory}: has nothing that these words or this meaning find")
    if left := limits.get("left_out"):
        out.print(
            f"{memory}: left out {many(left, 'note')} of documents or tools, as the question is"
            " about you and nothing that you said bears it out; --source document shows such"
        )
    candidates = account.get("candidates", [])
    if not candidates:
        return
    table = Listing("item", "form", "score", "probability", "shares", gives_way="shares")
    for each in candidates:
        shares = "  ".join(f"{name} {share:+.2f}" for name, share in each["signals"].items())
        ranked = (f"{each['score']:.3f}", f"{each['relevance']:.3f}")
        table.add(each["item"], each["form"], *ranked, shares)
    out.print(table)
    out.print(
        "the shares add up to the log odds of the probability; the score, by which notes are"
        " ranked, is the probability less what little trust takes off"
    )
