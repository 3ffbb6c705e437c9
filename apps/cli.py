"""The command line. Every verb goes through the Agent; nothing here knows how a memory works."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .. import __version__
from .editing import edit, edits, undo
from .files import export, import_, ingest
from .forgetting import forget, verify
from .keeping import backup, doctor, restore, stats, verify_chain
from .models import models
from .opening import chosen, open_agent, open_keeper
from .output import (
    Home,
    Json,
    Listing,
    MaxTokens,
    Memories,
    Model,
    Seed,
    Session,
    StreamMemory,
    Temperature,
    User,
    emit,
    hinted,
    out,
    reporting,
)
from .quarantine import quarantine
from .recalling import recall
from .unlearning import unlearn, unlearned

app = typer.Typer(
    name="palimpsest",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(models)
app.add_typer(quarantine)
app.command()(forget)
app.command()(verify)
app.command()(recall)
app.command()(edit)
app.command()(edits)
app.command()(undo)
app.command()(unlearn)
app.command()(unlearned)
for command in (ingest, export, backup, restore, doctor, verify_chain, stats):
    app.command()(command)
app.command("import")(import_)


def _version(asked: bool) -> None:
    if asked:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def palimpsest(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Which this is.")
    ] = False,
) -> None:
    """An agent with a memory that can be written, corrected and erased."""


@app.command()
def chat(
    home: Home = None,
    model: Model = "smollm2",
    memory: Memories = None,
    stream_memory: StreamMemory = None,
    session: Session = "main",
    user: User = "default",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Talk with the agent, line by line. `/help` lists what else you can do."""
    from .chat import run_chat

    with (
        reporting(json),
        open_agent(
            home,
            model,
            chosen(memory, stream_memory),
            user,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        ) as agent,
    ):
        run_chat(agent, session, as_json=json)


@app.command()
def ask(
    question: str,
    home: Home = None,
    model: Model = "smollm2",
    memory: Memories = None,
    stream_memory: StreamMemory = None,
    session: Session = "main",
    user: User = "default",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Ask once; the answer streams to stdout."""
    from ..agent.reply import collect

    with (
        reporting(json),
        open_agent(
            home,
            model,
            chosen(memory, stream_memory),
            user,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        ) as agent,
    ):
        pieces = []
        for piece in agent.stream(question, session=session):
            pieces.append(piece)
            if not json:
                out.print(str(piece), end="", markup=False)
        reply = collect(pieces)
        if json:
            emit({"text": reply.text, "record": reply.record, "why": reply.why})
        else:
            out.print()


@app.command()
def remember(
    text: str,
    home: Home = None,
    supersedes: Annotated[
        str | None, typer.Option(help="Id of the record that this one replaces.")
    ] = None,
    session: Session = "main",
    user: User = "default",
    memory: Memories = None,
    stream_memory: StreamMemory = None,
    model: Model = "smollm2",
    json: Json = False,
) -> None:
    """Store a fact as it is, without asking the model."""
    with reporting(json), open_agent(home, model, chosen(memory, stream_memory), user) as agent:
        record = agent.remember(text, supersedes=supersedes, session=session)
        emit(record) if json else out.print(f"remembered as {record.id}")


@app.command()
def correct(
    record: str,
    text: str,
    home: Home = None,
    session: Session = "main",
    user: User = "default",
    memory: Memories = None,
    stream_memory: StreamMemory = None,
    model: Model = "smollm2",
    json: Json = False,
) -> None:
    """Replace a record by TEXT; the old one stays readable with `history`."""
    with reporting(json), open_agent(home, model, chosen(memory, stream_memory), user) as agent:
        made = agent.correct(record, text, session=session)
        if json:
            emit(made)
            return
        out.print(f"{made.id} supersedes {made.supersedes}", soft_wrap=True)
        if made.supersedes != record:
            out.print(f"which had superseded {record} before", markup=False, soft_wrap=True)


@app.command()
def history(
    record: str,
    home: Home = None,
    user: User = "default",
    model: Model = "smollm2",
    json: Json = False,
) -> None:
    """A record, what it superseded and what superseded it, oldest first."""
    from .why import show_history

    with reporting(json), open_keeper(home, model, [], user, read_only=True) as agent:
        emit(agent.history(record)) if json else show_history(agent, record)


@app.command()
def sessions(
    home: Home = None, user: User = "default", model: Model = "smollm2", json: Json = False
) -> None:
    """All conversations of a user, and the documents that were taken in, the latest first."""
    with reporting(json), open_keeper(home, model, [], user, read_only=True) as agent:
        found = agent.sessions()
        if json:
            emit(found)
            return
        said = Listing("session", "turns", "last", "forked from")
        read = Listing("document", "records", "last", "session")
        for each in found:
            last = f"{each.last:%Y-%m-%d %H:%M}" if each.last else ""
            if each.document is None:
                said.add(each.id, str(each.turns), last, each.forked_from or "")
            else:
                read.add(each.document, str(each.records), last, each.id)
        none = hinted("no conversations yet; begin one with `palimpsest chat`")
        out.print(said if said.rows else escape(none))
        if read.rows:
            out.print("", read, sep="\n")


@app.command()
def fork(
    session: str,
    new: str,
    home: Home = None,
    user: User = "default",
    model: Model = "smollm2",
    at: Annotated[str | None, typer.Option(help="Last record that NEW shares.")] = None,
    json: Json = False,
) -> None:
    """Begin conversation NEW with the turns of SESSION."""
    with reporting(json), open_agent(home, model, [], user) as agent:
        scope = agent.fork(session, new, at=at)
        emit(scope) if json else out.print(f"{scope.session} goes on from {session}", markup=False)


@app.command()
def why(
    reply: Annotated[str | None, typer.Argument(help="Id of a reply; else the last turn.")] = None,
    home: Home = None,
    session: Session = "main",
    user: User = "default",
    model: Model = "smollm2",
    json: Json = False,
) -> None:
    """Which memory gave what to a reply, and why."""
    from .why import show_trace

    with reporting(json), open_keeper(home, model, [], user, read_only=True) as agent:
        trace = agent.why(reply, session=session)
        emit(trace) if json else show_trace(agent, trace)


@app.command()
def read(
    file: Annotated[Path, typer.Argument(help='A UTF-8 text; "-" for standard input.')],
    question: Annotated[str | None, typer.Option("--ask", help="Answer this from it.")] = None,
    topic: Annotated[str | None, typer.Option(help="What its summaries are to serve.")] = None,
    reader: Annotated[
        str | None, typer.Option(help='How, with options: "NAME:with_context=true".')
    ] = None,
    home: Home = None,
    model: Model = "smollm2",
    memory: Memories = None,
    stream_memory: StreamMemory = None,
    session: Annotated[
        str, typer.Option("--session", "-s", help="Whose cache reads it; with --stream-memory.")
    ] = "main",
    user: User = "default",
    json: Json = False,
) -> None:
    """Read a document of any length: a tree of summaries that the memory keeps, or one answer; or
    with --stream-memory word by word into a session's KV cache, to be asked about there."""
    from .reading import ask_file, read_file
    from .streaming import check_alone, stream_file

    with reporting(json):
        if stream_memory is not None:
            check_alone({"--ask": question, "--topic": topic, "--reader": reader})
        with open_agent(home, model, chosen(memory, stream_memory), user) as agent:
            if stream_memory is not None:
                stream_file(agent, file, session, as_json=json)
            elif question is None:
                read_file(agent, file, topic, reader, as_json=json)
            else:
                ask_file(agent, file, question, reader, as_json=json)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help='What to measure: "scm", "recall", ...')],
    data: Annotated[
        Path | None,
        typer.Option(envvar="PALIMPSEST_DATA", help="Folder of data sets; not needed for most."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="All of it, as long as it takes.")] = False,
    folder: Annotated[Path, typer.Option("--out", help="Where JSON and plot go.")] = Path(
        "bench-results"
    ),
    seed: Annotated[int, typer.Option(help="Of whatever is drawn.")] = 0,
    model: Model = "smollm2",
    json: Json = False,
) -> None:
    """Measure a part beside its baselines; prints tables, keeps JSON and a plot."""
    from .bench.harness import Table as Measured
    from .bench.harness import run_bench, show_table

    def show(table: Measured) -> None:
        if not json:
            show_table(table, out)

    with reporting(json):
        report = run_bench(
            name, data=data, full=full, seed=seed, model=model, out=folder, show=show
        )
        path = report.save(folder)
        emit(report.to_json() | {"file": path}) if json else out.print(f"kept in {path}")


@app.command()
def demo(model: Model = "smollm2", json: Json = False) -> None:
    """Tell the story of what this does, step by step; fails if a step does not hold."""
    from .demo import run_demo

    with reporting(json):
        raise typer.Exit(0 if run_demo(model, as_json=json) else 1)


def main() -> None:
    """The console script."""
    app()
