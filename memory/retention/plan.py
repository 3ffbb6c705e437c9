"""One forward pass as a list of disjoint segments: which slots, at what angles, who sees them.

Made once from the tokens' table and read by every layer. Knows nothing of keys or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ...kernels.base import Seen, seen
from .base import Reach
from .rope import Angles, Rope
from .tokens import Tokens


@dataclass(frozen=True, slots=True)
class Segment:
    """Some slots of one softmax.

    Args:
        start, end: slots start..end-1.
        at: `place`, keys and queries stand where the plan's angles put them; `ceiling`, keys are
            raw and queries stand at the constant distance.
        visible: bool [B or 1, T, end - start]; None: every query sees them all.
    """

    start: int
    end: int
    at: Literal["place", "ceiling"] = "place"
    visible: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Moved:
    """Slots start..end-1, whose turned keys stand elsewhere from this pass on, at `angles`.

    One query alone may have a constant distance put into the keys: what it reads is then one
    segment, and nothing has to be merged.
    """

    start: int
    end: int
    angles: Angles


@dataclass(slots=True)
class Plan:
    """A forward pass of T new tokens.

    Args:
        start, length: slots in use before and after.
        angles: of the new tokens, as keys and as queries.
        ceiling: of every query, towards keys at the constant distance; None where there are none.
        segments: disjoint in what each query sees.
        real: bool [B, T], new tokens that are no padding; None if all are.
        stored: angles of all slots, if they were asked for.
        moved: keys to be turned anew before this pass reads; None: none.
    """

    start: int
    length: int
    angles: Angles
    ceiling: Angles | None
    segments: tuple[Segment, ...]
    real: Tensor | None
    stored: Angles | None = None
    moved: Moved | None = None
    _seen: dict[tuple[int, torch.device, torch.dtype], Seen] = field(default_factory=dict)

    def seen(self, number: int, device: torch.device, dtype: torch.dtype) -> Seen | None:
        """What the queries see of a segment, made once for each device."""
        visible = self.segments[number].visible
        if visible is None:
            return None
        key = (number, device, dtype)
        if key not in self._seen:
            self._seen[key] = seen(visible.to(device), dtype)
        return self._seen[key]

    def on(self, device: torch.device) -> Plan:
        """The plan with its angles on `device`."""
        for name in ("angles", "ceiling", "stored"):
            angles = getattr(self, name)
            if angles is not None and angles[0].device != device:
                setattr(self, name, (angles[0].to(device), angles[1].to(device)))
        if self.moved is not None and self.moved.angles[0].device != device:
            cos, sin = self.moved.angles
            self.moved = replace(self.moved, angles=(cos.to(device), sin.to(device)))
        return self


def places(tokens: Tokens, reach: Reach | None) -> Tensor:
    """Where each slot stands, int64 [B or 1, S]: at its slot, or at its place in the text."""
    position = tokens.position if reach is not None else tokens.real.cumsum(dim=1) - 1
    position = position.clamp(min=0)
    same = len(position) == 1 or bool((position == position[:1]).all())
    return position[:1] if same else position


def make_plan(
    tokens: Tokens, new: int, reach: Reach | None, rope: Rope, *, every_slot: bool = False
) -> Plan:
    """The plan for the last `new` columns of `tokens`, which have just been added.

    Args:
        every_slot: keys are not kept turned, so the angles of all slots are needed.
    """
    length = len(tokens)
    start = length - new
    padded = not bool(tokens.real.all())
    at = places(tokens, reach)
    stored = rope.angles(at) if every_slot else None
    angles = rope.angles(at[:, start:])
    real = tokens.real[:, start:] if padded else None
    if reach is None:
        found = [_trimmed(Segment(0, length, visible=_causal(tokens, start, padded)))]
        return Plan(start, length, angles, None, _there(found), real, stored)
    near, beyond = _reaching(tokens, start, reach)
    if new == 1 and reach.sinks is not None and not padded and len(at) == 1 and bool(beyond.any()):
        used = beyond.any(dim=0)[0].nonzero()
        moved = Moved(int(used[0]), int(used[-1]) + 1, rope.angles(at[:, start:] - reach.ceiling))
        found = [_trimmed(Segment(0, length, visible=near | beyond))]
        return Plan(start, length, angles, None, _there(found), real, stored, moved)
    found = [
        _trimmed(Segment(0, length, "place", near)),
        _trimmed(Segment(0, length, "ceiling", beyond)),
    ]
    return Plan(start, length, angles, _at(rope, reach.ceiling), _there(found), real, stored)


def _there(segments: Sequence[Segment | None]) -> tuple[Segment, ...]:
    return tuple(segment for segment in segments if segment is not None)


def _at(rope: Rope, distance: int) -> Angles:
    """Of a query that is turned for raw keys: these lack the factor of a scaled embedding, so the
    query has it twice."""
    cos, sin = rope.angles(torch.tensor([[distance]]))
    return cos * rope.scaling, sin * rope.scaling


def _positions(tokens: Tokens, start: int) -> tuple[Tensor, Tensor]:
    """Of keys [B or 1, 1, S] and of queries [B or 1, T, 1]."""
    position = tokens.position
    if len(position) > 1 and bool((position == position[:1]).all()):
        position = position[:1]
    return position[:, None, :], position[:, start:, None]


def _causal(tokens: Tokens, start: int, padded: bool) -> Tensor | None:
    if len(tokens) - start == 1 and not padded:
        return None
    keys, queries = _positions(tokens, start)
    return (keys <= queries) & (keys >= 0)


def _reaching(tokens: Tokens, start: int, reach: Reach) -> tuple[Tensor, Tensor]:
    """Who sees which slot at true distance, and which at the ceiling: bool [B or 1, T, S] each."""
    keys, queries = _positions(tokens, start)
    distance = queries - keys
    real = (keys >= 0) & (queries >= 0)
    near = real & (distance >= 0) & (distance < reach.window)
    beyond = real & (distance >= reach.window)
    if reach.sinks is not None:
        beyond = beyond & ((keys < reach.sinks) | tokens.pinned[:, None])
    return near, beyond


def _trimmed(segment: Segment) -> Segment | None:
    """Without slots at either end that no query sees; without a mask where all see all; None if
    nothing is seen."""
    if segment.visible is None:
        return segment
    used = segment.visible.any(dim=1).any(dim=0).nonzero()
    if not len(used):
        return None
    first, last = int(used[0]), int(used[-1]) + 1
    visible = segment.visible[:, :, first:last]
    start = segment.start + first
    everything = bool(visible.all())
    return Segment(start, start + last - first, segment.at, None if everything else visible)
