"""The trace of a turn: which memory gave what, how long each step took, and why.

A trace holds ids and numbers, never texts: forgetting a record leaves nothing of it in a trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from ..llm.base import Token
from ..llm.places import Note, Place
from ..memory.record import RecordId, new_id, now

Finish = Literal["stop", "length", "cancelled", "error"]


@dataclass(slots=True, kw_only=True)
class NoteTrace:
    """A note that a memory offered; `kept` when the prompt had room for it."""

    records: tuple[str, ...]
    score: float
    tokens: int
    form: str
    source: str
    kept: bool


@dataclass(slots=True, kw_only=True)
class MemoryTrace:
    """One memory's part in a turn.

    Args:
        records: ids behind its contribution, most relevant first; of a cache, of those that it read
            in this turn.
        notes: what it offered for the prompt.
        turns: messages of the running conversation that it placed.
        ms: milliseconds its recall took.
        explain: its own account, as it gave it.
    """

    memory: str
    place: Place
    records: tuple[str, ...]
    notes: tuple[NoteTrace, ...] = ()
    turns: int = 0
    ms: float
    explain: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Trace:
    """One turn. Times are milliseconds; `first_token_ms` counts from the arrival of the message.

    Args:
        message, reply: record ids; no reply if the model said nothing.
        tools: names of the tools it called, in order.
        error: type of the error that cut the reply short; None if nothing did.
    """

    id: str = field(default_factory=new_id)
    at: datetime = field(default_factory=now)
    model: str
    session: str
    message: str
    reply: str | None = None
    memories: list[MemoryTrace] = field(default_factory=list)
    tools: list[str] = field(default_factory=list)
    reply_tokens: int = 0
    recall_ms: float = 0.0
    first_token_ms: float | None = None
    generate_ms: float = 0.0
    total_ms: float = 0.0
    finish: Finish | None = None
    error: str | None = None

    @property
    def records(self) -> tuple[RecordId, ...]:
        """Ids of the records behind the reply, each once: those of `noted`, then those that patched
        the weights."""
        patched = [m.records for m in self.memories if m.place == "weights"]
        behind = [RecordId(id) for ids in patched for id in ids]
        return tuple(dict.fromkeys([*self.noted, *behind]))

    @property
    def noted(self) -> tuple[RecordId, ...]:
        """Ids of the records behind the kept notes, each once, most relevant first."""
        kept = [note for memory in self.memories for note in memory.notes if note.kept]
        ranked = sorted(kept, key=lambda note: -note.score)
        return tuple(dict.fromkeys(RecordId(id) for note in ranked for id in note.records))

    def note(self, kept: Iterable[Note]) -> None:
        """Mark which of the offered notes the prompt had room for."""
        placed = {note.records for note in kept}
        for memory in self.memories:
            for note in memory.notes:
                note.kept = note.records in placed

    def count(self, token: Token, ms: float) -> None:
        """Take note of one visible token, `ms` after the message came."""
        if self.first_token_ms is None:
            self.first_token_ms = ms
        self.reply_tokens += 1
        self.finish = token.finish or self.finish

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return asdict(self) | {"at": self.at.isoformat()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trace:
        """The trace that `to_json` wrote."""
        memories = [_memory(part) for part in data["memories"]]
        return cls(**{**data, "memories": memories, "at": datetime.fromisoformat(data["at"])})


def _memory(part: Mapping[str, Any]) -> MemoryTrace:
    notes = tuple(NoteTrace(**{**n, "records": tuple(n["records"])}) for n in part["notes"])
    return MemoryTrace(**{**part, "records": tuple(part["records"]), "notes": notes})
