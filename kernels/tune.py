"""`python -m palimpsest.kernels.tune --out kernels/configs.json`: measures which sizes are fastest
on this GPU, and writes them as rows of data.

Per op and kind of shape every tile, number of warps and of stages is tried, then with the best of
them every number of splits. What computes something else than the torch path is never chosen. Rows
of other GPUs, and those for all, are kept behind.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from .configs import Config, trying
from .timing import captured, microseconds
from .tuned import Bucket, Workload, buckets

Row = dict[str, Any]
Measure = Callable[[Config], float | None]

TILES: Mapping[str, tuple[int, ...]] = {
    "decode": (16, 32, 64, 128),
    "score": (32, 64, 128, 256),
    "cosine": (32, 64, 128, 256),
    "compact": (16, 32, 64, 128),
    "merge": (64,),
}
WARPS = (2, 4, 8)
STAGES: Mapping[str, tuple[int, ...]] = {"compact": (1, 2), "merge": (1,)}
SPLITS: Mapping[str, tuple[int, ...]] = {
    "decode": (1, 2, 4, 8, 16, 32),
    "score": (1, 2, 4, 8, 16, 32, 64),
    "cosine": (1, 2, 4, 8, 16, 32, 64, 128, 256),
}

SECONDS = 0.05
"""Spent on each measurement."""

GAIN = 0.02
"""Share by which fixed splits must beat those of the rule, as that fits other shapes too."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The fastest configuration, and microseconds."""

    config: Config
    us: float


def sizes(op: str, largest: int) -> Iterator[Config]:
    """Every tile up to the largest, with each number of warps and stages."""
    tiles = [tile for tile in TILES[op] if tile <= largest]
    for tile, warps, stages in product(tiles, WARPS, STAGES.get(op, (2, 3, 4, 5))):
        yield Config(tile, warps, stages)


def fastest(op: str, largest: int, measure: Measure) -> Choice | None:
    """The best size, then the best splits of it; None if nothing runs.

    Args:
        measure: microseconds; None for what is wrong or cannot run.
    """
    best = _least(sizes(op, largest), measure)
    if best is None:
        return None
    split = _least((replace(best.config, splits=n) for n in SPLITS.get(op, ())), measure)
    return split if split is not None and split.us < best.us * (1 - GAIN) else best


def _least(configs: Iterator[Config], measure: Measure) -> Choice | None:
    found = [Choice(config, us) for config in configs if (us := measure(config)) is not None]
    return min(found, key=lambda choice: choice.us, default=None)


def row_of(bucket: Bucket, gpu: str, config: Config) -> Row:
    """As `configs` reads it."""
    chosen = {name: value for name, value in asdict(config).items() if value is not None}
    return {"op": bucket.op, "gpu": gpu, "where": dict(bucket.where), **chosen}


def merged(old: Sequence[Row], new: Sequence[Row], gpu: str) -> list[Row]:
    """New rows first, as the first that holds counts; what was measured on this GPU before is gone,
    for each op of which there is something new."""
    ops = {row["op"] for row in new}
    kept = [row for row in old if not (row.get("gpu") == gpu and row["op"] in ops)]
    return [*new, *kept]


def written(rows: Sequence[Row], path: Path) -> None:
    """One row a line, so that a change can be read."""
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    path.write_text(f"[\n{lines}\n]\n")


def measured(op: str, workloads: Sequence[Workload], config: Config) -> float | None:
    """Geometric mean of the workloads' times: none counts more because it is larger."""
    times = []
    with trying([{"op": op, **{k: v for k, v in asdict(config).items() if v is not None}}]):
        for work in workloads:
            try:
                right = work.right(work.calls[0]())
            except RuntimeError:  # too much shared memory, or it does not compile
                return None
            if not right:
                return None
            times.append(median(microseconds(captured(work.calls), len(work.calls), SECONDS)))
    return math.exp(sum(map(math.log, times)) / len(times))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m palimpsest.kernels.tune")
    parser.add_argument("--out", type=Path, required=True, help="the file of rows to add to")
    parser.add_argument("--op", choices=tuple(TILES), action="append", help="only this; repeatable")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("tuning measures on a GPU, and torch finds none here", file=sys.stderr)
        return 2
    gpu = torch.cuda.get_device_name()
    rows = []
    for bucket in buckets():
        if given.op and bucket.op not in given.op:
            continue
        workloads = bucket.make(torch.device("cuda"))
        choice = fastest(bucket.op, bucket.largest, partial(measured, bucket.op, workloads))
        said = f"{choice.config} {choice.us:.1f} us" if choice else "nothing runs"
        print(f"{bucket.op} {dict(bucket.where)}: {said}", file=sys.stderr)
        if choice is not None:
            rows.append(row_of(bucket, gpu, choice.config))
    old = json.loads(given.out.read_text()) if given.out.exists() else []
    written(merged(old, rows, gpu), given.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
