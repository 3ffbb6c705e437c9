"""What every command shares: options, one JSON document or a readable page, and errors."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import InputError, PalimpsestError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Home = Annotated[
    Path | None,
    typer.Option("--home", envvar="PALIMPSEST_HOME", help="Folder that holds all your data."),
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
Session = Annotated[str, typer.Option("--session", "-s", help="Name of the conversation.")]
User = Annotated[str, typer.Option("--user", help="Whose memory.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Longest reply, in tokens.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 is greedy.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Makes sampling repeatable.")]


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
        if as_json:
            emit({"error": {"type": type(error).__name__, "message": str(error)}})
        what = escape(str(error))  # it may name a file or a value that looks like markup
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
