"""What the parts of the unlearn bench share: taught models, systems by their names, requests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...editors.changes import Changes
from ...editors.lanes import settings
from ...editors.measuring import Prober
from ...editors.workbench import Workbench
from ...errors import CapabilityError
from ...llm.local import LocalLLM
from ...llm.open import open_llm
from ...memory.record import RecordId
from ...unlearning.base import Method, Patch, Request, Unlearnt, Work
from ...unlearning.base import Sample as Told
from ...unlearning.registry import METHODS
from .harness import progress
from .points import Points
from .teach import lessons, material, teach
from .unlearn_material import Sample, Tofu, tofu
from .unlearn_measures import spread

if TYPE_CHECKING:
    from .setting import Setting

TAUGHT, NEVER = "taught, nothing unlearnt", "never taught it"
"""Rows beside the methods: before, and what unlearning is held against."""

BRIEF = {"authors": 2, "retained": 4, "epochs": 6}
"""Of a run without --full: authors to forget and to keep, and how long the model is taught."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of it; see `unlearn`."""

    systems: Sequence[str]
    sample: int | None
    tokens: int
    retain: int
    full: bool
    requests: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Laboratory:
    """What the parts of the bench share.

    Args:
        taught: a folder with the models that `teach` wrote, `tofu`, `retain` and `choices`; without
            it small ones are taught in a few minutes, or all of it with --full in an hour.
    """

    setting: Setting
    taught: Path | None = None

    @cached_property
    def points(self) -> Points:
        """What was measured so far."""
        out = self.setting.out
        return Points(out / "unlearn-points.jsonl" if out else None)

    @cached_property
    def tofu(self) -> Tofu:
        """The authors; in a short run two to forget, one after the other, and four to keep."""
        every = tofu(self.setting.dataset())
        if self.setting.full or self.taught is not None:
            return every
        authors = every.requests[0]
        return Tofu(
            requests=(authors[:20], authors[20:]),
            retained=every.retained[: 20 * BRIEF["retained"]],
            authors=every.authors[:20],
            facts=every.facts[:20],
        )

    def bench(self, name: str) -> Workbench:
        """A bench at the model of that name: "tofu", "retain" or "choices"."""
        llm = self._model(name)
        return Workbench(llm.model, llm.tokenizer, self._folder(f"bench-{name}"))

    def _model(self, name: str) -> LocalLLM:
        if self.taught is not None:
            return _local(str(self.taught / name))
        progress(f"teaching the model: {name}")
        llm = _local(self.setting.model)
        full = self.setting.full
        samples: Sequence[Sample] = (
            material("choices", self.setting.dataset())
            if name == "choices"
            else (self.tofu.known if name == "retain" else self.tofu.everything)
        )
        end = llm.tokenizer.eos_token_id
        rows = lessons(
            Prober(llm.model, llm.tokenizer), samples, [end] if isinstance(end, int) else []
        )
        epochs = 6 if full else BRIEF["epochs"]
        teach(llm.model.float(), rows, epochs=epochs, rate=2e-4, batch=16)
        llm.model.eval()
        return llm

    def _folder(self, name: str) -> Path:
        out = self.setting.out
        return out / "unlearn-learnt" / name if out else self.setting.folder(name)

    def pupil(self, bench: Workbench, spec: str) -> Pupil:
        """A method that learns requests one after the other, and keeps what it learnt."""
        method: Method = METHODS.build(spec)
        content = json.dumps([settings(method), bench.fingerprint], sort_keys=True, default=str)
        key = hashlib.sha256(content.encode()).hexdigest()[:16]
        return Pupil(method, bench, Changes(self._folder(f"{method.name}-{key}")))

    def about(self, bench: Workbench, system: str, plan: Plan) -> dict[str, Any]:
        """What a point depends on."""
        known = system in (TAUGHT, NEVER)
        return {
            "model": bench.fingerprint,
            "system": system,
            "settings": {} if known else settings(METHODS.build(system)),
            "sample": plan.sample,
            "tokens": plan.tokens,
        }


@dataclass
class Pupil:
    """One method, and what it learnt so far."""

    method: Method
    bench: Workbench
    shelf: Changes
    learnt: list[Unlearnt] = field(default_factory=list)

    def learn(
        self, request: Request, tell: Callable[[int, int], None] = lambda done, of: None
    ) -> Unlearnt:
        """Learn a request on top of those before it, or find it learnt."""
        before = [each.change.digest for each in self.learnt]
        content = json.dumps([request.name, *request.fingerprints, *before])
        key = hashlib.sha256(content.encode()).hexdigest()[:40]
        change = self.shelf.change(key)
        if change is None:
            change = self.method.learn(self.bench, request, self.learnt, Work(progress=tell))
            self.shelf.keep(key, change)
        id = RecordId(f"{len(self.learnt):02}-{request.name}")
        self.learnt.append(Unlearnt(id=id, name=request.name, change=change))
        return self.learnt[-1]

    def study(
        self, name: str, samples: Sequence[Sample], kept: Sequence[Sample], count: int
    ) -> Unlearnt:
        """Learn samples as a request; a method that asks for what is to be kept is given `count` of
        it, evenly spread."""
        retain = spread(kept, count) if self.method.asks_for_retain else ()
        return self.learn(request(name, samples, retain))

    def patch(self, *without: int) -> Patch:
        """What it comes to, without some of the requests."""
        some = [each for at, each in enumerate(self.learnt) if at not in without]
        return self.method.patch(self.bench, some)


def request(name: str, samples: Sequence[Sample], retain: Sequence[Sample] = ()) -> Request:
    """Samples as a request. Paraphrases are not in it: it is tested with them."""
    return Request(name=name, samples=told(samples), retain=told(retain))


def told(samples: Sequence[Sample]) -> tuple[Told, ...]:
    """Samples as they are given to a method."""
    return tuple(Told(question=each.question, answer=each.answer) for each in samples)


def _local(name: str) -> LocalLLM:
    llm = open_llm(name)
    if not isinstance(llm, LocalLLM):
        raise CapabilityError(f"model {llm.name!r} has no weights here; take a local one")
    return llm
