"""In which order edits are learnt, and under which key what is learnt of each lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..memory.record import Scope
from .base import Method
from .shelf import Held


@dataclass(frozen=True, slots=True)
class Step:
    """Edits that are learnt together.

    Args:
        keys: for each of them the key of its change: equal exactly where model, method, edits and
            all before them in the lane are.
        lane: all edits of their lane, by age, with their keys.
        start: how many of those come before them.
    """

    edits: tuple[Held, ...]
    keys: tuple[str, ...]
    lane: Sequence[tuple[Held, str]]
    start: int

    @property
    def before(self) -> Sequence[tuple[Held, str]]:
        """The edits before them in their lane, with their keys."""
        return self.lane[: self.start]


def lanes(method: Method, model: str, holding: Sequence[Held]) -> Iterator[Step]:
    """Every step of every lane, those of a lane in order."""
    sorted_out: dict[tuple[Scope, str], list[Held]] = {}
    for held in holding:
        sorted_out.setdefault((held.owner, method.lane(held.edit)), []).append(held)
    root = _hash([model, settings(method, applied=False)])
    for lane in sorted_out.values():
        key = root
        keyed: list[tuple[Held, str]] = []
        for at in range(0, len(lane), method.batch):
            together = tuple(lane[at : at + method.batch])
            key = _hash([key, [asdict(held.edit) for held in together]])
            keys = tuple(_hash([key, place]) for place in range(len(together)))
            yield Step(together, keys, keyed, at)
            keyed += zip(together, keys, strict=True)


def settings(method: Any, *, applied: bool = True) -> dict[str, Any]:
    """A method's name and hyper-parameters, whatever it is a method of.

    Args:
        applied: also those that only matter when a patch is applied, so that changing them has
            nothing learnt again.
    """
    named = {
        field.name: getattr(method, field.name)
        for field in fields(method)
        if applied or field.name not in method.applied
    }
    return {"name": method.name, **named}


def _hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:40]
