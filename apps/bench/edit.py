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

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from ...editors.registry import METHODS
from ...editors.workbench import Workbench
from ...errors import CapabilityError, PalimpsestError
from ...llm.local import LocalLLM
from .edit_material import Fact, Window, facts, windows
from .edit_measures import Judge, Points, Scores, sequential
from .edit_published import SOURCE, ZSRE
from .edit_systems import MERGED, NOTHING, REMEMBERED, Editing, Nothing, Remembering, System
from .harness import Row, Table, progress
from .metrics import Estimate, Spread

if TYPE_CHECKING:
    from .setting import Setting

QUICK = ("wise", "ft_l", "ultraedit")
MERGED_NAME = "wise (merged, activation gate)"
TITLES = {"zsre": "ZsRE", "counterfact": "CounterFact", "sample": "sample"}


@dataclass(frozen=True)
class Laboratory:
    """What the parts of the bench share."""

    setting: Setting

    @cached_property
    def llm(self) -> LocalLLM:
        """The model under test.

        Raises:
            CapabilityError: its weights are not in this process.
        """
        llm = self.setting.llm
        if not isinstance(llm, LocalLLM):
            raise CapabilityError(f"model {llm.name!r} has no weights here; take a local one")
        return llm

    @cached_property
    def bench(self) -> Workbench:
        """A bench of its own, to ask at."""
        return Workbench(self.llm.model, self.llm.tokenizer, self.setting.folder("bench"))

    @cached_property
    def judge(self) -> Judge:
        """Scores answers."""
        return Judge(self.bench)

    @cached_property
    def points(self) -> Points:
        """What was measured so far."""
        out = self.setting.out
        return Points(out / "edit-points.jsonl" if out else None)

    def folder(self, name: str) -> Path:
        """For what an editor learns; the same in the next run, if results are kept."""
        words = re.sub(r"\W+", "-", name).strip("-")
        out = self.setting.out
        return out / "edit-learnt" / words if out else self.setting.folder(words)

    def system(self, name: str, material: str = "") -> System:
        """A row by its name: see `edit`."""
        folder = self.folder(f"{name} {material}")
        if name == NOTHING:
            return Nothing()
        if name == REMEMBERED:
            return Remembering(self.llm, lambda: self.setting.embedder, folder)
        spec = MERGED if name == MERGED_NAME else name
        return Editing(name, spec, self.llm, lambda: self.setting.embedder, folder)


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
    )
    for part in parts or PARTS:
        yield from PARTS[part](lab, plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of it; see `edit`."""

    sets: Sequence[str]
    systems: Sequence[str]
    sizes: Sequence[int | None]
    sample: int
    most: int | None


def sequences(lab: Laboratory, plan: Plan) -> Iterator[Table]:
    """Rel, Gen and Loc over the number of edits, for each system."""
    for name in plan.sets:
        every = facts(name, lab.setting.data, plan.most)
        sizes = sorted({len(every) if size is None else size for size in plan.sizes})
        some = {
            size: windows(name, every, size, plan.sample) for size in sizes if size <= len(every)
        }
        about = {"model": lab.bench.fingerprint, "set": name, "facts": _digest(every)}
        rows: dict[int, list[Row]] = {size: [] for size in some}
        curve: list[Row] = []
        resumed = lab.points.resumed
        failed: list[str] = []
        for system in plan.systems:
            for size, scores in _scored(lab, system, some, about, failed):
                rows[size].append(_row(lab, system, scores))
                curve.append(_point(system, name, size, scores))
        note = _note(lab.points.resumed - resumed, failed)
        for size, found in rows.items():
            if found:
                yield Table(
                    title=f"{TITLES.get(name, name)}, T = {size}",
                    rows=found,
                    note=f"{len(some[size])} sequences of {size} edits, scored after the last"
                    f" of each; intervals over facts{note}",
                    plot=("mean",),
                )
        yield Table(
            title=f"{TITLES.get(name, name)}, over the number of edits",
            rows=curve,
            published=ZSRE if name == "zsre" else (),
            source=SOURCE if name == "zsre" else "",
            points=curve,
            curve=("edits", "Rel", "Gen", "Loc"),
        )


def _scored(
    lab: Laboratory,
    name: str,
    some: Mapping[int, Sequence[Window]],
    about: Mapping[str, str],
    failed: list[str],
) -> Iterator[tuple[int, Scores]]:
    """As far as a system gets: one that fails has its rows until then, and is named in `failed`."""
    try:
        system = lab.system(name, about["set"])
        yield from sequential(system, some, lab.judge, lab.points, about, progress)
    except PalimpsestError as error:
        if isinstance(error, CapabilityError):
            raise
        failed.append(f"{name}: {error}")


def _note(resumed: int, failed: Sequence[str]) -> str:
    kept = f"; {resumed} points are of an earlier run with these settings" if resumed else ""
    return kept + (f"; went no further: {'; '.join(failed)}" if failed else "")


def _row(lab: Laboratory, system: str, scores: Scores) -> Row:
    def sure(values: Sequence[float]) -> Estimate:
        return Estimate.of(values, lab.setting.rng("edit"))

    row: dict[str, Estimate | Spread | float | str] = {
        "system": system,
        "Rel": sure(scores.rel),
        "Gen": sure(scores.gen),
        "Loc": sure(scores.loc),
        "mean": _mean(scores),
        "says it": fmean(scores.said),
        "otherwise asked": fmean(scores.said_otherwise),
    }
    for column, values in (
        ("routed", scores.routed),
        ("routed otherwise", scores.routed_otherwise),
        ("opened elsewhere", scores.opened),
    ):
        if values:
            row[column] = fmean(values)
    if scores.seconds:
        row["s/edit"] = Spread.of(scores.seconds)
    if scores.nbytes:
        row["kB"] = scores.nbytes / 1000
    return row


def _point(system: str, name: str, size: int, scores: Scores) -> Row:
    return {
        "system": system,
        "set": name,
        "edits": size,
        "Rel": fmean(scores.rel),
        "Gen": fmean(scores.gen),
        "Loc": fmean(scores.loc),
        "mean": _mean(scores),
        "n": len(scores.rel),
        "s/edit": median(scores.seconds) if scores.seconds else None,
    }


def _mean(scores: Scores) -> float:
    return fmean((fmean(scores.rel), fmean(scores.gen), fmean(scores.loc)))


def _digest(every: Sequence[Fact]) -> str:
    return hashlib.sha256(repr(every).encode()).hexdigest()[:16]


PARTS: dict[str, Callable[[Laboratory, Plan], Iterator[Table]]] = {"sequences": sequences}
"""What can be measured alone."""
