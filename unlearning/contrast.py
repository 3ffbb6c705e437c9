"""What the methods that change weights share: one LoRA per request, and two kinds of rows.

Each step sees a batch of what is to be forgotten and, where a method asks for it, one of what is to
stay. With x_f and x_r for these, a loss is gamma L_f(x_f) + alpha L_r(x_r) (Maini et al., TOFU,
arXiv 2401.06121, section 4). NLL counts tokens of answers only.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from ..editors.rules import Rule, obey, positive, share
from ..editors.weight_change import WeightChanges, adding, summed
from ..errors import UnlearnFailed
from ..llm.products import quick_products
from ..memory.gates.features import background
from .base import Change, Means, Patch, Request, Unlearnt, Work
from .lessons import batches, row
from .student import Lesson, Shape, Student, Study

if TYPE_CHECKING:
    from ..editors.rows import Row
    from ..editors.workbench import Workbench


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of training sees.

    Args:
        forget, retain: batches; None where the method has no part for what is to stay.
        known: what the model made of them before this request, as the method needs it.
    """

    forget: Lesson
    retain: Lesson | None = None
    known: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast(ABC):
    """A method that trains one LoRA per request, which then holds for every prompt.

    Earlier requests are in place while one is learnt, and none is learnt again. Where a request
    names nothing to retain, sentences of novels stand in, as plain texts.

    Args:
        depth: the lowest layer that is adapted, as a share of the model's depth.
        rank, alpha: of the LoRA, whose output is scaled by alpha / rank. There is no dropout.
        passes: over all samples.
        rate: AdamW's. Papers give 1e-5 for all weights of models of billions; a LoRA of a small
            model needs one that is a hundred times higher to move as far in as few steps.
        batch: samples of a step, and rows to retain beside them.
    """

    name: ClassVar[str]
    means: ClassVar[Means] = "changes weights"
    asks_for_retain: ClassVar[bool] = True
    depth: float = 0.5
    rank: int = 8
    alpha: float = 16.0
    passes: int = 5
    rate: float = 1e-3
    batch: int = 4

    def __post_init__(self) -> None:
        obey(self, *self.rules())

    def rules(self) -> tuple[Rule, ...]:
        """What its hyper-parameters have to keep to."""
        counts = ("rank", "alpha", "passes", "rate", "batch")
        return (share(self, "depth"), *(positive(self, name) for name in counts))

    @abstractmethod
    def loss(self, student: Student, step: Step) -> Tensor:
        """What is minimised, a scalar."""

    def kept(self, student: Student, step: Step) -> Tensor:
        """L_r: mean NLL(x_r)."""
        assert step.retain is not None  # as the method asks for it
        return student.losses(step.retain).mean()

    def known(self, student: Student, step: Step, seed: int) -> tuple[Tensor, ...]:
        """What `loss` needs of the model as it was before this request."""
        return ()

    def outcome(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the change, from those that were trained; of layers that no loss has
        reached there are none."""
        return {
            name: tensor
            for name, tensor in tensors.items()
            if tensors[f"{name.rpartition('/')[0]}/up"].any()
        }

    def learn(
        self, bench: Workbench, request: Request, before: Sequence[Unlearnt], work: Work
    ) -> Change:
        """Learn one request; see `Method.learn`."""
        began = time.perf_counter()
        shape = Shape(depth=self.depth, rank=self.rank, alpha=self.alpha, dropout=0.0)
        earlier = summed(bench, (each.change for each in before))
        deltas = {name: adding(difference) for name, difference in earlier.items()}
        student = Student(
            bench, shape, seed=request.seed, before=deltas, begun=work.begun[1] or None
        )
        with closing(student):
            study = Study(
                lessons=self.steps(bench, student, request),
                loss=partial(self.loss, student),
                passes=self.passes,
                rate=self.rate,
            )
            curve = study.run(student, work, request.seed)
            tensors = self.outcome(student.tensors())
        return finished(
            Change(tensors=tensors, curve=curve, seconds=time.perf_counter() - began), self.rate
        )

    def steps(self, bench: Workbench, student: Student, request: Request) -> list[Step]:
        """The batches of a pass, read as far as they stay the same."""
        forget = [row(bench, each.prompt, each.rest) for each in request.samples]
        lessons = [student.read(part) for part in batches(forget, self.batch)]
        steps = [Step(lesson) for lesson in lessons]
        if self.asks_for_retain:
            retain = batches(retained(bench, request), self.batch)
            steps = [
                Step(lesson, student.read(part))
                for lesson, part in zip(lessons, retain, strict=True)
            ]
        with student.untaught(), quick_products(student.model.device):
            return [
                Step(step.forget, step.retain, self.known(student, step, request.seed))
                for step in steps
            ]

    def patch(self, bench: Workbench, learnt: Sequence[Unlearnt]) -> Patch:
        """The sum of the LoRAs, for every prompt; it can be merged into a checkpoint."""
        return WeightChanges(bench, learnt)


def finished(change: Change, rate: float) -> Change:
    """A change whose values are all numbers.

    Raises:
        UnlearnFailed: they are not.
    """
    if not change.finite:
        raise UnlearnFailed(
            f"what was learnt with rate={rate} holds values that are no numbers; choose a lower"
            " rate"
        )
    return change


def retained(bench: Workbench, request: Request) -> list[Row]:
    """As many rows to retain as there are samples, drawn by the request's seed: of what it names,
    else sentences of which the first token is given."""
    draw, count = Random(request.seed), len(request.samples)
    if request.retain:
        rows = [row(bench, each.prompt, each.rest) for each in request.retain]
    else:
        texts = background()
        ids = [bench.prober.ids(text) for text in draw.sample(texts, min(count, len(texts)))]
        rows = [(each[:1], each[1:]) for each in ids if len(each) > 1]
    draw.shuffle(rows)
    return [rows[at % len(rows)] for at in range(count)]


def ascent(losses: Tensor, limit: float) -> Tensor:
    """-mean min(NLL, limit) over losses [N]. A row beyond the limit is pushed no further: without
    one the loss has no lower end, and takes the whole model with it."""
    return -losses.clamp(max=limit).mean()


def preference(margin: Tensor, beta: float) -> Tensor:
    """-(2 / beta) mean log sigmoid(beta margin) over [N], in nats: preference optimisation in
    which only what is dispreferred is there (Zhang et al., arXiv 2404.05868, equation 3)."""
    return -2 / beta * logsigmoid(beta * margin).mean()
