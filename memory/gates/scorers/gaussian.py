"""A Gaussian over few points in many dimensions: low rank plus a multiple of the identity.

Covariance is shrunk, Sigma = (1 - kappa) S + kappa tr(S)/D I (Ledoit & Wolf 2004), so that a
direction no point went in counts most. Its pseudo-inverse (kappa 0) ignores just those directions,
and there lies what is outside. Nothing [D, D] is stored: of N points, S has N - 1 directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from torch import Tensor

RANK = 64
"""Directions kept; what the others have goes into the multiple of the identity."""

TINY = 1e-6


def learn(points: Tensor, shrinkage: float | None = None, rank: int = RANK) -> dict[str, Tensor]:
    """A Gaussian for each layer of points [N, L, D].

    Args:
        shrinkage: kappa within 0..1; 0 is the pseudo-inverse, None is what Ledoit and Wolf choose.
    Returns:
        mean [L, D], directions [L, R, D], along [L, R] and across [L]: how much a unit of squared
        distance counts along each direction, and across all of them.
    """
    parts = [_layer(points[:, at], shrinkage, rank) for at in range(points.shape[1])]
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def _layer(points: Tensor, shrinkage: float | None, rank: int) -> dict[str, Tensor]:
    count, width = points.shape
    mean = points.mean(0)
    values, directions = spectrum(points - mean)
    kappa = ledoit_wolf(points - mean) if shrinkage is None else shrinkage
    kept = min(rank, max(1, count - 1), width)
    # One point has no spread; standardised features have 1.
    even = float(values.sum()) / width if count > 1 else 1.0
    rest = (1 - kappa) * float(values[kept:].sum()) / max(1, width - kept)
    variance = (1 - kappa) * values[:kept] + kappa * even
    across = rest + kappa * even
    real = values[:kept] > TINY * values[:1].clamp_min(TINY)
    weights = torch.where(real | (kappa > 0), variance.clamp_min(TINY).reciprocal(), 0.0)
    return {
        "mean": mean,
        "directions": directions[:kept].contiguous(),
        "along": weights,
        "across": torch.tensor(1 / across if kappa > 0 and across > TINY else 0.0),
    }


def spectrum(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Variances [min(N, D)] in descending order, and their directions, of points [N, D]."""
    points = centred.double()
    few = len(points) < points.shape[1]
    values, vectors = torch.linalg.eigh(points @ points.T if few else points.T @ points)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    directions = normalize(points.T @ vectors, dim=0) if few else vectors
    return (values / len(points)).float(), directions.T.float()


def ledoit_wolf(centred: Tensor) -> float:
    """The shrinkage that comes nearest to the true covariance, for centred points [N, D]; 1 of one
    point alone."""
    count, width = centred.shape
    gram = (centred @ centred.T).double()
    lengths = gram.diagonal()
    whole = float(gram.square().sum()) / count**2
    even = float(lengths.sum()) / (count * width)
    off = whole - width * even**2
    noise = (float(lengths.square().sum()) / count - whole) / count
    return min(1.0, max(0.0, noise / off)) if off > TINY else 1.0


def distance(gaussian: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """Squared Mahalanobis distance [n, L] of features [n, L, D]."""
    centred = features - gaussian["mean"]
    along = torch.einsum("nld,lrd->nlr", centred, gaussian["directions"]).square()
    across = (centred.square().sum(-1) - along.sum(-1)).clamp_min(0)
    return (along * gaussian["along"]).sum(-1) + across * gaussian["across"]
