"""PALM: a mixture of prototypes (Lu et al. 2024, arXiv 2402.02653).

Several directions stand for a set instead of one mean. Below fifty prompts they are the centres of
spherical k-means, and the score is minus the Mahalanobis distance to the nearest. From fifty on a
projection to the unit sphere is learnt with them: prompts are assigned by Sinkhorn's iteration
(section 3.2), prototypes follow by a moving average (equation 5), and the loss is the likelihood of
the assignment (equation 6) and the contrast of prototypes (equation 7). The background is the
other class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn.functional import normalize

from ....errors import ConfigError
from .base import State
from .clusters import centres
from .gaussian import distance, learn, spectrum

if TYPE_CHECKING:
    from torch import Tensor

ENOUGH = 50
"""Prompts from which on a projection is learnt."""

EPSILON, TAU, CONTRAST = 0.05, 0.1, 0.5
SINKHORN = 3


@dataclass(frozen=True, slots=True)
class Palm:
    """See the module.

    Args:
        prototypes: for each class, at most a quarter of its prompts.
        width: of the projection.
        top: prototypes that a prompt counts for.
        keep: share of a prototype that stays at each step; the paper's .999 is for many more steps.
        steps, rate: of Adam, on all prompts at once.
        shrinkage: of the covariance around the prototypes.
    """

    name: ClassVar[str] = "palm"
    prototypes: int = 4
    width: int = 128
    top: int = 3
    keep: float = 0.9
    steps: int = 60
    rate: float = 0.003
    shrinkage: float = 0.5

    def __post_init__(self) -> None:
        if self.prototypes < 1 or not 0 <= self.keep < 1 or not 0 < self.shrinkage <= 1:
            raise ConfigError(
                f"prototypes={self.prototypes} must be 1 or more, keep={self.keep} within 0..1,"
                f" shrinkage={self.shrinkage} above 0 and at most 1"
            )

    def fit(self, inside: Tensor, background: Tensor) -> State:
        """Centres [K, 1, D] of the set, and the covariance around them; with a projection [P, D]
        for large sets."""
        own, other = _flat(inside), _flat(background)
        state: dict[str, Tensor] = {}
        if len(own) >= ENOUGH:
            state["projection"] = projection = self._projection(own, other)
            own = normalize(own @ projection.T, dim=-1)
        count = min(self.prototypes, max(1, len(own) // 4))
        _, owner = centres(own, count)
        means = torch.stack([own[owner == at].mean(0) for at in sorted(set(owner.tolist()))])
        owner = torch.cdist(own, means).argmin(1)
        around = learn((own - means[owner])[:, None], self.shrinkage)
        return state | {"centres": means} | around

    def score(self, state: State, features: Tensor) -> Tensor:
        """Minus the distance to the nearest prototype [n], per dimension."""
        own = _flat(features)
        if "projection" in state:
            own = normalize(own @ state["projection"].T, dim=-1)
        offsets = own[:, None] - state["centres"]
        away = distance(state, offsets.flatten(0, 1)[:, None])
        return -away.reshape(len(own), -1).amin(1) / own.shape[-1]

    def _projection(self, own: Tensor, other: Tensor) -> Tensor:
        """[P, D], which starts at the leading directions of all prompts."""
        every = torch.cat([own, other])
        classes = torch.cat([torch.zeros(len(own)), torch.ones(len(other))])
        _, leading = spectrum(every - every.mean(0))
        weight = leading[: self.width].clone().requires_grad_()
        with torch.no_grad():
            points = [normalize(part @ weight.T, dim=-1) for part in (own, other)]
            pairs = [centres(part, self.prototypes)[0] for part in points]
            prototypes = torch.cat(pairs)
        kind = torch.cat([torch.full((len(part),), float(at)) for at, part in enumerate(pairs)])
        same = (classes[:, None] == kind).float()
        optimiser = torch.optim.Adam([weight], lr=self.rate)
        with torch.enable_grad():
            for _ in range(self.steps):
                z = normalize(every @ weight.T, dim=-1)
                loss, prototypes = self._step(z, prototypes, same, kind)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        return weight.detach()

    def _step(
        self, z: Tensor, prototypes: Tensor, same: Tensor, kind: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the prototypes [K, P] after it, for projections z [N, P]."""
        with torch.no_grad():
            update = self._assigned(z, prototypes, same)
            update = update / update.sum(0).clamp_min(1e-9)
        moved = normalize(self.keep * prototypes + (1 - self.keep) * update.T @ z, dim=-1)
        fixed = moved.detach()
        with torch.no_grad():
            weights = self._assigned(z, fixed, same)
        logits = z @ fixed.T / TAU
        likelihood = -((weights * logits).sum(-1) - logits.logsumexp(-1)).mean()
        between = moved @ moved.T / CONTRAST
        itself = torch.eye(len(kind), dtype=torch.bool)
        friends = ((kind[:, None] == kind) & ~itself).float()
        near = (friends * between).sum(-1) / friends.sum(-1).clamp_min(1)
        contrast = -(near - between.masked_fill(itself, -torch.inf).logsumexp(-1)).mean()
        return likelihood + contrast, fixed

    def _assigned(self, z: Tensor, prototypes: Tensor, same: Tensor) -> Tensor:
        """[N, K]: how far each prompt counts for each prototype of its class; rows sum to 1."""
        shares = (z @ prototypes.T / EPSILON).exp()
        for _ in range(SINKHORN):
            shares = shares / shares.sum(0) / shares.shape[1]
            shares = shares / shares.sum(1, keepdim=True) / len(z)
        own = shares * same * len(z)
        kept = own.topk(min(self.top, own.shape[1]), dim=-1)
        own = torch.zeros_like(own).scatter(1, kept.indices, kept.values)
        return own / own.sum(1, keepdim=True).clamp_min(1e-9)


def _flat(features: Tensor) -> Tensor:
    """[n, L D], of length 1."""
    return normalize(features.flatten(1), dim=-1)
