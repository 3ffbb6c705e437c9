"""One layer of a retention cache: what is near, and where what leaves goes."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy as copy_of
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from ...kernels.base import Attended
from ...kernels.ops import attend, merge_partials
from .base import Far, FarShape, Leaving, RetentionPolicy
from .plan import Plan
from .rope import Angles, Rope
from .storage import Buffer, Storage, StorageFormat


class NearLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """Keys and values that are near, the same keys turned to where they stand, and far memory.

    Turned keys are kept beside raw ones, so that a step turns one key and not all; where the
    storage is packed they are made at every step instead. `_asked` is the sum of all turned
    queries up to each slot's token: what a token that leaves was wanted for is then a difference.
    """

    is_croppable = True
    is_sliding = False

    def __init__(self, policy: RetentionPolicy, form: StorageFormat, rope: Rope) -> None:
        super().__init__()
        self.policy = policy
        self.rope = rope
        self.seen = 0
        self.store: Storage = form.storage(rope.pairing, rope.width)
        self.length = 0
        self.far: Far | None = None
        self._turned: Buffer | None = Buffer() if self.store.resident else None
        self._asked = Buffer()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Note what is stored, and where."""
        self.is_initialized, self.dtype, self.device = True, key_states.dtype, key_states.device

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Hands the new keys and values on to the attention function, which stores them."""
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Of the text, not of what is stored."""
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens seen, not tokens stored."""
        return self.seen

    def get_max_length(self) -> int:
        """None."""
        return -1

    def attend(
        self, q: Tensor, keys: Tensor, values: Tensor, plan: Plan, scale: float, mass: bool
    ) -> Attended:
        """Store the new tokens, and read what they see: q [B, Hq, T, D] -> out of that shape."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self.far = self._open_far(keys, q.shape[1])
        placed = self.rope.turn(q, plan.angles)
        distant = None if plan.ceiling is None else self.rope.turn(q, plan.ceiling)
        self._store(q, placed, keys, values, plan)
        if plan.moved is not None and self._turned is not None:
            some = slice(plan.moved.start, plan.moved.end)
            raw = self.store.keys()[:, :, some]
            self._turned.view()[:, :, some] = self.rope.turn(raw, plan.moved.angles)
        parts = []
        for number, segment in enumerate(plan.segments):
            some = slice(segment.start, segment.end)
            query, found = placed, self._placed_keys(plan)
            if segment.at == "ceiling":
                assert distant is not None
                query, found = distant, self.store.keys()
            parts.append(
                attend(
                    query,
                    found[:, :, some],
                    self.store.values()[:, :, some],
                    seen=plan.seen(number, q.device, q.dtype),
                    scale=scale,
                    mass=mass,
                )
            )
        if self.far is not None and distant is not None:
            parts += self._looked_up(self.far, distant, scale)
        return _merged(parts, q)

    def _looked_up(self, far: Far, distant: Tensor, scale: float) -> list[Attended]:
        """What the pass, or each of its tokens, finds in far memory; nothing while it is empty."""
        reach = self.policy.reach
        tokens = 1 if reach is not None and reach.lookup == "step" else distant.shape[2]
        read = [far.read(some, scale) for some in torch.split(distant, tokens, dim=2)]
        found = [part for part in read if part is not None]
        if not found:
            return []
        return [
            Attended(
                torch.cat([part.out for part in found], dim=2),
                torch.cat([part.lse for part in found], dim=2),
            )
        ]

    def _store(self, q: Tensor, placed: Tensor, keys: Tensor, values: Tensor, plan: Plan) -> None:
        self.store.append(keys, values)
        self.store.asked(q)
        if self._turned is not None:
            self._turned.append(self.rope.turn(keys, plan.angles))
        if self.far is not None:
            sums = placed.float()
            if plan.real is not None:
                sums = sums * plan.real[:, None, :, None].to(q.device)
            sums = sums.cumsum(dim=2)
            if self.length:
                sums += self._asked.view()[:, :, -1:]
            self._asked.append(sums)
        self.length = plan.length

    def _placed_keys(self, plan: Plan) -> Tensor:
        if self._turned is not None:
            return self._turned.view()
        assert plan.stored is not None
        return self.rope.turn(self.store.keys(), plan.stored)

    def evict(
        self, kept: Tensor, left: Tensor, real: Tensor, window: int, angles: Angles | None
    ) -> None:
        """Keep some slots, and hand the others to far memory.

        Args:
            kept, left: [B, M] and [B, n], all slots together, ascending.
            real: bool [B, n], which of those that leave are no padding.
            window: tokens after each of which its wanting is counted.
            angles: of the kept slots, if they stand elsewhere from now on.
        """
        if self.far is not None:
            self.far.add(self._leaving(left, real, window))
            self._asked.keep(kept)
            recent = self._asked.view()
            recent -= recent[:, :, -1:].clone()  # sums stay small, and differences exact
        self.store.keep(kept)
        self.store.settle()
        self.length = kept.shape[1]
        if angles is not None:
            self.place(angles)
        elif self._turned is not None:
            self._turned.keep(kept)

    def place(self, angles: Angles) -> None:
        """Turn all near keys anew, to where they stand."""
        if self._turned is not None:
            self._turned.length = 0
            self._turned.append(self.rope.turn(self.store.keys(), angles))

    def _leaving(self, left: Tensor, real: Tensor, window: int) -> Leaving:
        slots = left.to(self.device)

        def taken(table: Tensor, at: Tensor) -> Tensor:
            index = at[:, None, :, None].expand(-1, table.shape[1], -1, table.shape[3])
            return table.gather(2, index)

        assert self._turned is not None
        asked = self._asked.view()
        later = (slots + window).clamp(max=self.length - 1)
        wanted = taken(asked, later) - taken(asked, slots)
        turned = taken(self._turned.view(), slots).float()
        group = asked.shape[1] // turned.shape[1]
        mean = (wanted * turned.repeat_interleave(group, dim=1)).sum(-1) / window
        return Leaving(
            taken(self.store.keys(), slots),
            taken(self.store.values(), slots),
            real.to(self.device),
            mean,
        )

    def cut(self, length: int) -> None:
        """Only the first `length` slots."""
        self.store.cut(length)
        self._asked.cut(length)
        if self._turned is not None:
            self._turned.cut(length)
        self.length = min(self.length, length)

    def rows_of(self, rows: Tensor) -> None:
        """Only these rows, in this order."""
        self.store.rows_of(rows)
        self._asked.rows_of(rows)
        if self._turned is not None:
            self._turned.rows_of(rows)

    def copy(self) -> NearLayer:
        """One that shares nothing that changes with this."""
        copy = copy_of(self)
        copy.store = self.store.copy()
        copy.far = None if self.far is None else self.far.fork()
        copy._turned = None if self._turned is None else self._turned.copy()
        copy._asked = self._asked.copy()
        return copy

    def hold(self, form: StorageFormat, angles: Angles | None) -> None:
        """Hold what is near in another form; `angles` of all slots, None before the first."""
        store = form.storage(self.rope.pairing, self.rope.width)
        self._turned = Buffer() if store.resident else None
        if angles is not None:
            store.append(self.store.keys(), self.store.values())
        self.store = store
        if angles is not None:
            self.place(angles)

    def state(self) -> dict[str, Tensor]:
        """What a file needs of it, by name; turned keys are made anew."""
        tensors = {f"near.{name}": tensor for name, tensor in self.store.state().items()}
        if self.far is not None:
            tensors["asked"] = self._asked.view()
            tensors |= {f"far.{name}": tensor for name, tensor in self.far.state().items()}
        return tensors

    def restore(self, state: Mapping[str, Tensor], query_heads: int, angles: Angles) -> None:
        """Become what `state` was taken from, with keys standing at `angles`."""
        self.store.restore(_under("near", state))
        keys = self.store.keys()
        self.lazy_initialization(keys, keys)
        self.length = keys.shape[2]
        self.place((angles[0].to(keys.device), angles[1].to(keys.device)))
        self.far = self._open_far(keys, query_heads)
        if self.far is not None:
            self._asked = Buffer()
            self._asked.append(state["asked"])
            self.far.restore(_under("far", state))

    def _open_far(self, keys: Tensor, query_heads: int) -> Far | None:
        b, h, _, d = keys.shape
        return self.policy.far(FarShape(b, h, query_heads, d, keys.dtype, keys.device))

    @property
    def nbytes(self) -> int:
        """Of all that is held: keys as they are read and what was asked for included."""
        own = self.store.nbytes + self._asked.nbytes
        own += 0 if self._turned is None else self._turned.nbytes
        return own + (0 if self.far is None else self.far.nbytes)


def _under(part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a layer's tensors those of one part, by their names there."""
    return {name[len(part) + 1 :]: t for name, t in state.items() if name.startswith(f"{part}.")}


def _merged(parts: list[Attended], q: Tensor) -> Attended:
    """One softmax; a part in which a query saw nothing changes nothing."""
    if not parts:  # nothing but padding
        return Attended(
            torch.zeros_like(q, dtype=torch.float32), q.new_full(q.shape[:3], -torch.inf)
        )
    if len(parts) == 1:
        return parts[0]
    out, lse = merge_partials(
        torch.stack([part.out for part in parts]), torch.stack([part.lse for part in parts])
    )
    return Attended(out, lse)
