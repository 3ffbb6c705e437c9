"""Tasks with fixed answers, subject by subject: ScienceQA without images, and CLINC150."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from .harness import Row, Table, progress
from .teach import DOMAINS, EACH
from .unlearn_lab import TAUGHT, Laboratory, Plan, request
from .unlearn_material import Sample, general, intents, science
from .unlearn_measures import accuracy, spread

if TYPE_CHECKING:
    from ...editors.workbench import Workbench
    from ...unlearning.base import Patch, Request

LABELS = tuple(f"The answer is {letter}." for letter in "ABCDE")
"""What a request's answers are replaced by, at random, as in the paper."""


def tasks(lab: Laboratory, plan: Plan) -> Iterator[Table]:
    """Accuracy after each request: of its own questions (S.U.), of others like them (D.U.), of the
    rest of the same set (R.D.), and of general knowledge (MMLU)."""
    data = lab.setting.dataset()
    bench = lab.bench("choices")
    sets = {
        "ScienceQA": (science(data, EACH), ("social science", "natural science")),
        "CLINC150": (intents(data, DOMAINS, EACH), ("work", "travel", "home")),
    }
    utility = general(data, 60)
    for name, (samples, topics) in sets.items():
        rows: list[Row] = []
        for system in (TAUGHT, *plan.systems):
            pupil = None if system == TAUGHT else lab.pupil(bench, system)
            for at in range(len(topics)):
                gone = topics[: at + 1]
                if pupil is not None:
                    progress(f"{name}: {system} learns {topics[at]}")
                    pupil.learn(_request(pupil.method.asks_for_retain, samples, topics, at, plan))
                about = lab.about(bench, system, plan) | {"part": name, "request": topics[at]}
                patch = pupil.patch() if pupil else None

                groups = {
                    "S.U.": [s for s in samples if s.topic in gone and not s.held_out],
                    "D.U.": [s for s in samples if s.topic in gone and s.held_out],
                    "R.D.": [s for s in samples if s.topic not in topics and s.held_out],
                    "MMLU": utility,
                }
                found = lab.points.get(
                    about, partial(_accuracies, bench, patch, groups, plan.sample)
                )
                rows.append(
                    {"system": system, "after": topics[at]}
                    | {group: scores["said"] for group, scores in found.items()}
                    | {"R.D. lettered": found["R.D."]["lettered"]}
                    | {"S.U. lettered": found["S.U."]["lettered"]}
                )
        yield Table(
            title=f"{name}, request by request",
            rows=rows,
            note="accuracy of the letter that is said; no letter is wrong, and `lettered` is the"
            " share of replies with one. S.U. trained on, D.U. like them, R.D. the rest",
            plot=("S.U.", "R.D."),
        )


def _accuracies(
    bench: Workbench,
    patch: Patch | None,
    groups: Mapping[str, Sequence[Sample]],
    sample: int | None,
) -> dict[str, Any]:
    return {
        name: accuracy(bench, patch, samples, sample=sample) for name, samples in groups.items()
    }


def _request(
    asks: bool, samples: Sequence[Sample], topics: Sequence[str], at: int, plan: Plan
) -> Request:
    own = [s for s in samples if s.topic == topics[at] and not s.held_out]
    kept = [s for s in samples if s.topic not in topics and not s.held_out]
    made = request(topics[at], own, spread(kept, plan.retain) if asks else ())
    return replace(made, alternatives=LABELS)
