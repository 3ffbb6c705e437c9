"""MEMIT: many facts at once, spread over several down-projections.

Meng et al., ICLR 2023, arXiv 2210.07229. For each edit `target` finds the state z at the last of
the layers. From the first layer to the last, with the keys K [D_ff, N] of all edits there and what
is still missing of their states, R [D, N] = (Z - now) / (layers left), the difference is
R K^T (weight C + K K^T)^-1 (equation 14): a pair of vectors for each edit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..llm.twin import patched
from .base import Change, Edit, Learnt, Patch, Progress
from .covariance import covariances
from .descent import unless_cancelled
from .rules import Rule, obey, positive, share
from .side_memory import Thin
from .target import Search, Told, read, search
from .weight_change import WeightChanges, adding, installed, kept, pair

if TYPE_CHECKING:
    from .workbench import Workbench

Solve = Callable[[int, Tensor], Tensor]
"""(layer, keys [D_ff, N]) -> X [D_ff, N] in float64, such that the difference is R X^T."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread(Search):
    """Hyper-parameters of methods that spread edits over layers; see `Search` for the others.

    Args:
        first, last: where the edited layers lie, as shares of the model's depth; the last layer of
            the model is none of them.
        batch: edits that are learnt together.
    """

    applied: ClassVar[frozenset[str]] = frozenset()
    first: float = 0.1
    last: float = 0.25
    batch: int = 100
    clamp: float = 0.75
    decay: float = 0.05

    def layers(self, bench: Workbench) -> list[int]:
        """Those that are edited."""
        most = bench.depth - 2
        first, last = min(bench.layer(self.first), most), min(bench.layer(self.last), most)
        return list(range(first, last + 1))

    def lane(self, edit: Edit) -> str:
        """One for all: each batch is learnt on top of those before it."""
        return ""

    def patch(self, bench: Workbench, learnt: Sequence[Learnt]) -> Patch:
        """The sum of the pairs."""
        return WeightChanges(bench, learnt)

    def rules(self) -> tuple[Rule, ...]:
        """Those of these hyper-parameters."""
        return (
            *Search.rules(self),
            share(self, "first"),
            ("last", self.first <= self.last <= 1, "within [first, 1]"),
            positive(self, "batch"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Memit(Spread):
    """Hyper-parameters, tuned for small models; the others are those of `Spread`.

    Args:
        weight: how many times C counts (lambda); 15,000 in the paper, for models with keys that
            are ten times as long.
    """

    name: ClassVar[str] = "memit"
    mergeable: ClassVar[bool] = True
    weight: float = 100.0

    def __post_init__(self) -> None:
        obey(self, *self.rules(), positive(self, "weight"))

    def learn(
        self,
        bench: Workbench,
        edits: Sequence[Edit],
        before: Sequence[Learnt],
        progress: Progress,
        cancel: Event,
    ) -> list[Change]:
        """Learn a batch; see `Method.learn`."""
        layers = self.layers(bench)
        told = [Told.of(bench, edit, self.contexts) for edit in edits]
        moments = covariances(bench, layers, text=self.text, samples=self.samples)

        def solve(layer: int, keys: Tensor) -> Tensor:
            gram = self.weight * moments[layer].double() + keys @ keys.T
            found: Tensor = torch.linalg.solve(gram, keys)
            return found

        return spread(self, bench, told, before, solve, progress, cancel)


def spread(
    method: Spread,
    bench: Workbench,
    told: Sequence[Told],
    before: Sequence[Learnt],
    solve: Solve,
    progress: Progress,
    cancel: Event,
) -> list[Change]:
    """Learn a batch: where states are to be, then the differences of one layer after another. A
    change also holds its edit's key at each layer, `NAME/key` [D_ff]."""
    began = time.perf_counter()
    layers = method.layers(bench)
    tensors: list[dict[str, Tensor]] = [{} for _ in told]
    curves = []
    with installed(bench, before):
        wanted = []
        _, states = read(bench, told, layers)
        for done, (each, state) in enumerate(zip(told, states, strict=True)):

            def within(step: int, steps: int, done: int = done) -> None:
                progress(done * steps + step, len(told) * steps)

            vector, curve = search(method, bench, each, layers[-1], "state", within, cancel)
            wanted.append(state + vector)
            curves.append(curve)
        made: dict[str, Thin] = {}
        for left, layer in zip(range(len(layers), 0, -1), layers, strict=True):
            unless_cancelled(cancel)
            with patched(bench.model, {name: adding(thin) for name, thin in made.items()}):
                keys, states = read(bench, told, layers[layers.index(layer) :])
            missing = (torch.stack(wanted) - torch.stack(states)) / left
            own = torch.stack([each.mean(0) for each in keys[layer]]).double().cpu()
            down = solve(layer, own.T).T.float().to(missing.device)
            name = bench.down(layer)
            made[name] = Thin(down, missing.T.contiguous())
            for at, tensor in enumerate(tensors):
                tensor |= pair(name, missing[at][:, None], down[at][None])
                tensor[f"{name}/key"] = kept(own[at].float())
    seconds = (time.perf_counter() - began) / len(told)
    return [
        Change(tensors=tensor, curve=curve, seconds=seconds)
        for tensor, curve in zip(tensors, curves, strict=True)
    ]
