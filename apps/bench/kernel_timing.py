"""How long a call takes on a device, and what the device could do at best.

A call is timed over inputs that differ from one to the next, together larger than its caches. On
CUDA all of them are replayed as one graph, and launched one by one as well; on a CPU each is a
measurement, with one thread or with all. Knows nothing of what is called.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from ...errors import PalimpsestError
from ...kernels.timing import Call, captured, enough, microseconds
from .metrics import Spread

COPIED = 1 << 30
"""Bytes that the copy ceiling reads on a GPU; a quarter of it on a CPU."""

CPU_CACHE = 32 << 20
"""Last-level cache of a CPU, which torch cannot ask for."""


class WrongResult(PalimpsestError):
    """What was to be timed does not compute what it should; no time of it means anything."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of one call: `us` as it is best run, and on CUDA launched from Python one by
    one. `how` is "graph", "eager" or, on a CPU, how many threads."""

    us: Spread
    how: str
    eager: Spread | None = None


@dataclass(frozen=True)
class Clock:
    """Times calls on one device.

    Args:
        seconds: spent on each measurement, beyond its least number of samples.
        graph: on CUDA, replay as a graph.
    """

    device: torch.device
    seconds: float = 0.3
    graph: bool = True

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    @property
    def cache_bytes(self) -> int:
        """Of the largest cache."""
        if not self.cuda:
            return CPU_CACHE
        return int(torch.cuda.get_device_properties(self.device).L2_cache_size)

    def rotations(self, moved: int, most: int = 64) -> int:
        """How many inputs of so many bytes are more than four times what the cache holds."""
        return max(2, min(most, 1 + 4 * self.cache_bytes // max(1, moved)))

    def time(self, calls: Sequence[Call]) -> Timing:
        """The time of one call; each of `calls` has inputs of its own."""
        for call in calls[:2]:
            call()
        if not self.cuda:
            return self._on_cpu(calls)
        eager = self._together(lambda: [call() for call in calls], len(calls))
        if not self.graph:
            return Timing(eager, "eager", eager)
        try:
            replay = captured(calls)
        except RuntimeError:  # it waits for the device, or allocates in ways a graph cannot
            torch.cuda.synchronize(self.device)
            return Timing(eager, "eager", eager)
        return Timing(self._together(replay, len(calls)), "graph", eager)

    def _on_cpu(self, calls: Sequence[Call]) -> Timing:
        """With all threads and with one, whichever is faster: on a machine that others use too,
        threads that wait for each other take a hundred times as long."""
        usual = torch.get_num_threads()
        found = []
        for threads in dict.fromkeys((usual, 1)):
            torch.set_num_threads(threads)
            try:
                found.append(Timing(self._each(calls), f"{threads} threads"))
            finally:
                torch.set_num_threads(usual)
        return min(found, key=lambda timing: timing.us.median)

    def _each(self, calls: Sequence[Call]) -> Spread:
        samples: list[float] = []
        end = time.perf_counter() + self.seconds
        while not enough(len(samples), end):
            call = calls[len(samples) % len(calls)]
            started = time.perf_counter()
            call()
            samples.append((time.perf_counter() - started) * 1e6)
        return Spread.of(samples)

    def _together(self, act: Call, count: int) -> Spread:
        return Spread.of(microseconds(act, count, self.seconds))

    @cached_property
    def copy_gb_s(self) -> Spread:
        """Gigabytes a second, read and written, of one large copy."""
        size = COPIED if self.cuda else COPIED // 4
        source, target = (torch.ones(size, dtype=torch.int8, device=self.device) for _ in range(2))
        return _rate(self.time([lambda: target.copy_(source)] * 2).us, 2 * size / 1e3)

    @cached_property
    def matmul_tflop_s(self) -> Spread:
        """10^12 operations a second of one large product, bfloat16 on a GPU, float32 on a CPU."""
        size, dtype = (8192, torch.bfloat16) if self.cuda else (1024, torch.float32)
        a, b = (torch.randn(size, size, device=self.device).to(dtype) for _ in range(2))
        return _rate(self.time([lambda: a @ b] * 2).us, 2 * size**3 / 1e6)


def _rate(us: Spread, amount: float) -> Spread:
    return Spread(amount / us.median, amount / us.high, amount / us.low, us.n)


def clock_mhz(device: torch.device) -> str | None:
    """Clocks of the multiprocessors and of the memory, "1980/3201"; None if nobody can say."""
    if device.type != "cuda":
        return None
    command = ["nvidia-smi", f"--id={device.index or 0}"]
    command += ["--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip().replace(", ", "/") or None
