"""LoRA fine-tuning, one pair of adapters per matrix and edit: the baseline everyone has at hand.

Hu et al., ICLR 2022, arXiv 2106.09685. Of a matrix W [D_out, D_in] the difference is
B A with A [R, D_in] drawn at random and B [D_out, R] zero at first; a scale alpha / r would only
scale the rate of B, so there is none. Adapted are the
layers of the upper part of the model, so that the states below are computed once: in each the
down-projection and every linear layer outside the feed-forward part, which are the projections of
attention, whatever a model calls them and whether or not it fuses them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..llm.twin import blocks, patched
from .base import Change, Edit, Learnt, Patch, Progress
from .descent import descend
from .rules import least, obey, positive, share
from .side_memory import Thin
from .weight_change import WeightChanges, adding, installed, pair

if TYPE_CHECKING:
    from .workbench import Workbench


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Hyper-parameters, tuned for small models.

    Args:
        depth: the lowest layer that is adapted, as a share of the model's depth.
        modules: "attention+down", or "down" for the down-projections alone.
        rank: of the adapters.
        steps, rate, until: Adam's, and the loss at which it ends.
    """

    name: ClassVar[str] = "lora"
    mergeable: ClassVar[bool] = True
    batch: ClassVar[int] = 1
    applied: ClassVar[frozenset[str]] = frozenset()
    depth: float = 0.67
    modules: Literal["attention+down", "down"] = "attention+down"
    rank: int = 4
    steps: int = 25
    rate: float = 0.002
    until: float = 0.05

    def __post_init__(self) -> None:
        obey(
            self,
            share(self, "depth"),
            ("modules", self.modules in ("attention+down", "down"), "attention+down or down"),
            *(positive(self, name) for name in ("rank", "steps", "rate")),
            least(self, "until"),
        )

    def lane(self, edit: Edit) -> str:
        """One for all: each is learnt on top of those before it."""
        return ""

    def learn(
        self,
        bench: Workbench,
        edits: Sequence[Edit],
        before: Sequence[Learnt],
        progress: Progress,
        cancel: Event,
    ) -> list[Change]:
        """Learn one edit; see `Method.learn`."""
        began = time.perf_counter()
        [edit] = edits
        lowest = bench.layer(self.depth)
        adapters = self._adapters(bench, lowest, edit)
        ups = [adapter.up for adapter in adapters.values()]
        downs = [adapter.down for adapter in adapters.values()]

        with installed(bench, before):
            told = [
                bench.capture(rows, lowest)
                for rows in bench.lessons(edit, (edit.prompt, *edit.paraphrases))
            ]
            with patched(bench.model, {name: adding(each) for name, each in adapters.items()}):
                curve = descend(
                    [*ups, *downs],
                    lambda: bench.losses(told, lowest).mean(),
                    steps=self.steps,
                    rate=self.rate,
                    until=self.until,
                    progress=progress,
                    cancel=cancel,
                )
        tensors: dict[str, Tensor] = {}
        for name, adapter in adapters.items():
            tensors |= pair(name, adapter.up, adapter.down)
        return [Change(tensors=tensors, curve=curve, seconds=time.perf_counter() - began)]

    def patch(self, bench: Workbench, learnt: Sequence[Learnt]) -> Patch:
        """The sum of the adapters."""
        return WeightChanges(bench, learnt)

    def _adapters(self, bench: Workbench, lowest: int, edit: Edit) -> dict[str, Thin]:
        """Adapters that change nothing yet, drawn on the CPU so that they are the same anywhere."""
        draw = torch.Generator().manual_seed(edit.seed)
        adapters = {}
        for name in self._adapted(bench, lowest):
            weight = bench.weight(name)
            width, wide = weight.shape
            bound = math.sqrt(3 / wide)
            down = (2 * torch.rand(self.rank, wide, generator=draw) - 1) * bound
            up = torch.zeros(width, self.rank, device=weight.device)
            adapters[name] = Thin(down.to(weight.device).requires_grad_(), up.requires_grad_())
        return adapters

    def _adapted(self, bench: Workbench, lowest: int) -> list[str]:
        above = range(lowest, bench.depth)
        downs = [bench.down(layer) for layer in above]
        if self.modules == "down":
            return downs
        return [*downs, *(name for down in downs for name in _attention(bench, down))]


def _attention(bench: Workbench, down: str) -> list[str]:
    """Linear layers of a block that lie outside its feed-forward part."""
    stack = blocks(bench.model)[0]
    index, part = down.removeprefix(f"{stack}.").split(".")[:2]
    block = f"{stack}.{index}"
    return [
        f"{block}.{name}"
        for name, module in bench.model.get_submodule(block).named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.split(".")[0] != part
    ]
