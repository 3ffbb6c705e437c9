"""TOFU's requests one after the other, and what is left after each, for every system."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ...unlearning.base import Patch
from .harness import Row, Table, progress
from .unlearn_lab import NEVER, TAUGHT, Laboratory, Plan
from .unlearn_material import Sample
from .unlearn_measures import evaluate, quality, spread

if TYPE_CHECKING:
    from ...editors.workbench import Workbench

NAMES = ("forget01", "forget05", "forget10")


def continual(lab: Laboratory, plan: Plan) -> Iterator[Table]:
    """One table for each request: all that was asked to be forgotten until then, and all else."""
    told = lab.tofu
    bench = lab.bench("tofu")
    never = lab.bench("retain")
    names = (
        NAMES if len(told.requests) == len(NAMES) else tuple(map(str, range(len(told.requests))))
    )
    names = names[: plan.requests]
    rows: dict[str, list[Row]] = {name: [] for name in names}
    points: list[Row] = []
    references: dict[str, Mapping[str, Any]] = {}

    def measured(
        system: str, name: str, patch: Patch | None, at: int, where: Workbench
    ) -> Mapping[str, Any]:
        forget = [sample for part in told.requests[: at + 1] for sample in part]
        about = lab.about(where, system, plan) | {"part": "continual"}
        progress(f"{system}: {name}")
        asked = partial(evaluate, where, patch, tokens=plan.tokens, sample=plan.sample)
        gone = lab.points.get(
            about | {"group": "forget", "request": name},
            lambda: (
                {**asked(forget, (), (), ())}
                | {"gate": opened(patch, forget, told.known, plan.sample)}
            ),
        )
        # Without a patch all else is the same whatever is to be forgotten, and asked once.
        kept = lab.points.get(
            about | {"group": "kept", "request": name if patch else ""},
            lambda: asked((), told.retained, told.authors, told.facts),
        )
        return {**kept, "forget": gone["forget"], "gate": gone["gate"]}

    def put(system: str, name: str, scores: Mapping[str, Any], before: float, **more: Any) -> None:
        row: dict[str, Any] = {
            "system": system,
            "forget quality": quality(scores, references[name]),
            "utility": scores["utility"],
            "of before": scores["utility"] / before if before else None,
            "ROUGE-L": scores["forget"]["rouge"],
            "probability": scores["forget"]["probability"],
            "extraction": scores["forget"]["strength"],
            "refuses": scores["forget"]["refusals"],
            "repeats": scores["forget"]["repetition"],
            "retained": scores["retained"]["rouge"],
            "authors": scores["authors"]["rouge"],
            "facts": scores["facts"]["rouge"],
            **scores["gate"],
            **more,
        }
        rows[name].append(row)
        points.append({"request": name, **row})

    utility = 1.0
    for at, name in enumerate(names):
        references[name] = measured(NEVER, name, None, at, never)
        taught = measured(TAUGHT, name, None, at, bench)
        utility = taught["utility"]
        put(TAUGHT, name, taught, utility)
        put(NEVER, name, references[name], utility)
    for system in plan.systems:
        pupil = lab.pupil(bench, system)
        for at, name in enumerate(names):
            progress(f"{system} learns {name}")
            learnt = pupil.study(name, told.requests[at], told.known, plan.retain)
            scores = measured(system, name, pupil.patch(), at, bench)
            minutes = learnt.change.seconds / 60
            put(system, name, scores, utility, minutes=minutes, kB=learnt.change.nbytes / 1000)
    for name, found in rows.items():
        yield Table(
            title=f"TOFU after {name}",
            rows=found,
            note=f"{plan.sample or 'all'} questions of each group at most, replies of at most"
            f" {plan.tokens} tokens; forget quality is the p value of a KS test against the model"
            " that was never taught any of the forgotten authors; opens and closed are shares of"
            " forgotten and of all other questions for which the gate opens or stays exactly shut",
            plot=("of before", "ROUGE-L"),
        )
    yield Table(title="All requests", rows=points, points=points)


def opened(
    patch: Patch | None, forget: Sequence[Sample], known: Sequence[Sample], sample: int | None
) -> dict[str, float]:
    """Shares of questions for which a gate opens; empty without a gate."""
    if patch is None:
        return {}

    def shares(questions: Sequence[str]) -> list[bool]:
        return [verdict is not None for verdict in patch.open(questions).verdicts]

    own = shares([each.question for each in spread(forget, sample)])
    if not own:
        return {}
    others = [each.paraphrase for each in spread(forget, sample) if each.paraphrase]
    closed = shares([each.question for each in spread(known, sample and 4 * sample)])
    found = {"opens": own, "opens, paraphrased": shares(others)} if others else {"opens": own}
    means = {name: float(torch.tensor(each).float().mean()) for name, each in found.items()}
    return means | {"closed elsewhere": 1 - float(torch.tensor(closed).float().mean())}
