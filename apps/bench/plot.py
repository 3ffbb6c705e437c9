"""Tables as bars and lines in one PNG file. Knows nothing of what the numbers mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from .harness import central
from .metrics import Estimate, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .harness import Cell, Table

INCHES_PER_BAR = 0.22
INCHES_OF_LINES = 3.0


def draw(tables: Sequence[Table], path: Path, *, title: str) -> None:
    """One panel for each table that names columns to plot; writes nothing if none does.

    A table's bars and its lines are drawn in panels of their own.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn: list[tuple[float, Callable[[Axes], None]]] = []
    for table in tables:
        if table.plot:
            height = 1.0 + INCHES_PER_BAR * len(table.rows) * len(table.plot)
            drawn.append((height, partial(bars, table=table)))
        if table.curve:
            across, *ups = table.curve
            drawn += [
                (INCHES_OF_LINES, partial(_lines, table=table, across=across, up=up)) for up in ups
            ]
    if not drawn:
        return
    heights = [height for height, _ in drawn]
    figure = Figure(figsize=(8, sum(heights) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)
    for axes, (_, fill) in zip(panels[:, 0], drawn, strict=True):
        fill(axes)
    figure.savefig(path, dpi=120)


def bars(axes: Axes, table: Table) -> None:
    """Bars for each row of a table, one for each of its columns to plot."""
    systems = [str(row[table.first]) for row in table.rows]
    thickness = 0.8 / len(table.plot)
    for nth, column in enumerate(table.plot):
        places = [at + nth * thickness for at in range(len(systems))]
        values = [central(row.get(column)) for row in table.rows]
        errors = [_error(row.get(column)) for row in table.rows]
        spread = list(zip(*errors, strict=True)) if any(map(any, errors)) else None
        axes.barh(places, values, thickness, xerr=spread, label=column)
    middle = 0.4 - thickness / 2
    axes.set_yticks([at + middle for at in range(len(systems))], systems, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(", ".join(table.plot), fontsize=8)
    axes.set_ylabel(table.first, fontsize=8)
    axes.set_title(table.title, fontsize=9, loc="left")
    axes.legend(fontsize=7, loc="best")
    axes.grid(axis="x", alpha=0.3)


def _lines(axes: Axes, table: Table, across: str, up: str) -> None:
    """Every point, and a line through the medians of those that are above each other."""
    lines: dict[str, dict[float, list[float]]] = {}
    for point in table.points:
        if point.get(across) is not None and point.get(up) is not None:
            line = lines.setdefault(str(point[table.first]), {})
            line.setdefault(central(point[across]), []).append(central(point[up]))
    for name, line in lines.items():
        places = sorted(line)
        [drawn] = axes.plot(places, [median(line[x]) for x in places], lw=1, label=name)
        every = [(x, y) for x in places for y in line[x]]
        xs, ys = zip(*every, strict=True)
        axes.scatter(xs, ys, s=9, color=drawn.get_color())
    axes.set_xscale("log")
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(up, fontsize=8)
    axes.set_title(table.title, fontsize=9, loc="left")
    if lines:
        axes.legend(fontsize=7, loc="best")
    axes.grid(alpha=0.3)


def _error(cell: Cell) -> tuple[float, float]:
    """How far its interval reaches below and above."""
    if isinstance(cell, Spread):
        return cell.median - cell.low, cell.high - cell.median
    if isinstance(cell, Estimate):
        return cell.mean - cell.low, cell.high - cell.mean
    return 0.0, 0.0
