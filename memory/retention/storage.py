"""How one layer's near keys and values are held: the protocol, and the plain way.

Keys are raw, in the order of the text. Knows nothing of positions or of what is to be kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from ...kernels.base import Pairing


class Storage(Protocol):
    """Keys and values of S tokens, [B, H, S, D] each, in whatever form."""

    resident: bool
    """Whether `keys` and `values` are views of what is held, and cost nothing."""

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Hold T more, [B, H, T, D]."""

    def asked(self, q: Tensor) -> None:
        """Queries [B, Hq, T, D], raw, of the tokens just appended: a format may look at them."""

    def settle(self) -> None:
        """Pack what is due; called where the cache evicts, at places that the text decides."""

    def keys(self) -> Tensor:
        """[B, H, S, D], raw."""

    def values(self) -> Tensor:
        """[B, H, S, D]."""

    def keep(self, index: Tensor) -> None:
        """Only the slots `index` [B, M] of each row, ascending."""

    def cut(self, length: int) -> None:
        """Only the first `length` slots."""

    def rows_of(self, rows: Tensor) -> None:
        """Only these rows, in this order."""

    def copy(self) -> Storage:
        """One that shares nothing that changes with this."""

    def state(self) -> dict[str, Tensor]:
        """All that is needed to be made anew, by name."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Become what `state` was taken from."""

    @property
    def nbytes(self) -> int:
        """Of what is held, room to grow left out."""


class StorageFormat(Protocol):
    """A way to hold keys and values. A frozen dataclass; its fields are its options."""

    name: ClassVar[str]

    @property
    def stride(self) -> int | None:
        """Tokens between one packing and the next; None: nothing is packed."""

    def storage(self, pairing: Pairing, width: int) -> Storage:
        """An empty one, for heads whose first `width` channels rotate, paired so."""


@dataclass(slots=True)
class Buffer:
    """A tensor [B, X, S, D] that grows along S, by halves, and is filled from the front."""

    room: Tensor | None = None
    length: int = 0

    def append(self, x: Tensor) -> None:
        """T more slots, [B, X, T, D]."""
        end = self.length + x.shape[2]
        if self.room is None or end > self.room.shape[2]:
            b, heads, _, d = x.shape
            grown = x.new_empty(b, heads, max(end, self.length * 3 // 2), d)
            if self.room is not None:
                grown[:, :, : self.length] = self.view()
            self.room = grown
        self.room[:, :, self.length : end] = x
        self.length = end

    def view(self) -> Tensor:
        """[B, X, S, D]; changes with the buffer."""
        assert self.room is not None
        return self.room[:, :, : self.length]

    def keep(self, index: Tensor) -> None:
        """Only the slots `index` [B, M], ascending, in place."""
        if self.room is not None:
            view = self.view()
            at = index.to(view.device)[:, None, :, None].expand(
                -1, view.shape[1], -1, view.shape[3]
            )
            self.length = index.shape[1]
            self.room[:, :, : self.length] = view.gather(2, at)

    def cut(self, length: int) -> None:
        """Only the first `length` slots."""
        self.length = min(self.length, length)

    def rows_of(self, rows: Tensor) -> None:
        """Only these rows, in this order."""
        if self.room is not None:
            self.room = self.room.index_select(0, rows.to(self.room.device))

    def copy(self) -> Buffer:
        """One with room of its own."""
        return Buffer(None if self.room is None else self.view().clone(), self.length)

    @property
    def nbytes(self) -> int:
        """Of the slots in use."""
        return 0 if self.room is None else self.view().numel() * self.room.element_size()


class PlainStorage:
    """Keys and values as the model gave them."""

    resident = True

    def __init__(self) -> None:
        self._keys, self._values = Buffer(), Buffer()

    def append(self, keys: Tensor, values: Tensor) -> None:
        """See `Storage`."""
        self._keys.append(keys)
        self._values.append(values)

    def asked(self, q: Tensor) -> None:
        """Not looked at."""

    def settle(self) -> None:
        """Nothing to pack."""

    def keys(self) -> Tensor:
        """See `Storage`."""
        return self._keys.view()

    def values(self) -> Tensor:
        """See `Storage`."""
        return self._values.view()

    def keep(self, index: Tensor) -> None:
        """See `Storage`."""
        self._keys.keep(index)
        self._values.keep(index)

    def cut(self, length: int) -> None:
        """See `Storage`."""
        self._keys.cut(length)
        self._values.cut(length)

    def rows_of(self, rows: Tensor) -> None:
        """See `Storage`."""
        self._keys.rows_of(rows)
        self._values.rows_of(rows)

    def copy(self) -> PlainStorage:
        """See `Storage`."""
        copy = PlainStorage()
        copy._keys, copy._values = self._keys.copy(), self._values.copy()
        return copy

    def state(self) -> dict[str, Tensor]:
        """See `Storage`."""
        return {"keys": self.keys(), "values": self.values()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Storage`."""
        self._keys, self._values = Buffer(), Buffer()
        self.append(state["keys"], state["values"])

    @property
    def nbytes(self) -> int:
        """See `Storage`."""
        return self._keys.nbytes + self._values.nbytes


@dataclass(frozen=True, slots=True)
class Plain:
    """As the model gave them."""

    name: ClassVar[str] = "plain"
    stride: int | None = None

    def storage(self, pairing: Pairing, width: int) -> PlainStorage:
        """An empty one."""
        return PlainStorage()
