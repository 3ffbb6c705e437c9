"""How large a program's tile is and how many run: data, chosen by pure functions.

`configs.json` is a list of rows, `{"op", "gpu", "where", "tile", "warps", "stages", "splits"}`.
The first row counts whose op is the one asked for, whose `gpu` is part of the device's name ("" is
part of all) and whose `where` holds: `{"D": [1, 128]}` asks for a D from 1 to 128. What a row
leaves out is as in `Config`. Nothing is tuned while it runs: a measurement becomes a row. Knows
nothing of Triton.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

RESIDENT = 2
"""Programs that one multiprocessor should hold, so that one computes while another one waits."""

PROCESSORS = 132
"""Multiprocessors of an H100 or H200, where there is no device to ask."""


@dataclass(frozen=True, slots=True)
class Config:
    """One program's size.

    Args:
        tile: tokens, summaries or rows that it reads in one step.
        warps: of 32 threads each.
        stages: 1 more than the steps that are loaded ahead.
        splits: parts that the work of one group is cut into; None: by the shape.
    """

    tile: int = 64
    warps: int = 4
    stages: int = 3
    splits: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """Of a launch. That products and sums are fused is said, as what Triton takes for granted
        about it changes with its version."""
        return {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": True,
        }


def choose(op: str, gpu: str, shape: Mapping[str, int]) -> Config:
    """The configuration of an op on a device for a shape, by its letters (see `base`) and what else
    the op tells of itself: `bytes` of a stored element, `dot` bytes of one that is multiplied.
    The defaults, where no row speaks of it."""
    for row in _TRIED.get() or _rows():
        if row["op"] == op and row.get("gpu", "") in gpu and _holds(row.get("where", {}), shape):
            names = ("tile", "warps", "stages", "splits")
            return Config(**{name: row[name] for name in names if name in row})
    return Config()


_TRIED: ContextVar[Sequence[Mapping[str, Any]] | None] = ContextVar("tried", default=None)


@contextmanager
def trying(rows: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """For a while these rows are all there are, so that what they say can be measured."""
    token = _TRIED.set(rows)
    try:
        yield
    finally:
        _TRIED.reset(token)


def split_count(units: int, parts: int, processors: int) -> int:
    """Into how many splits `parts` equal parts are best cut, for each of `units` groups.

    The fewest that keep the device busy to within 85 % of the best (FlashAttention, arXiv
    2307.08691, and its `num_splits_heuristic`): a last wave of programs that fills few processors
    costs as much as a full one, and each split costs a partial result.
    """
    slots = RESIDENT * processors
    if units >= 0.8 * slots:
        return 1
    sizes = [-(-parts // splits) for splits in range(1, min(parts, slots) + 1)]
    # of splits whose largest part is equally large, only the fewest can be best
    useful = [n for n, size in enumerate(sizes, 1) if n == 1 or size != sizes[n - 2]]
    waves = {n: units * n / slots for n in useful}
    efficiency = {n: count / -(-count // 1) for n, count in waves.items()}
    best = max(efficiency.values())
    return next(n for n in useful if efficiency[n] >= 0.85 * best)


def device_of(tensor: torch.Tensor) -> tuple[str, int]:
    """Name and multiprocessors of a tensor's device; "" and those of an H100 if it is no GPU."""
    return _device(tensor.device.index) if tensor.is_cuda else ("", PROCESSORS)


@lru_cache
def _device(index: int) -> tuple[str, int]:
    properties = torch.cuda.get_device_properties(index)
    return properties.name, properties.multi_processor_count


@lru_cache
def _rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((Path(__file__).parent / "configs.json").read_text())
    return rows


def _holds(where: Mapping[str, list[int]], shape: Mapping[str, int]) -> bool:
    return all(
        letter in shape and low <= shape[letter] <= high for letter, (low, high) in where.items()
    )
