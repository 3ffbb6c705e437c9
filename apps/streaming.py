"""`palimpsest read --stream-memory`: a document into a session's KV cache, with a bar."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from threading import Event
from typing import Any

from rich.markup import escape

from ..agent.agent import Agent
from ..errors import ConfigError
from .bar import bar
from .output import emit, hinted, many, out


def check_alone(refused: Mapping[str, str | None]) -> None:
    """That nothing was given which means another way to read, before anything is opened.

    Args:
        refused: options of `read` by name, and what was given for them.

    Raises:
        ConfigError: one of them was given.
    """
    if given := [name for name, value in refused.items() if value is not None]:
        raise ConfigError(
            f"{given[0]} and --stream-memory are two ways to read; read with one of them, and ask"
            " about what a cache has read with `palimpsest ask`"
        )


def stream_file(agent: Agent, file: Path, session: str, *, as_json: bool) -> None:
    """Keep a file's passages in the session, and let its caches read them. Ctrl-C ends the reading;
    what is left is read before the next answer.

    Raises:
        InputError: the file cannot be read.
    """
    with bar(f"keeping {file.name}") as tell:
        kept = agent.ingest(file, session=session, progress=tell)
    began = time.perf_counter()
    accounts, cut = _read_ahead(agent, session, file.name)
    seconds = time.perf_counter() - began
    if as_json:
        emit({"ingested": kept, "read": accounts, "seconds": seconds, "cancelled": cut})
        return
    out.print(
        f"{many(kept.added, 'passage')} added to {escape(session)}, {kept.known:,} were there"
    )
    for name, account in accounts.items():
        out.print(escape(_told(name, account, seconds)))
    if cut:
        out.print("cut short; the rest is read before the next answer")
    out.print(escape(hinted(f"ask with `palimpsest ask --session {session} --stream-memory ...`")))


def _read_ahead(agent: Agent, session: str, title: str) -> tuple[dict[str, dict[str, Any]], bool]:
    cancel, came = Event(), 0
    with bar(f"reading {title}") as tell:

        def told(done: int, expected: int) -> None:
            nonlocal came
            came = done
            tell(done, expected)

        try:
            return agent.read_ahead(session=session, progress=told), False
        except KeyboardInterrupt:  # the cache has been taken back as far as it came
            cancel.set()
    accounts = agent.read_ahead(session=session, cancel=cancel)
    return {name: {**account, "tokens_read": came} for name, account in accounts.items()}, True


def _told(name: str, account: Mapping[str, Any], seconds: float) -> str:
    read = account.get("tokens_read", 0)
    speed = f", {read / seconds:,.0f} tokens/s" if read and seconds else ""
    return (
        f"{name}: read {many(read, 'token')} in {seconds:.1f} s{speed}; stores"
        f" {account.get('tokens_stored', 0):,} of {account.get('tokens_seen', 0):,} seen,"
        f" {account.get('bytes', 0) / 2**20:.1f} MiB"
    )
