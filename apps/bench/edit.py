"""`palimpsest bench edit`: facts changed in the weights, beside every method and the prompt.

Without --full a few facts under few methods; with it all that there are, for hours. What was
measured is kept at once in `edit-points.jsonl` in the folder of results, and a run with the same
settings goes on from there. Parts of it, one at a time:

    from pathlib import Path
    from palimpsest.apps.bench.harness import run_bench

    results = Path("bench-results")
    run_bench("edit", data=Path("data"), out=results, options={
        "parts": ("sequences",), "sets": ("zsre",), "systems": ("wise",),
        "sizes": (1, 10, 100, None), "sample": 100,
    }).save(results)

`systems` are names of editing methods, "no edit" and "prompt memory", or specs with options; in
`sizes` None is all. `sample` facts are scored for each size that is smaller, over as many windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ...editors.registry import METHODS
from .edit_gates import gates, protocols
from .edit_lab import MERGED_NAME, Laboratory, Plan
from .edit_sequences import sequences
from .edit_speed import speed
from .edit_systems import NOTHING, REMEMBERED
from .edit_texts import hallucination, temporal
from .edit_undo import undo
from .harness import Table
from .setting import Setting

QUICK = ("wise", "ft_l", "ultraedit")
"""Methods that take seconds for an edit."""

PARTS: dict[str, Callable[[Laboratory, Plan], Iterator[Table]]] = {
    "sequences": sequences,
    "gates": gates,
    "protocols": protocols,
    "undo": undo,
    "speed": speed,
    "hallucination": hallucination,
    "temporal": temporal,
}
"""What can be measured alone."""

BRIEF = ("sequences", "gates", "undo", "speed")
"""Parts of a run without --full."""


def everything() -> list[str]:
    """Every row."""
    return [NOTHING, REMEMBERED, *METHODS, MERGED_NAME]


def few() -> list[str]:
    """Rows that take seconds."""
    return [NOTHING, REMEMBERED, *(name for name in QUICK if name in METHODS)]


def edit(
    setting: Setting,
    *,
    parts: Sequence[str] | None = None,
    sets: Sequence[str] | None = None,
    systems: Sequence[str] | None = None,
    sizes: Sequence[int | None] | None = None,
    sample: int | None = None,
    most: int | None = None,
) -> Iterator[Table]:
    """Sequences of edits, gates, undoing, speed, and texts instead of words.

    Args:
        parts: some of `PARTS`; by default all.
        sets: of zsre, counterfact, sample.
        systems: rows; see the module.
        sizes: numbers of edits after which is scored; None is all.
        sample: facts that are scored for each size below all.
        most: facts of a set that are taken at all.
    """
    lab = Laboratory(setting)
    full = setting.full
    if sets is None:
        sets = ("sample",) if setting.data is None else ("zsre", "counterfact")
        sets = sets if full else sets[:1]
    plan = Plan(
        sets=sets,
        systems=systems or (everything() if full else few()),
        sizes=sizes or ((1, 10, 100, None) if full else (1, None)),
        sample=sample or (100 if full else 4),
        most=most or (None if full else 6),
        full=full,
    )
    for part in parts or (PARTS if full else BRIEF):
        yield from PARTS[part](lab, plan)
