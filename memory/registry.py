"""The memories by name. To add one: its own file, one row here, one row in tests/conformance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..registry import Registry, parse_spec
from .base import Memory, StoreContext

MEMORIES = Registry(
    "memory",
    {
        "scm": ".memory.stream.memory:StreamMemory",
        "recent": ".memory.recent:RecentTurns",
    },
    group="palimpsest.memories",
)

READERS = Registry(
    "reader",
    {
        "tree": ".memory.stream.reader:TreeReader",
        "xl3m": ".memory.stream.certainty:CertaintyReader",
    },
    group="palimpsest.readers",
)

DEFAULT_MEMORIES = ("scm",)


def open_memory(
    spec: str, context: StoreContext, options: Mapping[str, Any] | None = None
) -> Memory:
    """Open a store by name, such as `"scm"` or `"scm:k=6,gate=llm"`, in a folder of its own."""
    name, given = parse_spec(spec)
    target: type[Memory] = MEMORIES.load(name)
    place = replace(context, folder=context.folder / name)
    return target.open(name, place, given | dict(options or {}))
