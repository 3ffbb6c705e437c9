"""UltraEdit: a batch of facts in closed form, from one backward pass.

Gu et al. 2025, arXiv 2505.14679. Of the N tokens that are to say the targets, H [N, D_in] are the
inputs of a matrix and G [N, D_out] the gradients of the loss at its outputs. Both are normalised by
their mean and deviation over all edits so far (the lifelong normaliser), giving h and g; then

    V = -rate |h|^2 g  (row by row),    difference^T = (H^T H + ridge I)^-1 H^T V.

Departures: the normaliser starts from sentences about nothing in particular, since the deviation
within one edit of one token is zero and its difference would be too; and the ridge is in units of
the mean squared length of a row of H.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..llm.places import Delta
from ..llm.twin import inputs_of, patched
from ..memory.gates.features import background
from .base import Change, Edit, Learnt, Patch, Progress
from .covariance import keep
from .descent import unless_cancelled
from .rows import Row, Rows
from .rules import obey, positive, share
from .weight_change import WeightChanges, installed, pair

if TYPE_CHECKING:
    from .workbench import Workbench

AT_ONCE = 8
"""Rows that are read at once."""

START = 32
"""Sentences that the normaliser starts from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UltraEdit:
    """Hyper-parameters, tuned for small models.

    Args:
        first, last: where the edited down-projections lie, as shares of the model's depth.
        batch: edits that are learnt together.
        rate, ridge: see the module.
    """

    name: ClassVar[str] = "ultraedit"
    mergeable: ClassVar[bool] = True
    applied: ClassVar[frozenset[str]] = frozenset()
    first: float = 0.8
    last: float = 0.9
    batch: int = 100
    rate: float = 1e-4
    ridge: float = 0.1

    def __post_init__(self) -> None:
        obey(
            self,
            share(self, "first"),
            ("last", self.first <= self.last <= 1, "within [first, 1]"),
            *(positive(self, name) for name in ("batch", "rate", "ridge")),
        )

    def lane(self, edit: Edit) -> str:
        """One for all: each batch is learnt on top of those before it."""
        return ""

    def learn(
        self,
        bench: Workbench,
        edits: Sequence[Edit],
        before: Sequence[Learnt],
        progress: Progress,
        cancel: Event,
    ) -> list[Change]:
        """Learn a batch; see `Method.learn`."""
        began = time.perf_counter()
        prober = bench.prober
        rows, owner = [], []
        for at, edit in enumerate(edits):
            target = prober.ids(" " + edit.target.strip())
            for prompt in (edit.prompt, *edit.paraphrases):
                rows.append((prober.ids(prompt.rstrip()), target))
                owner += [at] * len(target)
        start = self._start(bench, cancel)
        with installed(bench, before):
            found = self._read(bench, rows, lambda done: progress(done, len(rows)), cancel)
        tensors: list[dict[str, Tensor]] = [{} for _ in edits]
        own = torch.tensor(owner)
        for name, (inputs, gradients) in found.items():
            joined = torch.cat([inputs, gradients], dim=1)
            earlier = [each.change.tensors for each in before]
            sums = _Sums(*start[name])
            for each in earlier:
                sums += _Sums(*each[f"{name}/seen"])
            sums += _Sums.of(joined)
            up, down = self._solved(inputs, sums.normalised(joined))
            for at, tensor in enumerate(tensors):
                mine = own == at
                tensor |= pair(name, up[:, mine], down[mine])
                tensor[f"{name}/seen"] = _Sums.of(joined[mine]).stacked()
        progress(len(rows), len(rows))
        seconds = (time.perf_counter() - began) / len(edits)
        return [Change(tensors=tensor, seconds=seconds) for tensor in tensors]

    def patch(self, bench: Workbench, learnt: Sequence[Learnt]) -> Patch:
        """The sum of the differences."""
        return WeightChanges(bench, learnt)

    def _solved(self, inputs: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        """The difference as up [D_out, N] and down [N, D_in], a pair of columns for each token."""
        wide = inputs.shape[1]
        values = -self.rate * normal[:, :wide].pow(2).sum(1, keepdim=True) * normal[:, wide:]
        gram = inputs @ inputs.T
        gram += self.ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        return values.T.float(), torch.linalg.solve(gram, inputs).float()

    def _start(self, bench: Workbench, cancel: Event) -> dict[str, Tensor]:
        """What the normaliser starts from, by matrix; computed once per model and layers."""
        layers = f"{bench.layer(self.first)}-{bench.layer(self.last)}"
        path = bench.folder / f"normaliser-{bench.fingerprint[:16]}-{layers}.safetensors"
        if not path.exists():
            rows = [bench.prober.ids(text) for text in background()[:START]]
            found = self._read(
                bench, [(ids[:1], ids[1:]) for ids in rows], lambda done: None, cancel
            )
            sums = {name: _Sums.of(torch.cat(both, dim=1)) for name, both in found.items()}
            keep(path, {name: each.stacked() for name, each in sums.items()})
        return load_file(path)

    def _read(
        self,
        bench: Workbench,
        rows: Sequence[Row],
        progress: Callable[[int], None],
        cancel: Event,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """H [N, D_in] and G [N, D_out] in float64 on the CPU, of each edited matrix, at the tokens
        that are to say the targets of rows."""
        lowest = bench.layer(self.first)
        names = [bench.down(layer) for layer in range(lowest, bench.layer(self.last) + 1)]
        found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
        for at in range(0, len(rows), AT_ONCE):
            progress(at)
            unless_cancelled(cancel)
            batch = Rows.of(rows[at : at + AT_ONCE], bench.model.device)
            says = torch.roll(batch.target, -1, dims=1)
            says[:, -1] = False
            told = bench.capture(batch, lowest)
            probes = {
                name: torch.zeros(
                    *batch.ids.shape, len(bench.weight(name)), device=batch.ids.device
                ).requires_grad_()
                for name in names
            }
            deltas = {name: _probing(probe) for name, probe in probes.items()}
            with (
                torch.enable_grad(),
                patched(bench.model, deltas),
                inputs_of(bench.model, *names) as seen,
            ):
                bench.losses([told], lowest).sum().backward()  # type: ignore[no-untyped-call]
            for name, probe in probes.items():
                assert probe.grad is not None
                inputs = seen[name].detach()[says]
                found[name].append((inputs.double().cpu(), probe.grad[says].double().cpu()))
        return {
            name: (torch.cat([h for h, _ in parts]), torch.cat([g for _, g in parts]))
            for name, parts in found.items()
        }


@dataclass(frozen=True, slots=True)
class _Sums:
    """What mean and deviation of some rows [N, D] follow from, in float64: how many there are, as
    often as there are columns, their sum and the sum of their squares, [D] each."""

    count: Tensor
    total: Tensor
    squares: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> _Sums:
        return cls(torch.full(rows.shape[1:], float(len(rows))), rows.sum(0), rows.pow(2).sum(0))

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.count + other.count, self.total + other.total, self.squares + other.squares
        )

    def stacked(self) -> Tensor:
        """[3, D]."""
        return torch.stack([self.count.double(), self.total, self.squares])

    def normalised(self, rows: Tensor) -> Tensor:
        mean = self.total / self.count
        variance = (self.squares / self.count - mean.pow(2)).clamp(min=0)
        return (rows - mean) / (variance.sqrt() + 1e-8)


def _probing(probe: Tensor) -> Delta:
    """Adds nothing, and has the output's gradient."""
    return lambda inputs, output: output + probe
