"""A detector for a stream that drifts: a few prompts of a new kind come, and count as inside, too.

After MOL (meta out-of-distribution learning, ICCV 2023), of which only the abstract was at hand: an
initial detector is meta-learned such that a few steps on a few new samples suit it to what is
inside by then. Here it is a projection and directions on the unit sphere, the outer loop is first
order (Reptile, Nichol et al. 2018, arXiv 1803.02999), and drifts are simulated from sets of prompts
that are not in the stream. `Moments` needs no training and is its control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize, softplus

from .clusters import centres
from .gaussian import TINY, distance, learn, spectrum

if TYPE_CHECKING:
    from torch import Tensor

SHARP = 10.0
"""Of the logistic loss, in cosines."""


@dataclass(frozen=True, slots=True)
class Adapting:
    """A detector whose first state is meta-learned.

    Args:
        width: of the projection.
        directions: that stand for what is inside.
        steps, rate: of the inner loop.
        rounds, outer: of the outer loop; `outer` is how far it goes to an adapted state.
        shots: prompts of a new kind at each step of a simulated drift.
    """

    width: int = 64
    directions: int = 8
    steps: int = 5
    rate: float = 0.02
    rounds: int = 60
    outer: float = 0.2
    shots: int = 16

    def begin(self, kinds: Sequence[Tensor], background: Tensor) -> dict[str, Tensor]:
        """A state without training: leading directions of [N, L, D] of all kinds of prompts."""
        points = torch.cat([_flat(part) for part in (*kinds, background)])
        _, leading = spectrum(points - points.mean(0))
        projection = leading[: self.width].clone()
        inside = torch.cat([_flat(part) for part in kinds]) @ projection.T
        return {
            "projection": projection,
            "directions": centres(inside, self.directions)[0],
            "level": torch.tensor(0.5),
        }

    def meta_learn(
        self, kinds: Sequence[Tensor], background: Tensor, seed: int = 0
    ) -> dict[str, Tensor]:
        """A state from which adapting goes well, over drifts from one kind [N, L, D] to another."""
        draw = torch.Generator().manual_seed(seed)
        state = self.begin(kinds, background)
        for _ in range(self.rounds):
            adapted = state
            for kind in torch.randperm(len(kinds), generator=draw)[:2].tolist():
                rows = torch.randperm(len(kinds[kind]), generator=draw)[: self.shots]
                others = [part for at, part in enumerate(kinds) if at != kind]
                outside = torch.cat([background, *others])
                adapted = self.adapt(adapted, kinds[kind][rows], outside)
            state = {
                name: value + self.outer * (adapted[name] - value) for name, value in state.items()
            }
        return state

    def adapt(
        self, state: Mapping[str, Tensor], inside: Tensor, background: Tensor
    ) -> dict[str, Tensor]:
        """The inner loop: a few steps on the few prompts [n, L, D] of a new kind. Directions start
        with the least used one moved to their mean."""
        own, other = _flat(inside), _flat(background)
        now = {name: value.clone() for name, value in state.items()}
        seen = normalize(own @ now["projection"].T, dim=-1)
        nearest = (seen @ normalize(now["directions"], dim=-1).T).amax(0)
        now["directions"][int(nearest.argmin())] = normalize(seen.mean(0), dim=-1)
        for value in now.values():
            value.requires_grad_()
        with torch.enable_grad():
            for _ in range(self.steps):
                level = now["level"]
                loss = softplus(SHARP * (level - _cosine(now, own))).mean()
                loss = loss + softplus(SHARP * (_cosine(now, other) - level)).mean()
                slopes = torch.autograd.grad(loss, list(now.values()))
                now = {
                    name: (value - self.rate * slope).detach().requires_grad_()
                    for (name, value), slope in zip(now.items(), slopes, strict=True)
                }
        return {name: value.detach() for name, value in now.items()}

    def score(self, state: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """The cosine to the nearest direction [n]."""
        return _cosine(state, _flat(features))


@dataclass(frozen=True, slots=True)
class Moments:
    """The closed form: mean and covariance, moved towards those of the new prompts.

    Args:
        shrinkage: of the covariance.
        share: how far they move.
    """

    shrinkage: float = 0.5
    share: float = 0.5

    def fit(self, inside: Tensor) -> dict[str, Tensor]:
        """Of the first prompts [N, L, D], without a stream."""
        return {"points": inside, "weights": torch.full((len(inside),), 1 / len(inside))}

    def adapt(self, state: Mapping[str, Tensor], inside: Tensor) -> dict[str, Tensor]:
        """Old moments count 1 - share, those of the new prompts share."""
        new = torch.full((len(inside),), self.share / len(inside))
        return {
            "points": torch.cat([state["points"], inside]),
            "weights": torch.cat([(1 - self.share) * state["weights"], new]),
        }

    def score(self, state: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Minus the Mahalanobis distance [n]."""
        weights = state["weights"][:, None, None]
        mean = (state["points"] * weights).sum(0)
        scaled = (state["points"] - mean) * (weights * len(weights)).sqrt()
        gaussian = learn(torch.cat([scaled, -scaled]), max(self.shrinkage, TINY))
        return -distance(gaussian, features - mean).mean(-1) / features.shape[-1]


def _cosine(state: Mapping[str, Tensor], points: Tensor) -> Tensor:
    seen = normalize(points @ state["projection"].T, dim=-1)
    return (seen @ normalize(state["directions"], dim=-1).T).amax(-1)


def _flat(features: Tensor) -> Tensor:
    """[n, L D], of length 1."""
    return normalize(features.flatten(1), dim=-1)
