"""What far memory finds: whether a needle's block is among those that are read, layer by layer, and
how many of the best keys an approximate index finds.

Measured on the queries that a model really asks, which a listener in front of each layer's far
memory notes down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...kernels.base import Attended
from ...memory.retention.base import Far, Leaving
from ...memory.retention.far.blocks import BlockMemory
from ...memory.retention.far.index import FlatIndex, IvfIndex, KeyIndex, Lists, TaughtIndex
from ...memory.retention.far.keys import KeyMemory
from .harness import Row

if TYPE_CHECKING:
    from ...memory.retention.cache import RetentionCache

KEYS = 100
"""What an index has to find: recall@100."""

SCAN = 0.1

EVERY = 8
"""Of the queries of a text, one in so many is learned from."""

STEPS = 8
"""Queries of each layer and head that an index is tried with."""


class Listener:
    """A far memory that notes what it is asked; all else is its inner one's."""

    def __init__(self, inner: Far) -> None:
        self.inner = inner
        self.asked: list[Tensor] = []

    def add(self, leaving: Leaving) -> None:
        """See `Far`."""
        self.inner.add(leaving)

    def read(self, q: Tensor, scale: float | None) -> Attended | None:
        """See `Far`."""
        self.asked.append(q.clone())
        return self.inner.read(q, scale)

    def fork(self) -> Listener:
        """See `Far`; it notes elsewhere."""
        return Listener(self.inner.fork())

    def state(self) -> dict[str, Tensor]:
        """See `Far`."""
        return self.inner.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Far`."""
        self.inner.restore(state)

    @property
    def nbytes(self) -> int:
        """See `Far`."""
        return self.inner.nbytes

    def __len__(self) -> int:
        """See `Far`."""
        return len(self.inner)


def listening(cache: RetentionCache) -> list[Listener]:
    """A listener put in front of each layer's far memory."""
    listeners = []
    for layer in cache.layers:
        layer.far = Listener(layer.far)
        listeners.append(layer.far)
    return listeners


def found_blocks(listener: Listener, wanted: Sequence[int]) -> tuple[float, float]:
    """The share of `wanted` blocks that the first pass that was noted reads; the same by chance."""
    memory, q = listener.inner, listener.asked[0]
    assert isinstance(memory, BlockMemory)
    k = min(memory.lookup.k, memory.blocks)
    read = set(memory.find(q)[0].tolist())
    return len(read & set(wanted)) / len(wanted), k / memory.blocks


def index_rows(taught: Sequence[Listener], asked: Sequence[Listener]) -> list[Row]:
    """Recall@k against the exact search, share of keys compared, and share of the far keys'
    attention that the keys found have: mean over layers, and the worst of them.

    Args:
        taught: heard a text being read; an index may learn from that.
        asked: heard single tokens after it, on top of the same far memory.
    """
    tried: dict[str, Callable[[], KeyIndex]] = {
        "flat (exact)": FlatIndex,
        "ivf (clusters of keys)": lambda: IvfIndex(SCAN),
        "taught (clusters of past queries)": lambda: TaughtIndex(SCAN),
        "any keys": lambda: AnyKeys(SCAN),
    }
    rows: list[Row] = []
    for name, make in tried.items():
        layers = [_of_layer(make, *pair) for pair in zip(taught, asked, strict=True)]
        recall, compared, mass = (list(column) for column in zip(*layers, strict=True))
        rows.append(
            {
                "index": name,
                f"recall@{KEYS}": fmean(recall),
                "worst layer": min(recall),
                "keys compared": fmean(compared),
                "mass": fmean(mass),
                "mass, worst layer": min(mass),
            }
        )
    return rows


class AnyKeys(IvfIndex):
    """The control: as many keys compared, chosen by nothing."""

    def _candidates(self, q: Tensor, k: int, lists: Lists) -> Tensor:
        count = int(max(self.scan * len(self), k))
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(len(self)))[:count]


def _of_layer(
    make: Callable[[], KeyIndex], taught: Listener, asked: Listener
) -> tuple[float, float, float]:
    """Recall, share compared and mass in one layer, over its KV heads and decode steps."""
    memory = asked.inner
    assert isinstance(memory, KeyMemory)
    heads = len(memory.indexes)
    steps = [q for q in asked.asked if q.shape[2] == 1][:STEPS]
    dim = memory.shape.dim
    past = torch.cat([q[0, :, ::EVERY] for q in taught.asked], dim=1).reshape(heads, -1, dim)
    recalls, masses, compared = [], [], 0
    for head, exact in enumerate(memory.indexes):
        keys, index = exact.keys(), make()
        index.add(keys)
        index.learn(past[head])
        for q in steps:
            mine = q[0, :, 0].reshape(heads, -1, dim)[head]
            found, best = index.search(mine, KEYS), exact.search(mine, KEYS)
            recalls.append(len(set(found.tolist()) & set(best.tolist())) / len(best))
            weights = (mine.float() @ keys.float().T / keys.shape[1] ** 0.5).softmax(-1)
            masses.append(float(weights[:, found].sum(-1).mean()))
        compared += index.scanned
    return fmean(recalls), compared / (heads * len(steps) * len(memory)), fmean(masses)
