"""A text streamed through a cache: what each piece of it cost, and how surprising it was.

Knows nothing of which policies there are, or of what is to hold.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch

from ...memory.retention import RetentionCache
from ...memory.retention.base import RetentionPolicy
from ...memory.retention.reading import score_chunks
from .metrics import Spread

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache, PreTrainedModel

ROUND = 8
"""Tokens decoded by one cache before the other has its turn."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a text that was read in one pass.

    Args:
        start, end: its tokens, counted from the beginning of the text.
        nll: float32, -ln P in nats of each token but the text's first.
        ms: milliseconds a token.
        resident: MB that the process has in memory now.
        cache: MB that the cache holds, in whatever form and place.
        stored: tokens that can still be read.
    """

    start: int
    end: int
    nll: Tensor
    ms: float
    resident: float
    cache: float
    stored: int


def streamed(model: PreTrainedModel, policy: RetentionPolicy, ids: Tensor) -> Iterator[Chunk]:
    """Read ids [1, T] under a policy."""
    cache = RetentionCache(model, policy)
    pieces = score_chunks(model, cache, ids)
    while cache.seen < ids.shape[1]:
        start, began = cache.seen, time.perf_counter()
        nll = next(pieces)[0]
        seconds = time.perf_counter() - began
        yield Chunk(
            start=start,
            end=cache.seen,
            nll=nll,
            ms=seconds * 1000 / (cache.seen - start),
            resident=resident_mb(),
            cache=cache.nbytes / 1e6,
            stored=cache.stored,
        )


def resident_mb() -> float:
    """MB that this process has in memory now; where the system does not tell, the most so far."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * 4096 / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def nll(chunks: Sequence[Chunk], start: int, end: int) -> float:
    """Mean nats of the tokens start..end-1, without the text's first."""
    every = torch.cat([chunk.nll for chunk in chunks])  # of token 1 and on
    return float(every[max(start - 1, 0) : end - 1].mean())


def binned(chunks: Sequence[Chunk], size: int) -> Iterator[tuple[int, float]]:
    """Mean nats of each `size` tokens, with where they end; a shorter rest is left out."""
    for end in range(size, chunks[-1].end + 1, size):
        yield end, nll(chunks, end - size, end)


def within(chunks: Sequence[Chunk], start: int, end: int) -> list[Chunk]:
    """Those that lie between."""
    return [chunk for chunk in chunks if chunk.start >= start and chunk.end <= end]


def ms_per_token(chunks: Sequence[Chunk]) -> Spread:
    """Over chunks."""
    return Spread.of([chunk.ms for chunk in chunks])


@dataclass(frozen=True, slots=True)
class Decoding:
    """Milliseconds a token, one at a time: ours, and transformers' cache of equal size beside it.

    Args:
        size: tokens that transformers' cache holds, the mean of what ours holds.
        ratio: of the medians, theirs by ours; above 1 ours is quicker.
        whole: the same of the means, which count evictions in.
    """

    size: int
    ours: Spread
    theirs: Spread
    ratio: float
    whole: float


def decoding(
    model: PreTrainedModel, policy: RetentionPolicy, ids: Tensor, size: int, steps: int
) -> Decoding:
    """Decode `steps` tokens with each of two caches, in turns of a few tokens.

    Args:
        ids: [1, T], read into ours before; the last `size` of them into the other.
    """
    from transformers import DynamicCache

    ours, theirs = RetentionCache(model, policy), DynamicCache()
    for _ in score_chunks(model, ours, ids):
        pass
    with torch.no_grad():
        model(ids[:, -size:], past_key_values=theirs, use_cache=True, logits_to_keep=1)
    times: tuple[list[float], list[float]] = ([], [])
    for at in range(0, steps, ROUND):
        some = ids[:, at % size : at % size + ROUND]
        with ours.attached(model):
            times[0].extend(_decode(model, ours, some))
        times[1].extend(_decode(model, theirs, some))
        theirs.crop(-some.shape[1])
        if policy.budget is None:
            ours.crop(-some.shape[1])
    mine, other = times
    return Decoding(
        size=size,
        ours=Spread.of(mine),
        theirs=Spread.of(other),
        ratio=median(other) / median(mine),
        whole=sum(other) / sum(mine),
    )


def _decode(model: PreTrainedModel, cache: Cache, ids: Tensor) -> Iterator[float]:
    """Milliseconds for each token, read one by one; scoring it is part of it."""
    for at in range(ids.shape[1]):
        column = ids[:, at : at + 1]
        began = time.perf_counter()
        with torch.no_grad():
            output = model(column, past_key_values=cache, use_cache=True, logits_to_keep=1)
            if isinstance(cache, RetentionCache):
                cache.observe(column, output.logits)
        yield (time.perf_counter() - began) * 1000


def largest_difference(
    model: PreTrainedModel, policy: RetentionPolicy, ids: Tensor, chunk: int
) -> float:
    """Of any logit, to transformers' own cache, which reads ids [1, T] at once."""
    cache = RetentionCache(model, policy)
    with torch.no_grad():
        stock = model(ids, use_cache=True).logits
        with cache.attached(model):
            read = []
            for at in range(0, ids.shape[1], chunk):
                some = ids[:, at : at + chunk]
                read.append(model(some, past_key_values=cache, use_cache=True).logits)
                cache.observe(some, read[-1])
    return float((torch.cat(read, dim=1) - stock).abs().max())
