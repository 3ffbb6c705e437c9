"""What happened, as pages: a turn's trace, and the versions of a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from ..agent.agent import Agent
from ..agent.trace import NoteTrace, Trace
from ..errors import RecordNotFound
from ..memory.record import RecordId
from ..unlearning.base import META
from .output import Listing, out


def show_trace(agent: Agent, trace: Trace) -> None:
    """Print a trace; the records' texts are read from the ledger now, so erased ones say so."""
    session, model = escape(trace.session), escape(trace.model)
    out.print(f"[bold]{session}[/bold]  {trace.at:%Y-%m-%d %H:%M}  {model}")
    out.print(f"asked     {_text(agent, trace.message)}", markup=False)
    out.print(
        f"answered  {_text(agent, trace.reply) if trace.reply else '(nothing)'}", markup=False
    )
    for memory in trace.memories:
        out.print(
            f"\n[bold]{memory.memory}[/bold]  {memory.place} place,"
            f" {memory.ms:.0f} ms, {memory.turns} messages of this conversation"
        )
        if memory.notes:
            out.print(_notes(agent, memory.notes))
        if memory.place == "weights":
            for record in memory.records:
                out.print(f"patched by {record}  {_text(agent, record)}", markup=False)
        explained = dict(memory.explain)
        for each in explained.pop("adapters", ()):
            out.print(_loaded(agent, each), markup=False, soft_wrap=True)
        if explained:
            out.print_json(data=explained)
    out.print(
        f"\nrecall {trace.recall_ms:.0f} ms, first token {trace.first_token_ms or 0:.0f} ms,"
        f" {trace.reply_tokens} tokens in {trace.generate_ms / 1000:.1f} s, ended by"
        f" {trace.finish}{f' ({trace.error})' if trace.error else ''}"
    )


def show_history(agent: Agent, record: str) -> None:
    """Print all versions of a record, oldest first, and until when each held."""
    for each in agent.history(record):
        until = f"until {each.valid_to:%Y-%m-%dT%H:%M:%SZ}" if each.valid_to else "holds now"
        out.print(f"{each.id}  {each.kind:10} {until:26} {each.text}", markup=False)


def _notes(agent: Agent, notes: tuple[NoteTrace, ...]) -> Listing:
    table = Listing(
        "score", "in prompt", "form", "tokens", "record", "text", gives_way="text", cut=True
    )
    for note in notes:
        table.add(
            f"{note.score:.3f}",
            "yes" if note.kept else "no room",
            note.form,
            str(note.tokens),
            note.records[0],
            _text(agent, note.records[0]),
        )
    return table


def _loaded(agent: Agent, gate: Mapping[str, Any]) -> str:
    """In words, how much of the adapter of a request to unlearn was loaded."""
    id, score, threshold = (gate[name] for name in ("request", "score", "threshold"))
    found = agent.ledger.find([RecordId(id)], agent.scope.across_sessions())
    name = found[0].meta[META]["name"] if found else "undone since"
    share = f"{gate['loaded']:.0%} loaded" if gate["loaded"] else "not loaded"
    if score is None:
        return f"request {id} ({name}): {share}, the message names others than it does"
    return f"request {id} ({name}): {share}, score {score:.2f}, half open at {threshold:.2f}"


def _text(agent: Agent, record: str, width: int = 70) -> str:
    try:
        text = agent.history(record)
    except RecordNotFound:
        return "(erased)"
    found = next(each.text for each in text if each.id == record)
    line = " ".join(found.split())
    return line if len(line) <= width else line[: width - 1] + "…"
