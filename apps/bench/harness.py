"""The one harness: runs a bench, prints its tables, keeps them with all that made them.

A bench is a generator of tables. The harness knows nothing of what is measured.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from ...errors import InputError
from .metrics import Estimate, Spread
from .registry import BENCHES
from .setting import Setting

LIBRARIES = ("palimpsest", "torch", "transformers", "sentence-transformers", "chromadb", "numpy")

POINTS_DEPEND_ON = ("torch", "triton", "cuda", "machine", "cores", "threads", "commit")
"""Of the environment: what each line of a file of points repeats."""

Cell = str | int | float | bool | Spread | Estimate | None
Row = Mapping[str, Cell]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Systems in rows, metrics in columns.

    Args:
        title: what was measured, in a few words.
        rows: the first column names the system; a metric that does not apply is left out.
        note: on what it was measured, and what to keep in mind.
        plot: columns to draw.
        published: others' numbers, each with its model; shown beside ours and never ranked with
            them, since neither the data nor the judge is the same.
        source: where the published numbers stand.
        points: every measurement with all it depends on, kept as one CSV file beside the JSON.
        curve: columns of `points` to draw, each of the others over the first, which is on a
            logarithmic axis: one line for each name in the first column.
    """

    title: str
    rows: Sequence[Row]
    note: str = ""
    plot: tuple[str, ...] = ()
    published: Sequence[Row] = ()
    source: str = ""
    points: Sequence[Row] = ()
    curve: tuple[str, ...] | None = None

    @property
    def first(self) -> str:
        """Name of the column that names the systems."""
        return next(iter(self.rows[0]))


Bench = Callable[..., Iterator[Table]]
"""(setting, and options of its own) -> tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A finished run: what was measured, and all that the numbers depend on."""

    bench: str
    at: datetime
    seconds: float
    setting: Mapping[str, Any]
    environment: Mapping[str, Any]
    tables: Sequence[Table] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"at": self.at.isoformat()}

    def save(self, folder: Path) -> Path:
        """Write `BENCH-TIME.json`, and a plot and points of the same name; returns the JSON file's
        path."""
        from .plot import draw

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.bench}-{self.at:%Y%m%dT%H%M%SZ}.json"
        path.write_text(json.dumps(self.to_json(), ensure_ascii=False, indent=2) + "\n")
        draw(self.tables, path.with_suffix(".png"), title=f"palimpsest bench {self.bench}")
        self._save_points(path.with_suffix(".csv"))
        return path

    def _save_points(self, path: Path) -> None:
        """One line for each point of any table, with what all of them depend on."""
        common = {name: self.environment.get(name) for name in POINTS_DEPEND_ON}
        rows = [
            {"bench": self.bench, "at": self.at.isoformat()} | _flat(point) | common
            for table in self.tables
            for point in table.points
        ]
        if rows:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(
                    file, list(dict.fromkeys(name for row in rows for name in row))
                )
                writer.writeheader()
                writer.writerows(rows)


def run_bench(
    name: str,
    *,
    data: Path | None = None,
    full: bool = False,
    seed: int = 0,
    model: str = "smollm2",
    out: Path | None = None,
    options: Mapping[str, Any] | None = None,
    show: Callable[[Table], None] = lambda table: None,
) -> Report:
    """Run a bench to its end, in a folder that is gone afterwards.

    Args:
        data: the folder of data sets; without it, what a bench makes itself must do.
        full: as long as it takes, instead of a few minutes.
        out: where a long bench keeps at once what it has; see `Setting`.
        options: the bench's own, by which some of it can be measured alone.
        show: called with each table as soon as it is measured.

    Raises:
        UnknownName: there is no such bench; lists those there are.
        InputError: `data` is no folder, or lacks a set that the bench needs.
    """
    bench: Bench = BENCHES.load(name)
    if data is not None and not data.is_dir():
        raise InputError(f"data={str(data)!r} is not a folder; name the one that holds the sets")
    at = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="palimpsest-bench-") as scratch:
        setting = Setting(
            seed=seed, full=full, data=data, model=model, out=out, scratch=Path(scratch)
        )
        tables = []
        with closing(setting):
            for table in bench(setting, **options or {}):
                tables.append(table)
                show(table)
        return Report(
            bench=name,
            at=at,
            seconds=(datetime.now(UTC) - at).total_seconds(),
            setting=setting.resolved() | dict(options or {}),
            environment=environment(),
            tables=tables,
        )


def environment() -> dict[str, Any]:
    """Versions, commit and machine: what else a number depends on."""
    import torch

    return {
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
        "triton": version("triton") if find_spec("triton") else None,
        "commit": commit(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def commit() -> str | None:
    """The git commit of the package, with "-dirty" behind it if files differ; None if it is not
    run from a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def show_table(table: Table, console: Console) -> None:
    """Print a table, and the published numbers below it."""
    console.print(_grid(table.title, table.rows))
    if table.note:
        console.print(table.note, style="dim", soft_wrap=True)
    if table.published:
        console.print(_grid("published elsewhere, not comparable in rank", table.published))
        console.print(table.source, style="dim", soft_wrap=True)
    console.print()


def _grid(title: str, rows: Sequence[Row]) -> Grid:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    grid = Grid(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for at, column in enumerate(columns):
        grid.add_column(column, justify="right" if at else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(_shown(row.get(column)) for column in columns))
    return grid


def _shown(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "NO"
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def _flat(row: Row) -> dict[str, Any]:
    """Every cell one number or word; a spread is three."""
    flat: dict[str, Any] = {}
    for name, cell in row.items():
        if isinstance(cell, Spread):
            flat |= {name: cell.median, f"{name} low": cell.low, f"{name} high": cell.high}
        else:
            flat[name] = str(cell) if isinstance(cell, Estimate) else cell
    return flat


def central(cell: Cell) -> float:
    """A number for a cell: the median of a spread, the mean of an estimate, 0 for no number."""
    if isinstance(cell, Spread):
        return cell.median
    if isinstance(cell, Estimate):
        return cell.mean
    return float(cell) if isinstance(cell, int | float) else 0.0


def progress(text: str) -> None:
    """Tell whoever waits what is being measured now; on stderr, if that is a terminal."""
    if sys.stderr.isatty():
        Console(stderr=True).print(text, style="dim", markup=False)
