"""A model that learns to forget: a twin with one LoRA on its upper layers, made by `peft`.

Hu et al., ICLR 2022, arXiv 2106.09685. Only layers from a depth upwards are adapted, so the states
below are computed once for each batch. What was learnt of earlier requests may be in place, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..editors.descent import unless_cancelled
from ..editors.rows import Row, Rows
from ..editors.weight_change import pair
from ..errors import UnlearnFailed
from ..llm.places import Delta
from ..llm.products import quick_products
from ..llm.twin import blocks, from_block, inputs_of, patched, twin, up_to_block

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..editors.workbench import Workbench
    from .base import Work

T = TypeVar("T")
ADAPTER = "unlearning"
CANCELLED = "unlearning was cancelled; it can be gone on with from the last whole pass"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a LoRA is like.

    Args:
        depth: the lowest layer that is adapted, as a share of the model's depth.
        rank, alpha, dropout: its rank R; its output is scaled by alpha / R.
    """

    depth: float
    rank: int
    alpha: int
    dropout: float


@dataclass(frozen=True, slots=True)
class Lesson:
    """A batch of rows, read up to the lowest layer that is adapted.

    Args:
        hidden: [N, T, D], what that layer is given.
    """

    rows: Rows
    hidden: Tensor

    @property
    def lengths(self) -> Tensor:
        """[N]: tokens that are to be said."""
        return self.rows.target.sum(1)


class Student:
    """See the module. One thread works with it, inside its block.

    Args:
        before: what is in place of earlier requests, by layer.
        begun: tensors of an earlier pass, to go on from.
        seed: of its A, drawn anew for each request; B is zero at first.
    """

    def __init__(
        self,
        bench: Workbench,
        shape: Shape,
        *,
        seed: int,
        before: Mapping[str, Delta] | None = None,
        begun: Mapping[str, Tensor] | None = None,
    ) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self.model = twin(bench.model)
        self.lowest = bench.layer(shape.depth)
        self.names = linear_layers(self.model, self.lowest)
        self.scale = shape.alpha / shape.rank
        self._kept = ExitStack()
        self._kept.enter_context(patched(self.model, before or {}))
        config = LoraConfig(
            r=shape.rank,
            lora_alpha=shape.alpha,
            lora_dropout=shape.dropout,
            target_modules=self.names,
            fan_in_fan_out=all(
                isinstance(self.model.get_submodule(name), Conv1D) for name in self.names
            ),
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inject_adapter_in_model(config, self.model, ADAPTER)
        self._adapters: dict[str, Any] = {
            name: self.model.get_submodule(name) for name in self.names
        }
        for part in self.parameters:  # whatever the model's precision: steps are small
            part.data = part.data.float()
        if begun:
            self._begin(begun)

    def _begin(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name in self.names:
                self.down(name).copy_(tensors[f"{name}/down"])
                self.up(name).copy_(tensors[f"{name}/up"] / self.scale)

    def down(self, name: str) -> Tensor:
        """A of a layer, [R, D_in]."""
        weight: Tensor = self._adapters[name].lora_A[ADAPTER].weight
        return weight

    def up(self, name: str) -> Tensor:
        """B of a layer, [D_out, R]."""
        weight: Tensor = self._adapters[name].lora_B[ADAPTER].weight
        return weight

    @property
    def parameters(self) -> list[Tensor]:
        """All that is trained."""
        return [part(name) for name in self.names for part in (self.down, self.up)]

    def tensors(self) -> dict[str, Tensor]:
        """As a change holds them: NAME/down is A, NAME/up is B with its scale."""
        found: dict[str, Tensor] = {}
        for name in self.names:
            found |= pair(name, self.up(name) * self.scale, self.down(name))
        return found

    @torch.no_grad()
    def read(self, rows: Sequence[Row]) -> Lesson:
        """Read a batch as far as it is the same in every pass."""
        batch = Rows.of(rows, self.model.device)
        if self.lowest == 0:
            return Lesson(batch, torch.empty(0))
        block = f"{blocks(self.model)[0]}.{self.lowest}"
        with up_to_block(self.model, self.lowest), inputs_of(self.model, block) as seen:
            self.model.base_model(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                position_ids=batch.positions,
                use_cache=False,
            )
        return Lesson(batch, seen[block])

    def losses(self, lesson: Lesson) -> Tensor:
        """[N]: -ln P(target | prompt) in nats, the mean over a row's target tokens."""
        with from_block(self.model, self.lowest, lesson.hidden):
            return lesson.rows.losses(self.model)

    def states(self, lesson: Lesson, layer: int) -> Tensor:
        """[N, T, D]: what a layer above the lowest one gives."""
        block = f"{blocks(self.model)[0]}.{layer + 1}"
        with (
            from_block(self.model, self.lowest, lesson.hidden),
            up_to_block(self.model, layer + 1),
            inputs_of(self.model, block) as seen,
        ):
            self.model.base_model(
                input_ids=lesson.rows.ids,
                attention_mask=lesson.rows.mask,
                position_ids=lesson.rows.positions,
                use_cache=False,
            )
        return seen[block]

    @contextmanager
    def untaught(self) -> Iterator[None]:
        """Inside the block the LoRA is off: the model as it was before this request."""
        adapters = list(self._adapters.values())
        try:
            for adapter in adapters:
                adapter.enable_adapters(False)
            with torch.no_grad():
                yield
        finally:
            for adapter in adapters:
                adapter.enable_adapters(True)

    def close(self) -> None:
        """Take off what is in place of earlier requests."""
        self._kept.close()


def linear_layers(model: PreTrainedModel, lowest: int) -> list[str]:
    """Names of all linear layers in the decoder's layers from `lowest` upwards."""
    stack, layers = blocks(model)
    return [
        f"{stack}.{index}.{name}"
        for index in range(lowest, len(layers))
        for name, module in layers[index].named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study(Generic[T]):
    """How a student learns: AdamW over lessons in any order, pass after pass.

    Args:
        lessons: what `loss` is asked for, one at a time.
        project: called after each step.
        passes, rate: of training; the rate falls linearly to a tenth.
        until: the mean loss of a pass at which it ends.
    """

    lessons: Sequence[T]
    loss: Callable[[T], Tensor]
    passes: int
    rate: float
    until: float = -math.inf
    project: Callable[[], None] = lambda: None

    def run(self, student: Student, work: Work, seed: int) -> tuple[float, ...]:
        """Train, and return the mean loss of each pass.

        Raises:
            Cancelled: `work.cancel` was set.
            UnlearnFailed: the loss is no number.
        """
        optimiser = torch.optim.AdamW(student.parameters, lr=self.rate, weight_decay=0.0)
        done, steps = work.begun[0], self.passes * len(self.lessons)
        curve: list[float] = []
        student.model.train()
        try:
            for turn in range(done, self.passes):
                losses = self._pass(student, optimiser, work, turn, seed + turn)
                curve.append(sum(losses) / len(losses))
                work.keep(turn + 1, student.tensors())
                if curve[-1] < self.until:
                    break
        finally:
            student.model.eval()
        work.progress(steps, steps)
        return tuple(curve)

    def _pass(
        self,
        student: Student,
        optimiser: torch.optim.Optimizer,
        work: Work,
        turn: int,
        seed: int,
    ) -> list[float]:
        """One pass, whose order and dropout are drawn anew, so that one gone on with is as any."""
        steps, losses = self.passes * len(self.lessons), []
        draw = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.lessons), generator=draw).tolist()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for at, index in enumerate(order):
                step = turn * len(order) + at
                work.progress(step, steps)
                unless_cancelled(work.cancel, CANCELLED)
                optimiser.param_groups[0]["lr"] = self.rate * (1 - 0.9 * step / steps)
                losses.append(self._step(student, optimiser, self.lessons[index]))
                if not math.isfinite(losses[-1]):
                    raise UnlearnFailed(
                        f"the loss became {losses[-1]} in pass {turn + 1} with rate={self.rate};"
                        " choose a lower rate"
                    )
        return losses

    def _step(self, student: Student, optimiser: torch.optim.Optimizer, lesson: T) -> float:
        with torch.enable_grad(), quick_products(student.model.device):
            loss = self.loss(lesson)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(student.parameters, 1.0)
        optimiser.step()
        with torch.no_grad():
            self.project()
        return float(loss.detach())
