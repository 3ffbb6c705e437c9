"""H2O: what was attended to stays.

Heavy-hitter oracle, arXiv 2306.14048, section 4: a token's worth is the attention it was given so
far. The paper keeps a list for each head; here it is summed over heads and layers, as the cache has
one list for all of them. A baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..base import Budgeted, Scores, check_budget
from ..tokens import Tokens
from .window import ends


@dataclass(frozen=True, slots=True)
class H2O(Budgeted):
    """The newest tokens, and those that were given most attention.

    Args:
        recent: newest tokens that are kept; None: half the budget, as in the paper.
    """

    name: ClassVar[str] = "h2o"
    recent: int | None = None

    def __post_init__(self) -> None:
        check_budget(self, self.newest, f"recent={self.newest}")

    @property
    def scores(self) -> Scores:
        """Attention."""
        return "mass"

    @property
    def newest(self) -> int:
        """Newest tokens that are kept."""
        return self.budget // 2 if self.recent is None else self.recent

    def priority(self, tokens: Tokens, turn: int) -> Tensor:
        """Attention so far, the newest before all."""
        return tokens.score.double().masked_fill(ends(tokens, 0, self.newest), torch.inf)
