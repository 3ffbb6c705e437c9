"""What is known of each token that a cache stores: one table for all layers and heads.

Lies on the CPU, so that deciding what to keep never waits for a device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

PADDING = -1


@dataclass(slots=True)
class Tokens:
    """Tables [B, S], a column for each slot, in the order of the text.

    Args:
        position: int64, place in the row's text, counted from its first real token; -1: padding.
        id: int64, vocabulary id; -1 until it was observed.
        turn: int64, the turn it belongs to.
        score: float32; NaN until it was observed.
        pinned: bool, kept whatever its score.
    """

    position: Tensor
    id: Tensor
    turn: Tensor
    score: Tensor
    pinned: Tensor

    @classmethod
    def empty(cls, rows: int) -> Tokens:
        """A table without columns."""
        none = torch.empty(rows, 0, dtype=torch.int64)
        return cls(none, none, none, none.float(), none.bool())

    @property
    def rows(self) -> int:
        """B."""
        return self.position.shape[0]

    @property
    def real(self) -> Tensor:
        """bool [B, S], what is no padding."""
        return self.position >= 0

    def __len__(self) -> int:
        """S, padding included."""
        return self.position.shape[1]

    def append(self, position: Tensor, turn: int) -> None:
        """Columns for new tokens at `position` [B, T], not yet observed."""
        self.position = torch.cat([self.position, position], dim=1)
        self.id = torch.cat([self.id, torch.full_like(position, -1)], dim=1)
        self.turn = torch.cat([self.turn, torch.full_like(position, turn)], dim=1)
        unknown = torch.full(position.shape, torch.nan)
        self.score = torch.cat([self.score, unknown], dim=1)
        self.pinned = torch.cat([self.pinned, torch.zeros_like(position).bool()], dim=1)

    def keep(self, index: Tensor) -> None:
        """Only the columns `index` [B, M] of each row."""
        for name, table in self:
            setattr(self, name, table.gather(1, index))

    def cut(self, length: int) -> None:
        """Only the first `length` columns."""
        for name, table in self:
            setattr(self, name, table[:, :length].clone())

    def rows_of(self, rows: Tensor) -> None:
        """Only these rows, in this order; one may come several times."""
        for name, table in self:
            setattr(self, name, table.index_select(0, rows.cpu()))

    def copy(self) -> Tokens:
        """One that shares nothing with this."""
        return replace(self, **{name: table.clone() for name, table in self})

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Each table with its name."""
        return ((field.name, getattr(self, field.name)) for field in fields(self))
