"""Single keys of the far past: each KV head reads the k that its queries score highest.

RetrievalAttention, arXiv 2409.10516, section 3, on keys before rotation: all of them stand at one
constant distance (as with InfLLM), so an index over them never has to be made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy as copy_of

import torch
from torch import Tensor

from ....kernels.base import Attended, seen
from ....kernels.ops import attend
from ..base import FarShape, Leaving
from .index import KeyIndex
from .pool import Pool

SAMPLED = 32
"""Queries of one pass and head that an index may learn from."""

LEARNED = 4096
"""Newest of such queries that are kept for each KV head."""


class KeyMemory:
    """One layer's keys and values in host memory, and an index for each row and KV head.

    Args:
        k: keys that a KV head reads.
        index: makes an empty one.
    """

    def __init__(self, shape: FarShape, k: int, index: Callable[[], KeyIndex]) -> None:
        self.shape, self.k, self._make = shape, k, index
        streams = range(shape.rows * shape.heads)
        self.indexes: list[KeyIndex] = [index() for _ in streams]
        self.queries: list[Tensor] = [torch.empty(0, shape.dim, dtype=shape.dtype) for _ in streams]
        self._values: list[Pool] = [Pool() for _ in streams]

    def _streams(self) -> Iterator[tuple[int, int, int]]:
        """Number, row and KV head of each."""
        for number in range(len(self.indexes)):
            yield number, *divmod(number, self.shape.heads)

    def add(self, leaving: Leaving) -> None:
        """See `Far`."""
        real, keys, values = leaving.real.cpu(), leaving.keys.cpu(), leaving.values.cpu()
        for number, row, head in self._streams():
            there = real[row]
            if bool(there.any()):
                self.indexes[number].add(keys[row, head, there])
                self._values[number].append(values[row, head, there])
                self.indexes[number].learn(self.queries[number])

    def find(self, q: Tensor) -> list[Tensor]:
        """Keys that q [B, Hq, T, D] reads, int64 [min(k, n)] for each row and KV head, in the order
        of the text."""
        mean = q.float().mean(dim=2).to(self.shape.dtype).cpu()
        mean = mean.view(len(q), self.shape.heads, -1, q.shape[3])
        return [
            index.search(mean[row, head], self.k).sort().values
            for index, (_, row, head) in zip(self.indexes, self._streams(), strict=True)
        ]

    def read(self, q: Tensor, scale: float | None) -> Attended | None:
        """See `Far`."""
        self._listen(q)
        if not len(self):
            return None
        b, h, d = q.shape[0], self.shape.heads, q.shape[3]
        found = self.find(q)
        most = max(len(ids) for ids in found)
        keys = torch.zeros(b, h, most, d, dtype=q.dtype)
        values = torch.zeros_like(keys)
        there = torch.zeros(b, 1, most, dtype=torch.bool)
        for number, row, head in self._streams():
            ids = found[number]
            if not len(ids):  # a row that was padding until now
                continue
            keys[row, head, : len(ids)] = self.indexes[number].keys()[ids]
            values[row, head, : len(ids)] = self._values[number].view()[ids]
            there[row, :, : len(ids)] = True
        mask = None
        if not bool(there.all()):
            mask = seen(there.expand(-1, q.shape[2], -1).to(q.device), q.dtype)
        return attend(q, keys.to(q.device), values.to(q.device), seen=mask, scale=scale)

    def _listen(self, q: Tensor) -> None:
        """Keep some of the queries, if the index learns from them."""
        if not self.indexes[0].learns:
            return
        t = q.shape[2]
        some = q[:, :, torch.arange(min(t, SAMPLED)) * t // min(t, SAMPLED)].cpu()
        grouped = some.reshape(len(q), self.shape.heads, -1, q.shape[3])
        for number, row, head in self._streams():
            kept = torch.cat([self.queries[number], grouped[row, head]])
            self.queries[number] = kept[-LEARNED:]

    def fork(self) -> KeyMemory:
        """See `Far`; what was added is shared."""
        fork = copy_of(self)
        fork.indexes = [index.fork() for index in self.indexes]
        fork.queries = self.queries.copy()
        fork._values = [pool.copy() for pool in self._values]
        return fork

    def state(self) -> dict[str, Tensor]:
        """See `Far`."""
        tensors: dict[str, Tensor] = {}
        for number, index in enumerate(self.indexes):
            tensors |= {f"{number}.{name}": each for name, each in index.state().items()}
            tensors[f"{number}.queries"] = self.queries[number]
            if len(index):
                tensors[f"{number}.values"] = self._values[number].view()
        return tensors

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Far`."""
        fresh = KeyMemory(self.shape, self.k, self._make)
        for number, index in enumerate(fresh.indexes):
            own = {
                name.partition(".")[2]: tensor.cpu()
                for name, tensor in state.items()
                if name.partition(".")[0] == str(number)
            }
            fresh.queries[number] = own.pop("queries")
            if "values" in own:
                fresh._values[number].append(own.pop("values"))
            index.restore(own)
        self.__dict__.update(fresh.__dict__)

    @property
    def nbytes(self) -> int:
        """See `Far`."""
        held = sum(index.nbytes for index in self.indexes)
        held += sum(pool.nbytes for pool in self._values)
        return held + sum(queries.nbytes for queries in self.queries)

    def __len__(self) -> int:
        """See `Far`."""
        return max(len(index) for index in self.indexes)
