"""O3: one LoRA per request, orthogonal to earlier ones, behind a gate that knows the request.

Gao et al., "On Large Language Model Continual Unlearning", ICLR 2025, arXiv 2407.10223. The LoRA
learns to answer otherwise (equations 4 to 6); a detector of the request's prompts says how much of
it is loaded (12, 13). Nothing but the request is needed: no set of what is to be kept.

It suppresses. Under a closed gate the model is its base, bit for bit; the base still holds it all.

Other than the official code, which goes on with one LoRA and applies it whole whichever request a
prompt fits: a LoRA per request, so that each can be undone and a trace can name which was loaded
(`shared` is the official way); a detector on the model's own states instead of a second model; its
covariance shrunk instead of pseudo-inverted; weights calibrated on held-out prompts alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from ...editors.rules import least, obey, positive, share
from ...errors import UnlearnFailed
from ...memory.gates.base import Entry
from ...memory.gates.scorers.registry import SCORERS
from ...memory.gates.sets import SetGate, SetState
from ...memory.record import RecordId
from ..base import Change, Means, Request, Unlearnt, Work
from ..lessons import alternatives, batches, in_company, row
from ..student import Lesson, Shape, Student, Study
from .patch import GatedAdapters

if TYPE_CHECKING:
    from ...editors.workbench import Workbench
    from ..base import Patch

GATE = "gate/"
"""Before the name of the gate's scorer, and those of its tensors, in a change."""

SEPARATION = 0.8
"""AUROC of a request's own held-out prompts against general text below which no gate is built."""

CLASH = 0.2
"""Share of what is to be kept that may fall to the gate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class O3:
    """Hyper-parameters; the paper's where they do not depend on the model's size.

    Args:
        depth: the lowest layer that is adapted, as a share of the model's depth; 0 in the paper.
        rank, alpha, dropout: of the LoRA (8, 16, .05).
        passes, rate, batch: of training; it ends earlier when a pass's mean loss is below `until`.
        orthogonality: lambda, the weight of sum ||A' A^T||_F^2 over layers and earlier requests.
        previous: "all" earlier requests, or only the "last", as the paper's text has it.
        shared: one LoRA that every request goes on with, as the official code has it.
        scorer: of the gate; see `memory.gates.scorers`.
        weighting: "soft", a sigmoid of the distance to the threshold; or the paper's "mixture".
    """

    name: ClassVar[str] = "o3"
    means: ClassVar[Means] = "suppresses"
    asks_for_retain: ClassVar[bool] = False
    depth: float = 0.5
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    passes: int = 8
    rate: float = 2e-3
    batch: int = 8
    until: float = 0.1
    orthogonality: float = 0.1
    previous: Literal["all", "last"] = "all"
    shared: bool = False
    scorer: str = "fused"
    weighting: Literal["soft", "mixture"] = "soft"

    def __post_init__(self) -> None:
        obey(
            self,
            share(self, "depth"),
            ("previous", self.previous in ("all", "last"), "all or last"),
            ("weighting", self.weighting in ("soft", "mixture"), "soft or mixture"),
            *(positive(self, name) for name in ("rank", "alpha", "passes", "rate", "batch")),
            *(least(self, name) for name in ("orthogonality", "until", "dropout")),
        )

    def learn(
        self, bench: Workbench, request: Request, before: Sequence[Unlearnt], work: Work
    ) -> Change:
        """Learn one request; see `Method.learn`."""
        began = time.perf_counter()
        state = self._recognise(bench, request)
        earlier = [downs(each.change) for each in before]
        resumed = work.begun[1] or (before[-1].change.tensors if self.shared and before else {})
        shape = Shape(depth=self.depth, rank=self.rank, alpha=self.alpha, dropout=self.dropout)
        student = Student(bench, shape, seed=request.seed, begun=resumed)
        study = Study(
            lessons=self._lessons(bench, student, request),
            loss=lambda lesson: (
                student.losses(lesson).mean() + self.orthogonality * self._overlap(student, earlier)
            ),
            passes=self.passes,
            rate=self.rate,
            until=self.until,
        )
        curve = study.run(student, work, request.seed)
        gate = {f"{GATE}{self.scorer}/{name}": tensor for name, tensor in state.learnt.items()}
        return Change(
            tensors=student.tensors() | gate,
            numbers=dict(state.numbers) | {"alignment": alignment(downs_of(student), earlier)},
            curve=curve,
            seconds=time.perf_counter() - began,
        )

    def patch(self, bench: Workbench, learnt: Sequence[Unlearnt]) -> Patch:
        """The adapters of all requests, each behind its gate."""
        gate = self._gate(bench)
        states = [gate_state(each.change) for each in learnt]
        gate.fit([_entry(each.id) for each in learnt], states)
        return GatedAdapters(bench, learnt, gate, shared=self.shared)

    def _gate(self, bench: Workbench) -> SetGate:
        return SetGate(bench.layers, SCORERS.build(self.scorer), weighting=self.weighting)

    def _recognise(self, bench: Workbench, request: Request) -> SetState:
        """Learn the request's prompts.

        Raises:
            UnlearnFailed: they cannot be told from general text, or from what is to be kept.
        """
        gate = self._gate(bench)
        entry = _entry(
            RecordId("request"), [cue for sample in request.samples for cue in sample.cues]
        )
        state = gate.learn(entry)
        if state.numbers["separation"] < SEPARATION:
            raise UnlearnFailed(
                f"the prompts of request {request.name!r} cannot be told from general text"
                f" (AUROC {state.numbers['separation']:.2f}, at least {SEPARATION}): the gate would"
                " open for anything; narrow the request, or take a method that changes weights"
            )
        if request.retain:
            hit = gate.overlap(state, [sample.prompt for sample in request.retain])
            if hit > CLASH:
                raise UnlearnFailed(
                    f"{hit:.0%} of what request {request.name!r} says is to be kept cannot be told"
                    f" from what it is to forget (at most {CLASH:.0%}); narrow the samples, or take"
                    " a method that changes weights"
                )
        return state

    def _lessons(self, bench: Workbench, student: Student, request: Request) -> list[Lesson]:
        """Every prompt with another answer: by itself, and as agents ask, with text around it."""
        draw = Random(request.seed)
        others = alternatives(request.samples, request.alternatives, draw)
        rows = []
        for sample, other in zip(request.samples, others, strict=True):
            rows.append(row(bench, sample.prompt, other))
            rows.append(in_company(bench, draw, sample.prompt, other))
        return [student.read(part) for part in batches(rows, self.batch)]

    def _overlap(self, student: Student, earlier: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """sum over layers and earlier requests of ||A' A^T||_F^2 (equation 5)."""
        counted = earlier[-1:] if self.previous == "last" else earlier
        total = torch.zeros(())
        for old in counted:
            for name, down in downs_of(student).items():
                if name in old:
                    total = total + (old[name].to(down.device) @ down.T).float().square().sum()
        return total


def downs_of(student: Student) -> dict[str, Tensor]:
    """A of each layer, [R, D_in]."""
    return {name: student.down(name) for name in student.names}


def downs(change: Change) -> dict[str, Tensor]:
    """A of each layer, [R, D_in]."""
    return {
        name.removesuffix("/down"): tensor
        for name, tensor in change.tensors.items()
        if name.endswith("/down")
    }


@torch.no_grad()
def alignment(mine: Mapping[str, Tensor], earlier: Sequence[Mapping[str, Tensor]]) -> float:
    """How much of a LoRA's directions earlier ones use: ||A' A^T||_F / (||A'||_F ||A||_F), the mean
    over layers, of the earlier request where it is largest. 0 is orthogonal."""
    means = []
    for old in earlier:
        shares = [
            float((old[name] @ down.cpu().T).norm() / (old[name].norm() * down.cpu().norm()))
            for name, down in mine.items()
            if name in old
        ]
        if shares:
            means.append(sum(shares) / len(shares))
    return max(means, default=0.0)


def gate_state(change: Change) -> SetState:
    """What a change holds of its gate."""
    tensors, scorer = {}, ""
    for key, tensor in change.tensors.items():
        if key.startswith(GATE):
            scorer, _, name = key.removeprefix(GATE).partition("/")
            tensors[name] = tensor
    return SetState(tensors, dict(change.numbers), SCORERS.build(scorer))


def _entry(id: RecordId, prompts: Sequence[str] = ("",)) -> Entry:
    return Entry(id=id, inside=tuple(prompts))
