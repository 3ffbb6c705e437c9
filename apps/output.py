"""What every command shares: options, one JSON document or a readable page, and errors."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.prompt import Confirm
from rich.table import Table
from rich.text import Text

from ..errors import ConfigError, InputError, PalimpsestError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

_typed_home: ContextVar[Path | None] = ContextVar("typed_home", default=None)
_COMMAND = re.compile(r"`(palimpsest (?!models\b)[^`]+)`")


def _note_home(context: typer.Context, value: Path | None) -> Path | None:
    source = context.get_parameter_source("home")
    _typed_home.set(value if source and source.name == "COMMANDLINE" else None)
    return value


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time; write it as 2026-05-01, 2026-05-01T17:49 or"
            " 2026-05-01T17:49:10+02:00"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def time(help: str) -> Any:
    """An option that is a time, in UTC unless it says otherwise."""
    return typer.Option(parser=_time, metavar="TIME", help=help)


Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        envvar="PALIMPSEST_HOME",
        callback=_note_home,
        help="Folder that holds all your data.",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="PALIMPSEST_MODEL",
        help="Catalog name, folder, .gguf file, or http://host/v1#name.",
    ),
]
Memories = Annotated[
    list[str] | None,
    typer.Option(
        "--memory", help='"none", or a memory with its options, "scm:k=6"; repeat for more.'
    ),
]
StreamMemory = Annotated[
    str | None,
    typer.Option(
        "--stream-memory",
        help="Beside these, a KV cache for each session, by its policy: sirllm, infllm, sinks,"
        ' lm_infinite, ..., or "sirllm:budget=1024,decay=0.9".',
    ),
]
Session = Annotated[str, typer.Option("--session", "-s", help="Name of the conversation.")]
User = Annotated[str, typer.Option("--user", help="Whose memory.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Longest reply, in tokens.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 is greedy.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Makes sampling repeatable.")]


class Listing(Table):
    """A table whose cells are data: nothing in them is read as markup.

    Args:
        gives_way: the column that is narrower where the page is; by default all are.
        cut: it is cut there, and not wrapped.
    """

    def __init__(self, *headers: str, gives_way: str | None = None, cut: bool = False) -> None:
        super().__init__(*headers, box=None, pad_edge=False)
        self._cut = headers.index(gives_way) if gives_way and cut else None
        for column in self.columns:
            column.no_wrap = gives_way is not None and column.header != gives_way
            column.overflow = "fold"

    def add(self, *cells: str) -> None:
        """One more row."""
        texts = [Text(cell) for cell in cells]
        if self._cut is not None:
            texts[self._cut] = Text(cells[self._cut], no_wrap=True, overflow="ellipsis")
        self.add_row(*texts)


def many(count: int, what: str) -> str:
    """`1 record`, or `2 records`."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def hinted(text: str) -> str:
    """`text` with its commands meant for this data folder: with `--home`, where that was typed."""
    home = _typed_home.get()
    return _COMMAND.sub(lambda hit: f"`{hit[1]} --home {quote(str(home))}`", text) if home else text


def agreed(question: str) -> bool:
    """Ask at the terminal, or read the answer from what is piped in.

    Raises:
        ConfigError: nobody answers.
    """
    try:
        return Confirm.ask(escape(question), console=err, default=False)
    except EOFError:
        raise ConfigError(
            f"nobody answered {question!r}; --yes does not ask, and nothing was done"
        ) from None


def emit(document: Any) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(json.dumps(plain(document), ensure_ascii=False, indent=2) + "\n")


def plain(value: Any) -> Any:
    """`value` as JSON values: dataclasses as objects, times as ISO 8601, paths as text."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    return value


@contextmanager
def reporting(as_json: bool) -> Iterator[None]:
    """Turn our errors into one line on stderr (or a JSON document) and an exit code: 2 for what
    the caller can put right in the command, 1 for everything else."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    try:
        yield
    except PalimpsestError as error:
        message = hinted(str(error))
        if as_json:
            emit({"error": {"type": type(error).__name__, "message": message}})
        what = escape(message)  # it may name a file or a value that looks like markup
        err.print(f"[red]{type(error).__name__}[/red]: {what}", soft_wrap=True)
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def read_text(path: Path) -> str:
    """A UTF-8 text file, or standard input for "-".

    Raises:
        InputError: it is missing, unreadable, or not UTF-8.
    """
    if str(path) == "-":
        return sys.stdin.read()
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{str(path)!r} is not UTF-8 (byte {error.start}); convert it, e.g. with iconv"
        ) from None
