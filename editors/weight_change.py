"""Changes that always apply: the sum of what was learnt, added to named matrices.

A change holds for each matrix W [D_out, D_in] that it is about either two thin matrices,
`NAME/up` [D_out, R] and `NAME/down` [R, D_in], whose product is the difference, or the whole
difference `NAME/whole` [D_out, D_in]. What else it holds has other endings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..llm.places import Delta
from ..llm.twin import patched
from .base import Change, Opened
from .side_memory import Dense, Difference, Thin

if TYPE_CHECKING:
    from torch import Tensor

    from .workbench import Workbench


def pair(name: str, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    """Tensors of a change up @ down of the matrix called `name`."""
    return {f"{name}/up": kept(up), f"{name}/down": kept(down)}


def whole(name: str, difference: Tensor) -> dict[str, Tensor]:
    """Tensors of a change of the matrix called `name` that has no low rank; in half precision,
    since one is as large as the matrix."""
    return {f"{name}/whole": kept(difference).half()}


def kept(tensor: Tensor) -> Tensor:
    """A tensor as a change holds it."""
    return tensor.detach().cpu().contiguous().clone()


def summed(bench: Workbench, changes: Iterable[Change]) -> dict[str, Difference]:
    """What changes come to, by matrix; in the order given, so that equal changes have equal sums.
    Many thin ones are made one dense matrix, so they cost one product however many they are."""
    ups: dict[str, list[Tensor]] = {}
    downs: dict[str, list[Tensor]] = {}
    dense: dict[str, Tensor] = {}
    for change in changes:
        for key, tensor in change.tensors.items():
            name, _, part = key.rpartition("/")
            if part == "up":
                ups.setdefault(name, []).append(tensor)
                downs.setdefault(name, []).append(change.tensors[f"{name}/down"])
            elif part == "whole":
                if name not in dense:
                    dense[name] = torch.zeros(tensor.shape)
                dense[name] += tensor
    found: dict[str, Difference] = {}
    for name in sorted(ups.keys() | dense.keys()):
        device = bench.weight(name).device
        if name in ups:
            thin = Thin(torch.cat(downs[name]).to(device), torch.cat(ups[name], 1).to(device))
            found[name] = _cheapest(thin)
        if name in dense:
            found[name] = Dense(dense[name].to(device))
    return found


def _cheapest(thin: Thin) -> Difference:
    rank, wide = thin.down.shape
    width = len(thin.up)
    return Dense(thin.dense()) if rank * (wide + width) > wide * width else thin


def adding(difference: Difference) -> Delta:
    """The delta that a difference of weights makes."""
    return lambda inputs, output: output + difference(inputs).to(output.dtype)


def installed(bench: Workbench, before: Sequence[Holder]) -> AbstractContextManager[None]:
    """Inside the block, the bench's model has the changes of these edits."""
    sums = summed(bench, (each.change for each in before))
    return patched(bench.model, {name: adding(each) for name, each in sums.items()})


class Holder(Protocol):
    """Whatever a change was learnt of."""

    @property
    def change(self) -> Change:
        """What was learnt."""


class WeightChanges:
    """The patch of a method without a gate. What it holds follows from the changes alone."""

    adds = True

    def __init__(self, bench: Workbench, learnt: Sequence[Holder]) -> None:
        self._edits = len(learnt)
        self._sums = summed(bench, (each.change for each in learnt))
        self.layers = frozenset(self._sums)

    def open(self, prompts: Sequence[str]) -> Opened:
        """All changes, for every prompt."""
        return Opened(deltas={name: adding(each) for name, each in self._sums.items()})

    def explain(self, prompt: str) -> Mapping[str, Any]:
        """How much of each matrix is changed; no prompt is told from another."""
        return {"gate": "none", "applied": self._edits, "norms": self._norms}

    @cached_property
    def _norms(self) -> dict[str, float]:
        return {name: round(float(each.dense().norm()), 4) for name, each in self._sums.items()}

    def merged(self) -> Mapping[str, Tensor]:
        """The sums, [D_out, D_in] each."""
        return {name: each.dense() for name, each in self._sums.items()}
