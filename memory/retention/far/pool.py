"""Rows that are only ever added to, and shared by all copies until these differ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class _Room:
    """A tensor [capacity, ...] whose first `used` rows are taken by one copy or another."""

    data: Tensor
    used: int


class Pool:
    """A tensor [n, ...] that grows along its first dimension, by halves.

    A copy costs nothing: what is written is never changed, so copies share it. The first of them
    that adds rows goes on in the shared room; another then moves its rows to room of its own.
    """

    def __init__(self) -> None:
        self._room: _Room | None = None
        self._length = 0

    def append(self, x: Tensor) -> None:
        """More rows, [m, ...]; the first ones decide on dtype, device and row shape."""
        end = self._length + len(x)
        room = self._room
        if room is None or room.used != self._length or end > len(room.data):
            data = x.new_empty(max(end, self._length * 3 // 2), *x.shape[1:])
            if room is not None:
                data[: self._length] = room.data[: self._length]
            room = self._room = _Room(data, self._length)
        room.data[self._length : end] = x
        room.used = self._length = end

    def view(self) -> Tensor:
        """[n, ...], of which nothing may be changed."""
        return torch.empty(0) if self._room is None else self._room.data[: self._length]

    def copy(self) -> Pool:
        """One that adds rows of its own from here on."""
        copy = Pool()
        copy._room, copy._length = self._room, self._length
        return copy

    def __len__(self) -> int:
        """n."""
        return self._length

    @property
    def nbytes(self) -> int:
        """Of the rows, room to grow left out."""
        return self.view().nbytes
