"""Retrieval of single keys: nothing is thrown away, and each KV head reads its best keys.

RetrievalAttention, arXiv 2409.10516, in LM-Infinite's frame: the window at true distance, and of
all that is older the k keys with the largest inner product, at the ceiling. The paper keeps
positions and so does not reach beyond what the model was trained for; this does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from ....errors import ConfigError
from ....kernels.base import one_of
from ..base import FarShape, Reach, Scores, Sharing, whole_strides
from ..far.index import FlatIndex, IvfIndex, KeyIndex, TaughtIndex
from ..far.keys import KeyMemory
from ..tokens import Tokens
from .infllm import check_least, sinks_first

Index = Literal["flat", "ivf", "taught"]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """The first tokens, the window at true distance, and k keys of what lies between.

    Args:
        window: tokens at true distance; all others stand at the distance `window - 1`.
        sinks: first real tokens of each row, always read.
        k: keys that each KV head reads.
        index: how they are found: `flat`, exactly; `ivf`, by clusters of keys; `taught`, by
            clusters of past queries.
        scan: share of the keys that the last two compare.
        stride: tokens that share one lookup when a text is read, and between evictions.
        lookup: `chunk`, the tokens of a pass share one by their mean query; `step`, each its own.
    """

    name: ClassVar[str] = "retrieval"
    scores: ClassVar[Scores | None] = None
    window: int = 512
    sinks: int = 128
    k: int = 100
    index: Index = "flat"
    scan: float = 0.1
    stride: int = 256
    lookup: Sharing = "chunk"

    def __post_init__(self) -> None:
        for name, least in (("window", 2), ("sinks", 1), ("k", 1), ("stride", 1)):
            check_least(self.name, name, getattr(self, name), least)
        one_of("lookup", self.lookup, get_args(Sharing))
        one_of("index", self.index, get_args(Index))
        if not 0 < self.scan <= 1:
            raise ConfigError(f"{self.name}: scan={self.scan} must be within (0, 1]")

    @property
    def budget(self) -> int:
        """What is near at most."""
        return whole_strides(self.sinks + self.window, self.stride)

    @property
    def reach(self) -> Reach:
        """The window; whatever is near beyond it at the ceiling, as far keys are."""
        return Reach(self.window, self.window - 1, lookup=self.lookup)

    def priority(self, tokens: Tokens, turn: int) -> Tensor:
        """By position, the sinks before all."""
        return sinks_first(tokens, self.sinks)

    def far(self, shape: FarShape) -> KeyMemory:
        """One layer's keys."""
        return KeyMemory(shape, self.k, self._index)

    def _index(self) -> KeyIndex:
        made: dict[Index, Callable[[], KeyIndex]] = {
            "flat": FlatIndex,
            "ivf": lambda: IvfIndex(self.scan),
            "taught": lambda: TaughtIndex(self.scan),
        }
        return made[self.index]()
