"""How long calls take on a GPU, launched one by one or as one CUDA graph, by its own events.

Knows nothing of what is called.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]

MOST, LEAST = 200, 5
"""Samples of a measurement."""


def enough(taken: int, end: float) -> bool:
    """Whether so many samples are, at this time."""
    return taken >= LEAST and (taken >= MOST or time.perf_counter() >= end)


def microseconds(act: Call, count: int, seconds: float) -> list[float]:
    """Of one of the `count` calls that `act` makes, over as many samples as the time allows."""
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while not enough(len(samples), end):
        before, after = _event(), _event()
        before.record()
        act()
        after.record()
        after.synchronize()
        samples.append(before.elapsed_time(after) * 1e3 / count)
    return samples


def captured(calls: Sequence[Call]) -> Call:
    """All calls as one CUDA graph, to be replayed.

    Raises:
        RuntimeError: one waits for the device, or does else what a graph cannot hold.
    """
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
