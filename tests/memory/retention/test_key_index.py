"""Indexes of keys: exact where they can be, and better than chance where they search in part."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from palimpsest.memory.retention.far.index import FlatIndex, IvfIndex, KeyIndex, TaughtIndex
from torch import Tensor

MAKE: dict[str, Callable[[], KeyIndex]] = {
    "flat": FlatIndex,
    "ivf": lambda: IvfIndex(0.1),
    "taught": lambda: TaughtIndex(0.1),
}
NAMES = sorted(MAKE)
N = 3000


def world(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys [N, 32] around 30 places, and queries [600, 32] that like some of these, from a
    distribution of their own."""
    some = torch.Generator().manual_seed(seed)
    places = torch.randn(30, 32, generator=some)
    keys = places[torch.randint(30, (N,), generator=some)]
    keys = keys + 0.7 * torch.randn(N, 32, generator=some)
    liked = torch.randn(30, 32, generator=some) @ torch.randn(32, 32, generator=some) / 6
    queries = (liked + places)[torch.randint(30, (600,), generator=some)]
    return keys, queries + 0.3 * torch.randn(600, 32, generator=some)


def filled(name: str, seed: int = 0) -> tuple[KeyIndex, Tensor, Tensor]:
    """An index of all keys, taught by all queries but the last 40; the keys; those 40."""
    keys, queries = world(seed)
    index = MAKE[name]()
    index.add(keys)
    index.learn(queries[:-40])
    return index, keys, queries[-40:]


def exactly(q: Tensor, keys: Tensor, k: int) -> set[int]:
    return set((q @ keys.T).amax(dim=0).topk(k).indices.tolist())


def test_flat_finds_the_best_keys_of_any_of_the_heads_that_share_them() -> None:
    index, keys, queries = filled("flat")
    for q in torch.split(queries, 3):
        found = index.search(q, 20).tolist()
        assert set(found) == exactly(q, keys, 20)
        scores = (q @ keys[found].T).amax(dim=0)
        assert (scores.diff() <= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_all_keys_are_found_if_there_are_no_more_than_are_wanted(name: str) -> None:
    index, _, queries = filled(name)
    assert sorted(index.search(queries[:3], 4000).tolist()) == list(range(N))
    assert MAKE[name]().search(queries[:3], 10).tolist() == []


@pytest.mark.parametrize("name", ["ivf", "taught"])
def test_a_part_of_the_keys_holds_most_of_the_best(name: str) -> None:
    index, keys, queries = filled(name)
    before = index.scanned
    recall = [
        len(set(index.search(q[None], 20).tolist()) & exactly(q[None], keys, 20)) / 20
        for q in queries
    ]
    compared = (index.scanned - before) / (len(queries) * N)
    assert compared < 0.25
    assert sum(recall) / len(recall) > 0.6 > 2 * compared


@pytest.mark.parametrize("name", NAMES)
def test_no_key_is_found_twice(name: str) -> None:
    index, _, queries = filled(name)
    for q in torch.split(queries, 4):
        found = index.search(q, 50).tolist()
        assert len(found) == len(set(found)) == 50


@pytest.mark.parametrize("name", NAMES)
def test_keys_that_are_in_no_list_yet_are_found_at_once(name: str) -> None:
    index, keys, queries = filled(name)
    newest = 10 * queries[:1] / queries[:1].norm()
    index.add(newest)
    index.learn(queries)
    assert index.search(queries[:1], 5)[0] == N
    assert len(index) == N + 1 and torch.equal(index.keys()[:N], keys)


@pytest.mark.parametrize("name", NAMES)
def test_a_fork_and_a_restored_index_find_the_same_and_go_on_alone(name: str) -> None:
    index, _, queries = filled(name)
    fork, anew = index.fork(), MAKE[name]()
    anew.restore({key: tensor.clone() for key, tensor in index.state().items()})
    found = index.search(queries[:2], 30)
    assert torch.equal(fork.search(queries[:2], 30), found)
    assert torch.equal(anew.search(queries[:2], 30), found)
    assert anew.nbytes == index.nbytes
    fork.add(queries[:2] * 100)
    assert fork.search(queries[:2], 2).min() >= N
    assert torch.equal(index.search(queries[:2], 30), found) and len(index) == N


def test_an_index_that_learns_waits_until_something_was_asked() -> None:
    index, (keys, queries) = TaughtIndex(0.1), world()
    index.add(keys)
    index.learn(queries[:0])
    assert set(index.search(queries[:1], 10).tolist()) == exactly(queries[:1], keys, 10)
    assert index.scanned == N
