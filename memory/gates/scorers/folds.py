"""Scores of a set's own prompts, each by a scorer that has not seen it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .base import Scorer, State

if TYPE_CHECKING:
    from torch import Tensor

FOLDS = 5


def cross_fitted(scorer: Scorer, inside: Tensor, background: Tensor, folds: int = FOLDS) -> Tensor:
    """[N]: of each of [N, L, D], by a scorer fitted to the other folds; with fewer than two prompts
    to a fold, by one fitted to all others. Of a single prompt there is none: [0].

    Scorers fitted to different prompts have different scales. So each one's scores are moved to
    where the background has the mean and spread that it has for the scorer fitted to all.
    """
    count = len(inside)
    if count < 2:
        return torch.empty(0)
    parts = count if count < 2 * folds else folds
    centre, scale = _usual(scorer, scorer.fit(inside, background), background)
    scores = torch.empty(count)
    for part in range(parts):
        out = torch.arange(count) % parts == part
        state = scorer.fit(inside[~out], background)
        middle, spread = _usual(scorer, state, background)
        scores[out] = (scorer.score(state, inside[out]) - middle) / spread * scale + centre
    return scores


def _usual(scorer: Scorer, state: State, background: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of what the background gets."""
    scores = scorer.score(state, background)
    return scores.mean(), scores.std().clamp_min(1e-6)
