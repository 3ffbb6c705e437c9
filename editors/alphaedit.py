"""AlphaEdit: MEMIT's targets, written where common inputs have nothing.

Fang et al., ICLR 2025, arXiv 2410.02355. P projects onto eigenvectors of C = E[k k^T] whose
eigenvalues are small, so that a difference R X^T with X = P ... does next to nothing to common
inputs. With the keys K of a batch and those of all before it, K_0 (equation 14, transposed):

    X = (P (K K^T + K_0 K_0^T) + ridge I)^-1 P K

What counts as small is `nullspace` times the mean eigenvalue, and the ridge is in units of the mean
squared length of a key; the paper's 2e-2 and 1 are those of one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .base import Change, Edit, Learnt, Progress
from .covariance import spectrum
from .memit import Spread, spread
from .rules import obey, positive
from .target import Told

if TYPE_CHECKING:
    from .workbench import Workbench


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaEdit(Spread):
    """Hyper-parameters, tuned for small models; the others are those of `Spread`.

    Args:
        nullspace, ridge: see the module.
    """

    name: ClassVar[str] = "alphaedit"
    mergeable: ClassVar[bool] = True
    nullspace: float = 0.5
    ridge: float = 0.001

    def __post_init__(self) -> None:
        obey(self, *self.rules(), positive(self, "nullspace"), positive(self, "ridge"))

    def learn(
        self,
        bench: Workbench,
        edits: Sequence[Edit],
        before: Sequence[Learnt],
        progress: Progress,
        cancel: Event,
    ) -> list[Change]:
        """Learn a batch; see `Method.learn`."""
        told = [Told.of(bench, edit, self.contexts) for edit in edits]
        layers = self.layers(bench)
        spectra = {
            layer: spectrum(bench, layer, text=self.text, samples=self.samples) for layer in layers
        }
        earlier = {layer: _keys(before, bench.down(layer)) for layer in layers if before}

        def solve(layer: int, keys: Tensor) -> Tensor:
            values, vectors = spectra[layer]
            small = vectors[:, values < self.nullspace * values.mean()].double()
            # All happens within the null space, so the system is as small as that is.
            inside = small.T @ keys
            gram = inside @ inside.T
            if before:
                old = small.T @ earlier[layer]
                gram += old @ old.T
            ridge = self.ridge * float(values.sum())
            gram += ridge * torch.eye(len(gram), dtype=gram.dtype)
            found: Tensor = small @ torch.linalg.solve(gram, inside)
            return found

        return spread(self, bench, told, before, solve, progress, cancel)


def _keys(before: Sequence[Learnt], name: str) -> Tensor:
    """[D_ff, N], of edits learnt before."""
    return torch.stack([each.change.tensors[f"{name}/key"] for each in before], dim=1).double()
