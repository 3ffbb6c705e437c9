"""The memories by name. To add one: its own file, one row here, one row in tests/conformance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..registry import Registry, parse_spec
from .base import Memory, StoreContext

CACHES = (
    *("full", "h2o", "infllm", "lm_infinite", "random", "retrieval", "sinks", "sirllm", "window"),
)
"""Retention policies: each is a memory of its name, a KV cache for each session under it."""

EDITORS = ("alphaedit", "ft_l", "grace", "lora", "memit", "rome", "ultraedit", "wise")
"""Editing methods: each is a memory of its name, which patches the weights."""

UNLEARNERS = ("grad_ascent", "grad_diff", "npo", "o3", "rmu", "simnpo", "task_vector")
"""Unlearning methods: each is a memory of its name, which patches the weights."""

MEMORIES = Registry(
    "memory",
    {
        "scm": ".memory.stream.memory:StreamMemory",
        "recent": ".memory.recent:RecentTurns",
        **dict.fromkeys(CACHES, ".memory.retention.sessions:SessionCache"),
        **dict.fromkeys(EDITORS, ".editors.editor:Editor"),
        **dict.fromkeys(UNLEARNERS, ".unlearning.unlearner:Unlearner"),
        "refusal": ".unlearning.in_context:InContext",
    },
    group="palimpsest.memories",
)

READERS = Registry(
    "reader",
    {
        "tree": ".memory.stream.reader:TreeReader",
    },
    group="palimpsest.readers",
)
"""Read a whole document into summaries."""

SELECTORS = Registry(
    "selector",
    {
        "xl3m": ".memory.stream.certainty:CertaintyReader",
    },
    group="palimpsest.selectors",
)
"""Answer a question from the stretches of a document that bear on it."""

DEFAULT_MEMORIES = ("scm",)
DEFAULT_EDITORS = ("wise",)
DEFAULT_UNLEARNERS = ("o3",)
"""Opened beside them where the model's weights are in this process, so that what is edited or
unlearnt just holds."""

DEFAULT_READER = "tree"
DEFAULT_SELECTOR = "xl3m"


def open_memory(
    spec: str, context: StoreContext, options: Mapping[str, Any] | None = None
) -> Memory:
    """Open a store by name, such as `"scm"` or `"scm:k=6,gate=llm"`, in a folder of its own."""
    name, given = parse_spec(spec)
    target: type[Memory] = MEMORIES.load(name)
    place = replace(context, folder=context.folder / name)
    return target.open(name, place, given | dict(options or {}))
