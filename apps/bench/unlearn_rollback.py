"""Two authors are unlearnt, and the first is undone: does it come back, and the second stay gone?

And how far the two adapters share directions, with the orthogonality loss and without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ...unlearning.examining import Examiner
from .harness import Row, Table, progress
from .unlearn_lab import Laboratory, Plan, request
from .unlearn_measures import recall, spread

if TYPE_CHECKING:
    from ...editors.base import Patch
    from ...editors.workbench import Workbench
    from .unlearn_material import Sample

WEIGHTS = (0.1, 0.0)
"""Lambda of the orthogonality loss."""

OTHERS = 8
"""Authors of whom nothing may be lost."""


def rollback(lab: Laboratory, plan: Plan) -> Iterator[Table]:
    """ROUGE-L of two authors, of others and of facts: before, after both requests, and after
    undoing the first; for each weight of the orthogonality loss, and for one shared adapter."""
    told = lab.tofu
    every = [sample for part in told.requests for sample in part]
    topics = list(dict.fromkeys(sample.topic for sample in every))[:2]
    one, two = ([each for each in every if each.topic == topic] for topic in topics)
    kept = list(dict.fromkeys(sample.topic for sample in told.retained))[:OTHERS]
    others = [sample for sample in told.retained if sample.topic in kept]
    groups = {"author 1": one, "author 2": two, "others": others, "facts": list(told.facts)}
    bench = lab.bench("tofu")
    before = _rouge(bench, None, groups, plan)
    rows: list[Row] = [{"state": "before", **before}]
    specs = [f"o3:orthogonality={weight}" for weight in WEIGHTS] + ["o3:shared=true"]
    for spec in specs if plan.full else specs[:1]:
        progress(f"rollback: {spec}")
        pupil = lab.pupil(bench, spec)
        for name, samples in (("author 1", one), ("author 2", two)):
            learnt = pupil.learn(request(name, samples))
        how = {"alignment": learnt.change.numbers["alignment"]}
        rows.append(
            {"state": f"both unlearnt, {spec}", **_rouge(bench, pupil.patch(), groups, plan), **how}
        )
        rows.append({"state": f"1 undone, {spec}", **_rouge(bench, pupil.patch(0), groups, plan)})
    yield Table(
        title="Two authors unlearnt, the first undone",
        rows=rows,
        note="ROUGE-L recall of greedy replies; alignment is ||A1 A2^T|| / (||A1|| ||A2||), the"
        " mean over layers",
        plot=("author 1", "author 2", "others"),
    )


def _rouge(
    bench: Workbench, patch: Patch | None, groups: Mapping[str, Sequence[Sample]], plan: Plan
) -> dict[str, float]:
    examiner = Examiner(bench.model, bench.tokenizer)
    return {
        name: recall(examiner, patch, spread(samples, plan.sample), plan.tokens)
        for name, samples in groups.items()
    }
