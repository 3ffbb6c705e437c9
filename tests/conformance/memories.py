"""The memories that the shared suite tests. To add one: a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from langchain_core.messages import BaseMessage
from palimpsest.llm.scripted import ScriptedLLM
from palimpsest.memory.base import Memory, StoreContext
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.registry import open_memory

from ..servers import POSTGRES, Servers


@dataclass(frozen=True)
class Row:
    """A memory as a user would name it.

    Args:
        spec: for `open_memory`.
        holds: whether it keeps anything of what is written to it.
        across: whether it tells one session what was said in another.
        on: the server that it keeps it on; by default all is in its folder.
    """

    spec: str
    holds: bool = True
    across: bool = True
    on: Literal["Chroma", "PostgreSQL"] | None = None

    @property
    def name(self) -> str:
        """What tells this row from the others."""
        return f"{self.spec} on {self.on}" if self.on else self.spec

    def open(self, folder: Path, servers: Servers) -> Memory:
        """The store in `folder`, with doubles for the model and the embedder."""
        llm = ScriptedLLM(_short, score=_score)
        context = StoreContext(
            folder=folder,
            llm=llm,
            embedder=HashingEmbedder,
            database_url=servers.database(folder) if self.on == "PostgreSQL" else None,
            chroma_url=servers.chroma if self.on == "Chroma" else None,
        )
        return open_memory(self.spec, context)


ROWS = (
    Row("scm"),
    Row("scm:gate=llm,judge=llm,judge_above=0,budget=48,summarise_above=0"),
    Row("recent", holds=False),
    Row("recent:turns=1", holds=False),
    Row("scm", on="Chroma"),
    *([Row("scm", on="PostgreSQL")] if POSTGRES else []),
    Row("sirllm:budget=64,decay=0.9", across=False),
    Row("lm_infinite", across=False),
    *([Row("sinks", across=False, on="PostgreSQL")] if POSTGRES else []),
)


def _short(messages: Sequence[BaseMessage]) -> str:
    return "They spoke.\n\nIt was answered."


def _score(messages: Sequence[BaseMessage], answer: str) -> float:
    """Undecided whether memory is needed; of a text, a leaning that depends on its length."""
    prompt = "".join(str(message.content) for message in messages)
    leaning = 0 if "conversation" in prompt else len(prompt) % 7 - 3
    return float(leaning) if answer == "Yes" else 0.0
