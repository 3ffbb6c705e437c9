"""The plain memory: the last turns of this session, as they were. The baseline, and full context.

Holds nothing: the turns come with the cue.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..errors import ConfigError
from ..llm.places import Place, Prompt
from .base import Artefact, Capabilities, Cue, Erasure, Memory, StoreContext
from .pieces import Ruler
from .record import Record, RecordId


@dataclass(frozen=True, slots=True)
class RecentConfig:
    """What counts as recent.

    Args:
        turns: how many of the last turns; None is all of the session (full context).
    """

    turns: int | None = 4

    def __post_init__(self) -> None:
        if self.turns is not None and self.turns < 0:
            raise ConfigError(f"turns={self.turns} must be 0 or more, or None for all")


class RecentTurns(Memory):
    """The last turns within the cue's budget, the latest first in line for it; the latest is cut
    if it does not fit by itself."""

    place: ClassVar[Place] = "prompt"
    Config: ClassVar[type[Any]] = RecentConfig

    def __init__(self, name: str, context: StoreContext, config: RecentConfig) -> None:
        self.name = name
        self._turns = sys.maxsize if config.turns is None else config.turns
        self.capabilities = Capabilities(recent_turns=self._turns)
        self._ruler = Ruler(context.llm.count_tokens)

    def write(self, records: Sequence[Record]) -> list[Artefact]:
        """Nothing to take in."""
        return []

    def recall(self, cue: Cue) -> Prompt:
        """The last turns as messages."""
        recent = cue.recent[-self._turns :] if self._turns else ()
        spoken = self._ruler.turns(recent, cue.budget)
        return Prompt(
            memory=self.name,
            records=spoken.records,
            turns=spoken.messages,
            explain={
                "turns": len(spoken.turns),
                "tokens": spoken.tokens,
                "budget": cue.budget,
            },
        )

    def forget(self, ids: Collection[RecordId]) -> Erasure:
        """Nothing is held, so all ids are unknown."""
        return Erasure(store=self.name, erased=frozenset(), unknown=frozenset(ids))

    def clear(self) -> None:
        """Nothing to clear."""

    def held(self) -> frozenset[RecordId]:
        """Nothing."""
        return frozenset()

    def digest(self) -> str:
        """SHA-256 of nothing."""
        return hashlib.sha256().hexdigest()

    def save(self, path: Path) -> None:
        """Make the folder; there is nothing to put into it."""
        path.mkdir(parents=True, exist_ok=True)

    def load(self, path: Path) -> None:
        """Nothing to read."""
