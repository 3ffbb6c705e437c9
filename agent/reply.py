"""What a turn gives back: a langchain message that also knows why it says what it says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk

from ..llm.places import Note
from .trace import Trace


class Reply(AIMessage):
    """A finished reply. `text` is the answer, `why` the trace of its turn."""

    why: Trace

    @property
    def record(self) -> str | None:
        """Id of the reply's record in the ledger; None if the model said nothing."""
        return self.why.reply


class ReplyChunk(AIMessageChunk):
    """A piece of a reply as it streams: `print(chunk, end="")` shows its text."""

    def __str__(self) -> str:
        return str(self.content)


def collect(chunks: Iterable[ReplyChunk]) -> Reply:
    """The whole reply; the last chunk carries its trace."""
    *pieces, last = chunks
    trace = Trace.from_json(last.response_metadata["trace"])
    return Reply(
        content="".join(str(piece) for piece in pieces),
        id=trace.reply,
        why=trace,
        response_metadata={"model_name": trace.model},
    )


@dataclass(frozen=True, slots=True)
class Recollection:
    """What the memories hold on a question, best first, and each memory's own account of why."""

    notes: tuple[Note, ...]
    explain: dict[str, Any] = field(default_factory=dict)
