"""SirLLM: what surprised the model stays, and fades turn by turn.

SirLLM, arXiv 2405.12528. A token's worth is its surprisal -ln P(token | what was cached before it),
which the paper calls token entropy (equation 1), multiplied by `decay` at every turn (section 3.3).
Decay is applied when tokens are ranked: ln score - turns * ln(1 / decay), so nothing is rewritten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ....errors import ConfigError
from ..base import Budgeted, Scores, check_budget
from ..tokens import Tokens
from .window import ends


@dataclass(frozen=True, slots=True)
class SirLLM(Budgeted):
    """Sinks, the newest tokens, and those of the highest surprisal.

    Args:
        sinks: first real tokens of each row, kept for ever.
        recent: newest tokens kept whatever their surprisal; 0 in all of the paper's runs, but the
            turn being read then has holes. None: a quarter of the budget.
        decay: what a turn leaves of a score, within (0, 1]; 1 forgets nothing.
        spread: a token is worth the most surprising within so many tokens of it, so that words
            stay whole; 0 as in the paper.
        code_compat: score as the public code does: each token by how surprising its predecessor
            would be if it came again, and the first of a turn by the turn's highest. For
            comparison; it recalls no better than chance.
    """

    name: ClassVar[str] = "sirllm"
    sinks: int = 4
    recent: int | None = None
    decay: float = 1.0
    spread: int = 0
    code_compat: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ConfigError(f"{self.name}: decay={self.decay} must be within (0, 1]")
        if self.spread < 0:
            raise ConfigError(f"{self.name}: spread={self.spread} must not be negative")
        ends = f"sinks={self.sinks}, recent={self.newest}"
        check_budget(self, self.sinks + self.newest, ends)

    @property
    def newest(self) -> int:
        """Newest tokens that are kept."""
        return self.budget // 4 if self.recent is None else self.recent

    @property
    def scores(self) -> Scores:
        """Surprisal, the token's own or, as the public code has it, its predecessor's."""
        return "previous" if self.code_compat else "surprisal"

    def priority(self, tokens: Tokens, turn: int) -> Tensor:
        """ln surprisal less what the turns since took of it; both ends before all."""
        score = tokens.score.double()
        if self.code_compat:
            score = _with_turn_starts(tokens, score)
        for _ in range(self.spread):
            score = _spread(score, tokens.position)
        faded = score.clamp(1e-9, 1e9).log() - (turn - tokens.turn) * math.log(1 / self.decay)
        return faded.masked_fill(ends(tokens, self.sinks, self.newest), torch.inf)


def _spread(score: Tensor, position: Tensor) -> Tensor:
    """The highest of a token and its neighbours in the text, where these are still there."""
    beside = position.diff(dim=1) == 1
    after = torch.where(beside, score[:, 1:], -torch.inf)
    before = torch.where(beside, score[:, :-1], -torch.inf)
    spread = score.clone()
    spread[:, :-1] = torch.maximum(spread[:, :-1], after)
    spread[:, 1:] = torch.maximum(spread[:, 1:], before)
    return spread


def _with_turn_starts(tokens: Tokens, score: Tensor) -> Tensor:
    """The first token of each turn scored as the highest of what is left of its turn."""
    turns = int(tokens.turn.max()) + 1
    highest = torch.zeros(tokens.rows, turns, dtype=score.dtype)
    highest.scatter_reduce_(1, tokens.turn, score.nan_to_num(nan=0.0), "amax")
    starts = torch.ones_like(tokens.pinned)
    starts[:, 1:] = tokens.turn[:, 1:] != tokens.turn[:, :-1]
    starts[:, 1:] &= tokens.position.diff(dim=1) == 1
    return torch.where(starts, highest.gather(1, tokens.turn), score)
