"""Rel, Gen and Loc over the number of edits, for each system, scored after the last of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median

from ...errors import CapabilityError, PalimpsestError
from .edit_lab import Laboratory, Plan
from .edit_material import Fact, Window, facts, windows
from .edit_measures import Score, Scores, sequential
from .edit_published import SOURCE, ZSRE
from .harness import Cell, Row, Table, progress
from .metrics import Estimate, Spread

TITLES = {"zsre": "ZsRE", "counterfact": "CounterFact", "sample": "sample"}


def sequences(lab: Laboratory, plan: Plan) -> Iterator[Table]:
    """Rel, Gen and Loc over the number of edits, for each system."""
    for name in plan.sets:
        every = facts(name, lab.setting.data, plan.most)
        sizes = sorted({len(every) if size is None else size for size in plan.sizes})
        some = {
            size: windows(name, every, size, plan.sample) for size in sizes if size <= len(every)
        }
        about = {"model": lab.bench.fingerprint, "set": name, "facts": digest(every)}
        rows: dict[int, list[Row]] = {size: [] for size in some}
        curve: list[Row] = []
        resumed = lab.points.resumed
        failed: list[str] = []
        for system in plan.systems:
            for size, scores in scored(lab, system, some, lab.judge.score, about, failed):
                rows[size].append(_row(lab, system, scores))
                curve.append(_point(system, name, size, scores))
        note = remark(lab.points.resumed - resumed, failed)
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


def scored(
    lab: Laboratory,
    name: str,
    some: Mapping[int, Sequence[Window]],
    score: Score,
    about: Mapping[str, str],
    failed: list[str],
) -> Iterator[tuple[int, Scores]]:
    """As far as a system gets: one that fails has its rows until then, and is named in `failed`."""
    try:
        system = lab.system(name, about["set"])
        yield from sequential(system, some, score, lab.points, about, progress)
    except PalimpsestError as error:
        if isinstance(error, CapabilityError):
            raise
        failed.append(f"{name}: {error}")


def remark(resumed: int, failed: Sequence[str]) -> str:
    """What a reader has to know of how the numbers came about."""
    kept = f"; {resumed} points are of an earlier run with these settings" if resumed else ""
    return kept + (f"; went no further: {'; '.join(failed)}" if failed else "")


def _row(lab: Laboratory, system: str, scores: Scores) -> Row:
    def sure(values: Sequence[float]) -> Estimate:
        return Estimate.of(values, lab.setting.rng("edit"))

    row: dict[str, Cell] = {
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


def digest(every: Sequence[Fact]) -> str:
    """Of the material, so that points of other material are not taken for these."""
    return hashlib.sha256(repr(every).encode()).hexdigest()[:16]
