"""The plain policies: everything, the newest, the newest behind some first tokens, any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..base import Budgeted, FarShape, Reach, Scores, check_budget
from ..tokens import Tokens


@dataclass(frozen=True, slots=True)
class Full:
    """Everything: transformers' own cache, by way of ours. The reference."""

    name: ClassVar[str] = "full"
    scores: ClassVar[Scores | None] = None
    reach: ClassVar[Reach | None] = None
    budget: ClassVar[int | None] = None
    stride: ClassVar[int] = 1

    def priority(self, tokens: Tokens, turn: int) -> Tensor:
        """All alike; nothing is ever evicted."""
        return torch.zeros(tokens.position.shape)

    def far(self, shape: FarShape) -> None:
        """Nowhere."""


@dataclass(frozen=True, slots=True)
class SinkWindow(Budgeted):
    """The newest tokens behind the first `sinks`: StreamingLLM (arXiv 2309.17453, section 3.2).

    Args:
        sinks: first real tokens of each row, kept for ever; 0 is a plain sliding window.
    """

    name: ClassVar[str] = "sinks"
    sinks: int = 4

    def __post_init__(self) -> None:
        check_budget(self, self.sinks, f"sinks={self.sinks}")

    def priority(self, tokens: Tokens, turn: int) -> Tensor:
        """By position, the sinks before all."""
        return tokens.position.double().masked_fill(tokens.position < self.sinks, torch.inf)


@dataclass(frozen=True, slots=True)
class Window(Budgeted):
    """The newest tokens and nothing else: what breaks when the first token leaves."""

    name: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        check_budget(self, 0, "no token")

    def priority(self, tokens: Tokens, turn: int) -> Tensor:
        """By position."""
        return tokens.position.double()


@dataclass(frozen=True, slots=True)
class Random(Budgeted):
    """Sinks, the newest tokens, and of the others any: the control of whatever ranks them.

    Args:
        sinks, recent: tokens at either end that are kept.
        seed: decides which others; a token's lot is drawn once, so what is kept is a uniform
            sample of all there was.
    """

    name: ClassVar[str] = "random"
    sinks: int = 4
    recent: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_budget(self, self.sinks + self.recent, f"sinks={self.sinks}, recent={self.recent}")

    def priority(self, tokens: Tokens, turn: int) -> Tensor:
        """By lot, the sinks and the newest before all."""
        lot = _lots(tokens.position, self.seed)
        return lot.masked_fill(ends(tokens, self.sinks, self.recent), torch.inf)


def ends(tokens: Tokens, sinks: int, recent: int) -> Tensor:
    """bool [B, S], the first `sinks` real tokens of each row and the last `recent` of them."""
    newest = tokens.position.amax(dim=1, keepdim=True)
    return (tokens.position < sinks) | (tokens.position > newest - recent)


def _lots(position: Tensor, seed: int) -> Tensor:
    """A number in [0, 1) for each position, always the same one (SplitMix64's last steps)."""
    x = (position + 1) * -7046029254386353131 + seed * 0x2545F4914F6CDD1D % 2**62
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -7723592293110705685
    return (x >> 11 & 0x1FFFFFFFFFFFFF).double() / 2**53
