"""LM-Infinite: a Lambda-shaped mask, and no distance that the model was not trained for.

LM-Infinite, arXiv 2308.16137, section 3: every query sees the `window` nearest tokens at their true
distance and the first `sinks` at the distance `window`; nothing between is seen. What is kept is
therefore the same as with StreamingLLM; how far it seems away is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ....errors import ConfigError
from ..base import FarShape, Reach, Scores, whole_strides
from ..tokens import Tokens


@dataclass(frozen=True, slots=True)
class LMInfinite:
    """The window at true distance, the first tokens at its end.

    Args:
        window: tokens at true distance, and the ceiling of all distances; at most what the model
            was trained for.
        sinks: first real tokens of each row.
        stride: tokens between one eviction and the next; they are stored, and not seen.
    """

    name: ClassVar[str] = "lm_infinite"
    scores: ClassVar[Scores | None] = None
    window: int = 2048
    sinks: int = 10
    stride: int = 256

    def __post_init__(self) -> None:
        for name, least in (("window", 1), ("sinks", 0), ("stride", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{self.name}: {name}={getattr(self, name)} must be at least {least}"
                )

    @property
    def budget(self) -> int:
        """What is stored at most."""
        return whole_strides(self.sinks + self.window, self.stride)

    @property
    def reach(self) -> Reach:
        """The window, and the sinks at its end."""
        return Reach(self.window, self.window, self.sinks)

    def priority(self, tokens: Tokens, turn: int) -> Tensor:
        """By position, the sinks before all."""
        return tokens.position.double().masked_fill(tokens.position < self.sinks, torch.inf)

    def far(self, shape: FarShape) -> None:
        """Nowhere."""
