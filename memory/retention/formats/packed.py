"""Keys and values in groups of few bits, and behind them a tail of plain ones.

One mechanism for every format; a format is a pair of codecs. Groups are never changed once they are
made, so that copies share them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ....errors import ConfigError
from ..storage import Buffer

Parts = Mapping[str, Tensor]
"""What an encoded thing consists of, by name."""


class Codec(Protocol):
    """How keys or values become few bits, N groups of P tokens at a time.

    Its parts are tensors [B, H, N, ...], so that groups are added, cut off and taken by row in the
    same way whatever they consist of.
    """

    @property
    def window(self) -> int:
        """Queries, the last ones before the first packing, that `shared` wants to see."""

    def shared(self, x: Tensor, q: Tensor | None) -> Parts:
        """What all groups have in common, [B, H, ...] each; chosen once, at the first packing.

        Args:
            x: float32 [B, H, S, D], all that is held then.
            q: float32 [B, Hq, T, D], raw, the last T <= window queries; None if none was asked.
        """

    def encode(self, x: Tensor, shared: Parts) -> Parts:
        """Of [B, H, N, P, D], as the model gave them."""

    def decode(self, parts: Parts, shared: Parts) -> Tensor:
        """[B, H, N, P, D] of some float dtype, what `parts` stand for."""


@dataclass(frozen=True, slots=True)
class Packing:
    """What all formats here have in common. They add a name, options and `storage`.

    Args:
        group: tokens that share a scale, or are packed at once.
        residual: newest tokens that stay as the model gave them.
        stride: tokens between one packing and the next; 0: as many as a group has. A prompt as
            long as the stride is read exactly, and packed when it ends.

    Raises:
        ConfigError: an option makes no sense.
    """

    name: ClassVar[str]
    group: int = 64
    residual: int = 64
    stride: int = 0

    def __post_init__(self) -> None:
        if self.stride == 0:
            object.__setattr__(self, "stride", self.group)
        for option, least in (("group", 1), ("residual", 0), ("stride", 1)):
            check_least(self, option, least)


def check_least(form: Packing, option: str, least: int) -> None:
    """Raise ConfigError if an option is less than that."""
    given = getattr(form, option)
    if given < least:
        raise ConfigError(f"{form.name}: {option}={given} must be at least {least}")


@dataclass(frozen=True, slots=True)
class Whole:
    """No code at all."""

    window: int = 0

    def shared(self, x: Tensor, q: Tensor | None) -> Parts:
        """Nothing."""
        return {}

    def encode(self, x: Tensor, shared: Parts) -> Parts:
        """As it is."""
        return {"whole": x}

    def decode(self, parts: Parts, shared: Parts) -> Tensor:
        """As it was."""
        return parts["whole"]


class Side:
    """Keys, or values: groups, what they share, and the tail."""

    def __init__(self, codec: Codec, group: int) -> None:
        self.codec = codec
        self.group = group
        self.parts: Parts = {}
        self.shared: Parts | None = None
        self.tail = Buffer()

    @property
    def groups(self) -> int:
        """N."""
        return next((part.shape[2] for part in self.parts.values()), 0)

    @property
    def packed(self) -> int:
        """Tokens in groups."""
        return self.groups * self.group

    @property
    def length(self) -> int:
        """Tokens in all."""
        return self.packed + self.tail.length

    def view(self) -> Tensor:
        """[B, H, S, D] in the tail's dtype: what was packed as it can be had back."""
        return self._plain(self.parts)

    def _plain(self, parts: Parts) -> Tensor:
        """Some last groups and the tail."""
        tail = self.tail.view()
        if not parts or not next(iter(parts.values())).shape[2]:
            return tail
        decoded = self.codec.decode(parts, self.shared or {}).flatten(2, 3).to(tail.dtype)
        return torch.cat([decoded, tail], dim=2)

    def pack(self, groups: int, q: Tensor | None) -> None:
        """The tail's first tokens, as so many groups."""
        if not groups:
            return
        view, count = self.tail.view(), groups * self.group
        if self.shared is None:
            self.shared = self.codec.shared(self.view().float(), q)
        b, h, _, dim = view.shape
        due = view[:, :, :count].reshape(b, h, groups, self.group, dim)
        new = self.codec.encode(due, self.shared)
        self.parts = {
            name: torch.cat([self.parts[name], part], dim=2) if self.parts else part.clone()
            for name, part in new.items()
        }
        self.tail = _buffer(view[:, :, count:])

    def unpack(self, groups: int) -> None:
        """All but the first so many groups go back to the tail."""
        if groups < self.groups:
            last = {name: part[:, :, groups:] for name, part in self.parts.items()}
            self.tail = _buffer(self._plain(last))
            kept = {name: part[:, :, :groups].clone() for name, part in self.parts.items()}
            self.parts = kept if groups else {}

    def rows_of(self, rows: Tensor) -> None:
        """Only these rows, in this order."""
        self.parts = _rows(self.parts, rows)
        self.shared = None if self.shared is None else _rows(self.shared, rows)
        self.tail.rows_of(rows)

    def copy(self) -> Side:
        """One that shares nothing that changes with this."""
        copy = Side(self.codec, self.group)
        copy.parts, copy.shared, copy.tail = self.parts, self.shared, self.tail.copy()
        return copy

    def state(self) -> dict[str, Tensor]:
        """All that is needed to be made anew, by name."""
        tensors = {"tail": self.tail.view()}
        tensors |= {f"part.{name}": part for name, part in self.parts.items()}
        return tensors | {f"shared.{name}": part for name, part in (self.shared or {}).items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Become what `state` was taken from."""
        self.tail = _buffer(state["tail"])
        self.parts = _under(state, "part.")
        shared = _under(state, "shared.")
        self.shared = shared if shared or self.parts else None

    @property
    def nbytes(self) -> int:
        """Of all that is held."""
        held = [*self.parts.values(), *(self.shared or {}).values()]
        return self.tail.nbytes + sum(part.numel() * part.element_size() for part in held)


class PackedStorage:
    """A `Storage` of two sides, packed together.

    Tokens that leave out of the middle of a group break it up: it and all groups behind it are
    decoded, the kept tokens selected, and encoded again as new groups at the next `settle`. Groups
    in front of the first token that leaves are not touched.

    Args:
        keys, values: how each is encoded.
        group: tokens of a group.
        residual: newest tokens that stay plain.
    """

    resident = False

    def __init__(self, keys: Codec, values: Codec, *, group: int, residual: int) -> None:
        self.residual = residual
        self._sides = (Side(keys, group), Side(values, group))
        self._group = group
        self._window = max(keys.window, values.window)
        self._asked: Tensor | None = None

    @property
    def packed(self) -> int:
        """Tokens that are held in few bits."""
        return self._sides[0].packed

    def append(self, keys: Tensor, values: Tensor) -> None:
        """See `Storage`."""
        for side, x in zip(self._sides, (keys, values), strict=True):
            side.tail.append(x)

    def asked(self, q: Tensor) -> None:
        """The last queries are kept until the first packing, if a codec wants to see them."""
        if self._window and self._sides[0].shared is None:
            seen = q if self._asked is None else torch.cat([self._asked, q], dim=2)
            self._asked = seen[:, :, -self._window :].clone()

    def settle(self) -> None:
        """Pack what is older than the residual, as far as it fills groups."""
        due = (self._sides[0].tail.length - self.residual) // self._group
        if due > 0:
            q = None if self._asked is None else self._asked.float()
            for side in self._sides:
                side.pack(due, q)
            self._asked = None

    def keys(self) -> Tensor:
        """See `Storage`."""
        return self._sides[0].view()

    def values(self) -> Tensor:
        """See `Storage`."""
        return self._sides[1].view()

    def keep(self, index: Tensor) -> None:
        """See `Storage`; what is behind the first token that leaves is plain until `settle`."""
        index = index.to(self._sides[0].tail.view().device)
        stays = index == torch.arange(index.shape[1], device=index.device)
        intact = int(stays.all(dim=0).long().cumprod(dim=0).sum())
        for side in self._sides:
            side.unpack(intact // self._group)
            side.tail.keep(index[:, side.packed :] - side.packed)

    def cut(self, length: int) -> None:
        """See `Storage`."""
        if self._asked is not None:
            gone = max(0, self._sides[0].length - length)
            self._asked = self._asked[:, :, : max(0, self._asked.shape[2] - gone)]
        for side in self._sides:
            side.unpack(length // self._group)
            side.tail.cut(length - side.packed)

    def rows_of(self, rows: Tensor) -> None:
        """See `Storage`."""
        for side in self._sides:
            side.rows_of(rows)
        if self._asked is not None:
            self._asked = self._asked.index_select(0, rows.to(self._asked.device))

    def copy(self) -> PackedStorage:
        """See `Storage`."""
        keys, values = self._sides
        copy = PackedStorage(keys.codec, values.codec, group=self._group, residual=self.residual)
        copy._sides, copy._asked = (keys.copy(), values.copy()), self._asked
        return copy

    def state(self) -> dict[str, Tensor]:
        """See `Storage`."""
        tensors = {} if self._asked is None else {"asked": self._asked}
        for name, side in zip(("keys", "values"), self._sides, strict=True):
            tensors |= {f"{name}.{part}": tensor for part, tensor in side.state().items()}
        return tensors

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Storage`."""
        self._asked = state.get("asked")
        for name, side in zip(("keys", "values"), self._sides, strict=True):
            side.restore(_under(state, f"{name}."))

    @property
    def nbytes(self) -> int:
        """Codes, scales and all else that reading needs, the tail, and queries still to be seen."""
        asked = 0 if self._asked is None else self._asked.numel() * self._asked.element_size()
        return asked + sum(side.nbytes for side in self._sides)


def _buffer(x: Tensor) -> Buffer:
    """A tail with a copy of x [B, H, S, D], and no more room than that."""
    buffer = Buffer()
    buffer.append(x)
    return buffer


def _rows(parts: Parts, rows: Tensor) -> Parts:
    return {name: part.index_select(0, rows.to(part.device)) for name, part in parts.items()}


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, named by the rest."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
