"""Indexes for the keys with the largest inner product: exact, by clusters, and taught by queries.

RetrievalAttention (arXiv 2409.10516, section 2.4) saw that queries are no sample of the keys'
distribution, so that lists by clusters of keys have to be searched far and wide. Past queries of a
head are like those to come: `taught` lists, for each cluster of past queries, the keys that these
ranked highest. A graph over the same lists, as in the paper, would find the same keys sooner.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy as copy_of
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from ....kernels.base import Summaries
from ....kernels.ops import MOST_SELECTED, score_blocks
from .pool import Pool

UNLISTED = 1024
"""Keys that are searched one by one before lists are made (again)."""

GROWTH = 0.25
"""Lists are made again when there are so many more keys."""

PER_LIST = 64
"""Keys, or queries, to a cluster."""

RANKED = 100
"""Keys that each past query puts on the list of its cluster."""

ITERATIONS = 8


class KeyIndex(Protocol):
    """Keys [n, D] of one row and KV head, found by inner product."""

    learns: ClassVar[bool]
    """Whether `learn` needs queries."""

    scanned: int
    """Keys and centroids that were compared with a query so far."""

    def add(self, keys: Tensor) -> None:
        """Hold [m, D] more."""

    def learn(self, queries: Tensor) -> None:
        """Put recent keys into lists, if it is due; queries [m, D] were asked lately."""

    def search(self, q: Tensor, k: int) -> Tensor:
        """int64 [min(k, n)], the keys that score highest with any of q [G, D], the query heads that
        share these keys; best first."""

    def keys(self) -> Tensor:
        """[n, D]."""

    def fork(self) -> KeyIndex:
        """One that adds keys of its own from here on."""

    def state(self) -> dict[str, Tensor]:
        """All that is needed to be made anew, by name."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Become what `state` was taken from."""

    @property
    def nbytes(self) -> int:
        """Of all that is held."""

    def __len__(self) -> int:
        """n."""


class FlatIndex:
    """Exact: every key is compared."""

    learns: ClassVar[bool] = False

    def __init__(self) -> None:
        self._keys = Pool()
        self.scanned = 0

    def add(self, keys: Tensor) -> None:
        """See `KeyIndex`."""
        self._keys.append(keys)

    def learn(self, queries: Tensor) -> None:
        """Nothing to learn."""

    def search(self, q: Tensor, k: int) -> Tensor:
        """See `KeyIndex`."""
        self.scanned += len(self)
        return _best(q, self._keys.view(), k)

    def keys(self) -> Tensor:
        """See `KeyIndex`."""
        return self._keys.view()

    def fork(self) -> FlatIndex:
        """See `KeyIndex`."""
        fork = copy_of(self)
        fork._keys = self._keys.copy()
        return fork

    def state(self) -> dict[str, Tensor]:
        """See `KeyIndex`."""
        return {"keys": self.keys()} if len(self) else {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `KeyIndex`."""
        self._keys = Pool()
        if "keys" in state:
            self._keys.append(state["keys"])

    @property
    def nbytes(self) -> int:
        """See `KeyIndex`."""
        return self._keys.nbytes

    def __len__(self) -> int:
        """See `KeyIndex`."""
        return len(self._keys)


class Lists(NamedTuple):
    """Inverted lists of the first `listed` keys.

    Args:
        centroids: [C, D] of the keys' dtype; the lists of those that score highest are searched.
        members: int64 [X], all lists one after the other.
        ends: int64 [C], where each ends.
        listed: int64 [1].
    """

    centroids: Tensor
    members: Tensor
    ends: Tensor
    listed: Tensor


class ListedIndex(FlatIndex):
    """Only some lists are searched, and all keys that are in none yet.

    Args:
        scan: share of the listed keys that is compared.
    """

    def __init__(self, scan: float) -> None:
        super().__init__()
        self.scan = scan
        self._lists: Lists | None = None

    def build(self, queries: Tensor) -> Lists:
        """Lists of all keys there are."""
        raise NotImplementedError

    def learn(self, queries: Tensor) -> None:
        """See `KeyIndex`."""
        listed = 0 if self._lists is None else int(self._lists.listed)
        due = len(self) - listed >= max(UNLISTED, GROWTH * listed)
        if due and (len(queries) or not self.learns):
            self._lists = self.build(queries)

    def search(self, q: Tensor, k: int) -> Tensor:
        """See `KeyIndex`."""
        if self._lists is None:
            return super().search(q, k)
        some = self._candidates(q, k, self._lists)
        if len(some) < min(k, len(self)):  # lists that share their keys
            return super().search(q, k)
        self.scanned += len(some) + len(self._lists.centroids)
        return some[_best(q, self.keys()[some], k)]

    def _candidates(self, q: Tensor, k: int, lists: Lists) -> Tensor:
        listed = int(lists.listed)
        wanted = max(self.scan * listed, k)
        starts = lists.ends - torch.diff(lists.ends, prepend=lists.ends.new_zeros(1))
        order = _best(q, lists.centroids, len(lists.centroids))
        reached = (lists.ends - starts)[order].cumsum(0)
        last = int(torch.searchsorted(reached, torch.tensor(wanted, dtype=reached.dtype))) + 1
        spans = zip(starts[order[:last]].tolist(), lists.ends[order[:last]].tolist(), strict=True)
        found = _distinct(torch.cat([lists.members[start:end] for start, end in spans]))
        return torch.cat([found, torch.arange(listed, len(self))])

    def state(self) -> dict[str, Tensor]:
        """See `KeyIndex`."""
        return super().state() | (self._lists._asdict() if self._lists is not None else {})

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `KeyIndex`."""
        super().restore(state)
        made = "listed" in state
        self._lists = Lists(*(state[name] for name in Lists._fields)) if made else None

    @property
    def nbytes(self) -> int:
        """See `KeyIndex`."""
        return super().nbytes + sum(x.nbytes for x in self._lists or ())


class IvfIndex(ListedIndex):
    """Lists by clusters of keys, taken less their mean (as RetroInfer, arXiv 2505.02922)."""

    def build(self, queries: Tensor) -> Lists:
        """Every key in the list of its cluster."""
        keys = self.keys().float()
        middle = keys.mean(dim=0)
        means, nearest = _clusters(keys - middle)
        order = nearest.argsort(stable=True)
        ends = torch.bincount(nearest, minlength=len(means)).cumsum(0)
        centroids = (means + middle).to(self.keys().dtype)
        return Lists(centroids, order, ends, torch.tensor([len(keys)]))


class TaughtIndex(ListedIndex):
    """Lists by clusters of past queries: what these ranked highest, exactly."""

    learns: ClassVar[bool] = True

    def build(self, queries: Tensor) -> Lists:
        """A key may be in several lists, or in none."""
        means, nearest = _clusters(queries.float())
        ranked = _ranked(queries, self.keys(), min(RANKED, len(self)))
        lists = [_distinct(ranked[nearest == cluster]) for cluster in range(len(means))]
        ends = torch.tensor([len(each) for each in lists]).cumsum(0)
        return Lists(means.to(self.keys().dtype), torch.cat(lists), ends, torch.tensor([len(self)]))


def _best(q: Tensor, keys: Tensor, k: int) -> Tensor:
    """int64 [min(k, n)], the keys that score highest with any of q [G, D]."""
    k = min(k, len(keys), MOST_SELECTED)
    if not k:
        return torch.empty(0, dtype=torch.int64)
    each = Summaries(keys[None, :, None, None].contiguous())
    return score_blocks(q[None], each, k, share="sequence", reduce="max").ids[0, 0].long()


def _ranked(queries: Tensor, keys: Tensor, k: int) -> Tensor:
    """int64 [m, k], the best keys of each query; some queries at a time."""
    each = Summaries(keys[None, :, None, None].contiguous())
    parts = [
        score_blocks(some[None].contiguous(), each, k, share="query_head").ids[0]
        for some in torch.split(queries, 128)
    ]
    return torch.cat(parts).long()


def _distinct(ids: Tensor) -> Tensor:
    return torch.unique(ids)  # type: ignore[no-any-return]


def _clusters(x: Tensor) -> tuple[Tensor, Tensor]:
    """Spherical k-means (Dhillon & Modha 2001) of x [n, D] from evenly spaced rows: means [C, D],
    and the cluster of each row, int64 [n]."""
    count = min(max(1, len(x) // PER_LIST), MOST_SELECTED)
    means = x[torch.arange(count) * len(x) // count]
    for _ in range(ITERATIONS):
        nearest = _nearest(x, means)
        sizes = torch.bincount(nearest, minlength=count)[:, None]
        total = torch.zeros_like(means).index_add_(0, nearest, x)
        means = torch.where(sizes > 0, total / sizes.clamp(min=1), means)
    return means, _nearest(x, means)


def _nearest(x: Tensor, means: Tensor) -> Tensor:
    """Of each row the mean at the smallest angle, int64 [n]."""
    unit = torch.nn.functional.normalize(means, dim=1)
    return torch.cat([(some @ unit.T).argmax(dim=1) for some in torch.split(x, 4096)])
