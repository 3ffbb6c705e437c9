"""In-context refusal: a note in the prompt tells the model not to answer about what is forgotten.

Pawelczyk et al., ICML 2024, arXiv 2310.07579, and Thaker et al., arXiv 2403.03329, whose guardrail
this is: a gate looks at the message, and where it is about a request the prompt gets a line. No
weight is involved, so models that are served elsewhere can have it, too. It suppresses, and only as
far as the model obeys.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..editors.base import Opened
from ..editors.rules import Rule, obey
from ..memory.gates.base import Entry, Features, Gate, Verdict, route
from ..memory.gates.keys import Key, KeyGate, named
from ..memory.record import RecordId
from .base import Change, Means, Request, Unlearnt, Work

if TYPE_CHECKING:
    from torch import Tensor

    from ..editors.workbench import Workbench

NOTE = (
    "You know nothing about {names}. If a question is about that, say that you do not know, and"
    " tell nothing of it."
)
"""Of a name, never of a text that was to be forgotten."""


class RefusalPatch:
    """Which request a message is about, and what the prompt is told then. Weights stay as they are.

    Args:
        gate: fitted with `entries`; any will do.
        entries: one for each request.
        names: of the requests, by id.
    """

    adds = True
    layers: frozenset[str] = frozenset()

    def __init__(self, gate: Gate, entries: Sequence[Entry], names: Mapping[RecordId, str]) -> None:
        self._gate, self._entries, self._names = gate, tuple(entries), dict(names)

    def note(self, prompts: Sequence[str]) -> str | None:
        """What is to stand in a prompt with these messages; None if none is about a request."""
        about = dict.fromkeys(each.entry for each in self.verdicts(prompts) if each)
        if not about:
            return None
        return NOTE.format(names=" or ".join(self._names[id] for id in about))

    def verdicts(self, prompts: Sequence[str]) -> list[Verdict | None]:
        """For each prompt the request it is about, or None."""
        return route(self._gate, self._entries, prompts)

    def open(self, prompts: Sequence[str]) -> Opened:
        """No layer is changed; the verdicts say which prompts are about a request."""
        return Opened(deltas={}, verdicts=tuple(self.verdicts(prompts)))

    def explain(self, prompt: str) -> Mapping[str, Any]:
        """The requests that come nearest."""
        return {
            "place": "prompt",
            "nearest": [
                {
                    "request": str(verdict.entry),
                    "score": round(verdict.score, 4),
                    "threshold": round(verdict.threshold, 4),
                    "open": verdict.open,
                    "vetoed": verdict.vetoed,
                }
                for verdict in (self._gate.explain(prompt) if self._entries else ())
            ],
        }

    def merged(self) -> None:
        """A checkpoint has no place for a note."""
        return


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """See the module. The gate is one of keys, the features of a request's own prompts.

    A request whose name stands in all its prompts opens only for messages that have the name, too.

    Args:
        threshold: least cosine with a prompt of a request whose name the message has.
        strict: least cosine with one of a request whose name its own prompts do not have.
    """

    name: ClassVar[str] = "refusal"
    means: ClassVar[Means] = "suppresses"
    asks_for_retain: ClassVar[bool] = False
    threshold: float = 0.3
    strict: float = 0.6

    def __post_init__(self) -> None:
        obey(self, *(self._cosine(name) for name in ("threshold", "strict")))

    def _cosine(self, name: str) -> Rule:
        return name, -1 <= getattr(self, name) <= 1, "within [-1, 1]"

    def learn(
        self, bench: Workbench, request: Request, before: Sequence[Unlearnt], work: Work
    ) -> Change:
        """Features of its prompts; nothing is trained, so there is nothing to cancel."""
        return self.remembered(bench.features, request)

    def patch(self, bench: Workbench, learnt: Sequence[Unlearnt]) -> RefusalPatch:
        """See `patch_by`."""
        return self.patch_by(bench.features, learnt)

    def remembered(self, features: Features, request: Request) -> Change:
        """What is kept of a request: how its prompts look, and whether they have its name. With
        the features of a sentence encoder it needs no model at all."""
        began = time.perf_counter()
        prompts = tuple(sample.prompt for sample in request.samples)
        subject = request.name if all(named(request.name, each) for each in prompts) else None
        key = self._gate(features).key(Entry(id=RecordId(""), inside=prompts, subject=subject))
        tensors: dict[str, Tensor] = {
            "inside": key.inside,
            "outside": key.outside,
            "said": key.said,
        }
        numbers = {"named": float(subject is not None)}
        return Change(tensors=tensors, numbers=numbers, seconds=time.perf_counter() - began)

    def patch_by(self, features: Features, learnt: Sequence[Unlearnt]) -> RefusalPatch:
        """All requests, told apart by the features that they were remembered by."""
        # An entry has no prompt here: by now its texts may be gone, and its key is enough.
        entries = [
            Entry(
                id=each.id,
                inside=("",),
                subject=each.name if each.change.numbers["named"] else None,
            )
            for each in learnt
        ]
        gate = self._gate(features)
        gate.fit(entries, [Key(**each.change.tensors) for each in learnt])
        return RefusalPatch(gate, entries, {each.id: each.name for each in learnt})

    def _gate(self, features: Features) -> KeyGate:
        return KeyGate(features, threshold=self.threshold, strict=self.strict)
