"""InfLLM: nothing is thrown away; what left the window is looked up block by block.

InfLLM, arXiv 2402.04617: LM-Infinite's window and ceiling, and between the first tokens and the
window those blocks of the past that the queries of this pass want most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from ....errors import ConfigError
from ....kernels.base import BLOCKS, one_of
from ..base import FarShape, Reach, Scores, Sharing, whole_strides
from ..far.blocks import BlockMemory, Heads, Lookup
from ..tokens import Tokens


@dataclass(frozen=True, slots=True)
class InfLLM:
    """The first tokens, the window at true distance, and k blocks of what lies between.

    Args:
        window: tokens at true distance (n_local); all others stand at the distance `window - 1`.
        sinks: first real tokens of each row (n_init), always read.
        block: tokens of a block.
        representatives: keys by which a block is found (r_k).
        k: blocks that are read at once.
        stride: tokens that share one lookup when a text is read (an execution block), and between
            one eviction and the next; a multiple of `block`.
        lookup: `chunk`, the tokens of a pass share one by their mean query, as in the paper;
            `step`, each token has its own, which is slow where a text is read.
        heads: whose wants choose the representatives: those of all query heads of a KV head
            together, or, as in the paper, of each query head.
        cached: blocks of each layer that stay on the device; None: two passes' worth. On a CPU
            blocks are read where they lie, unless a number is given.
    """

    name: ClassVar[str] = "infllm"
    scores: ClassVar[Scores | None] = None
    window: int = 2048
    sinks: int = 128
    block: int = 128
    representatives: int = 4
    k: int = 16
    stride: int = 512
    lookup: Sharing = "chunk"
    heads: Heads = "kv_head"
    cached: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("window", 2), ("sinks", 1), ("representatives", 1), ("k", 1)):
            check_least(self.name, name, getattr(self, name), least)
        one_of("block", self.block, BLOCKS)
        one_of("lookup", self.lookup, get_args(Sharing))
        one_of("heads", self.heads, get_args(Heads))
        if self.stride < 1 or self.stride % self.block:
            raise ConfigError(
                f"{self.name}: stride={self.stride} must be a multiple of block={self.block}, so"
                " that whole blocks leave the window"
            )
        if self.representatives > self.block:
            raise ConfigError(
                f"{self.name}: representatives={self.representatives} must be at most"
                f" block={self.block}"
            )
        if self.cached is not None and self.cached < self.k:
            raise ConfigError(
                f"{self.name}: cached={self.cached} must be at least k={self.k}, the blocks that"
                " are read at once; give a larger cache or a smaller k"
            )

    @property
    def budget(self) -> int:
        """What is near at most."""
        return whole_strides(self.sinks + self.window, self.stride)

    @property
    def reach(self) -> Reach:
        """The window; whatever is near beyond it at the ceiling, as far blocks are."""
        return Reach(self.window, self.window - 1, lookup=self.lookup)

    def priority(self, tokens: Tokens, turn: int) -> Tensor:
        """By position, the sinks before all."""
        return sinks_first(tokens, self.sinks)

    def far(self, shape: FarShape) -> BlockMemory:
        """One layer's blocks."""
        lookup = Lookup(self.block, self.representatives, self.k, self.heads, self.cached)
        return BlockMemory(shape, lookup)


def check_least(policy: str, name: str, value: int, least: int) -> None:
    """Raise ConfigError unless an option is at least so large."""
    if value < least:
        raise ConfigError(f"{policy}: {name}={value} must be at least {least}")


def sinks_first(tokens: Tokens, sinks: int) -> Tensor:
    """float [B, S], by position, the first `sinks` before all."""
    return tokens.position.double().masked_fill(tokens.position < sinks, torch.inf)
