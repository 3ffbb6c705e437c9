"""ROME: one fact written into one down-projection as a pair of vectors.

Meng et al., NeurIPS 2022, arXiv 2202.05262. With the key k, the mean input of W at the last token
of the subject over contexts, the vector d of `target` and C = E[k k^T], the difference of W is
d (C^-1 k)^T / (k^T C^-1 k): the least that turns W k into W k + d, common inputs weighing most
(equation 2). As in R-ROME (Gupta et al. 2024, arXiv 2403.07175) k is the same mean everywhere; the
official code divides by the bare prompt's key, which makes single edits blow up in a sequence.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, ClassVar

import torch

from .base import Change, Edit, Learnt, Patch, Progress
from .covariance import covariances
from .rules import obey, share
from .target import Search, Told, read, search
from .weight_change import WeightChanges, installed, pair

if TYPE_CHECKING:
    from .workbench import Workbench


@dataclass(frozen=True, slots=True, kw_only=True)
class Rome(Search):
    """Hyper-parameters, tuned for small models; the others are those of `Search`.

    Args:
        depth: where the edited matrix lies, as a share of the model's depth; not the last layer.
    """

    name: ClassVar[str] = "rome"
    mergeable: ClassVar[bool] = True
    batch: ClassVar[int] = 1
    applied: ClassVar[frozenset[str]] = frozenset()
    depth: float = 0.2

    def __post_init__(self) -> None:
        obey(self, share(self, "depth"), *self.rules())

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
        told = Told.of(bench, edit, self.contexts)
        layer = min(bench.layer(self.depth), bench.depth - 2)
        moment = covariances(bench, [layer], text=self.text, samples=self.samples)[layer]
        with installed(bench, before):
            vector, curve = search(self, bench, told, layer, "output", progress, cancel)
            keys, _ = read(bench, [told], [layer])
        key = keys[layer][0].mean(0).double().cpu()
        direction = torch.linalg.solve(moment.double(), key)
        down = (direction / (direction @ key)).float()
        return [
            Change(
                tensors=pair(bench.down(layer), vector[:, None], down[None]),
                curve=curve,
                seconds=time.perf_counter() - began,
            )
        ]

    def patch(self, bench: Workbench, learnt: Sequence[Learnt]) -> Patch:
        """The sum of the pairs."""
        return WeightChanges(bench, learnt)
