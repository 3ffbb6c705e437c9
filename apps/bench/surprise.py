"""`palimpsest bench sirllm`: is what surprised the model what has to be remembered?

SirLLM's three tasks (arXiv 2405.12528, section 4), rebuilt by their record format. Budgets are a
quarter and a half of each conversation: at the paper's own, five sixths of it, any tokens will do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from ...memory.retention import open_policy
from .cloze import Answer, Script, answered, prior
from .harness import Row, Table, progress
from .quizzes import Quiz, daily_dialogs, distractors, grocery
from .rock_paper_scissors import games
from .scm import at_least
from .setting import Setting

if TYPE_CHECKING:
    from ...llm.local import LocalLLM

SHARES = {"1/4": 4, "1/2": 2}
"""Budgets, as parts of a conversation."""

SIRLLM = {"sirllm": "sirllm", "sirllm, as in the paper": "sirllm:recent=0"}
POLICIES = {
    "sinks + window": "sinks",
    "random": "random:seed={number}",
    "h2o": "h2o",
    **SIRLLM,
    "sirllm, public code": "sirllm:recent=0,code_compat=true",
}
"""By name. Random draws its lots anew in each conversation, as what has to be kept stands at the
same place in all of them."""

DAILY = {name: spec for name, spec in POLICIES.items() if name != "h2o"}
"""One fewer where a thing to keep cannot be pointed at."""

FULL = "full cache"
DECAYS = (1.0, 0.9, 0.7, 0.5)
QUICK, COUNT, DECAY_COUNT = 4, 100, 32
"""Conversations of a quick run and of a full one."""


def sirllm(setting: Setting) -> Iterator[Table]:
    """Grocery, DailyDialog where there is a data folder, decay, and rock, paper, scissors."""
    llm = _half_precision(setting)
    count = COUNT if setting.full else QUICK
    pool = distractors(setting.data)
    rng = setting.rng("grocery")
    bought = [grocery(rng, pool) for _ in range(count)]
    yield from _asked(llm, "Grocery", bought, POLICIES)
    if setting.data is not None:
        daily = daily_dialogs(setting.data, setting.rng("dailydialog"), count)
        yield from _asked(llm, "DailyDialog", daily, DAILY)
    rng = setting.rng("decay")
    count = DECAY_COUNT if setting.full else QUICK
    yield from decay(llm, [grocery(rng, pool, late=True) for _ in range(count)])
    yield games(setting, llm)


def _half_precision(setting: Setting) -> LocalLLM:
    """The model in bfloat16, which reads twice as fast on a CPU."""
    from ...llm.catalog import resolve
    from ...llm.local import LocalLLM

    loaded = setting.__dict__.get("llm")
    if isinstance(loaded, LocalLLM):
        return loaded
    return LocalLLM.load(resolve(setting.model), dtype="bfloat16", name=setting.model)


def policies_of(
    length: int, specs: Mapping[str, str], number: int = 0
) -> dict[tuple[str, str], str]:
    """Each policy at each share of a conversation of so many tokens, as a spec; `number` is the
    conversation's. The budget is a multiple of eight, so that chunks never cross an eviction."""
    return {
        (share, name): f"{spec.format(number=number)}{',' if ':' in spec else ':'}"
        f"budget={length // part // 8 * 8}"
        for share, part in SHARES.items()
        for name, spec in specs.items()
    }


def _asked(
    llm: LocalLLM, task: str, quizzes: Sequence[Quiz], specs: Mapping[str, str]
) -> Iterator[Table]:
    """Accuracy by budget and policy, and whether surprisal is what did it."""
    found: dict[tuple[str, str], list[Row]] = {}
    lengths = []
    for number, quiz in enumerate(quizzes, start=1):
        progress(f"{task}: conversation {number} of {len(quizzes)}")
        script = Script(llm, quiz)
        lengths.append(script.length)
        named = {("all", FULL): "full", **policies_of(script.length, specs, number)}
        before = prior(llm, script)
        answers = answered(llm, script, {k: open_policy(spec) for k, spec in named.items()})
        for key, answer in answers.items():
            found.setdefault(key, []).append(_marks(quiz, answer, before))
        nothing = Answer(before, {})
        found.setdefault(("none", "nothing was said"), []).append(_marks(quiz, nothing, before))
    yield Table(
        title=f"{task}: cloze accuracy by budget and policy",
        rows=[
            {"policy": f"{name}, {share}", **_summary(marks)}
            for (share, name), marks in found.items()
        ],
        note=f"{len(quizzes)} conversations of {fmean(lengths):.0f} tokens; chance is 0.25; less"
        " prior: an option's mean ln P less what it is where nothing was said; bfloat16",
        plot=("cloze", "all of it kept") if quizzes[0].facts else ("cloze",),
        points=[
            {"policy": f"{name}, {share}", "quiz": n, **mark}
            for (share, name), marks in found.items()
            for n, mark in enumerate(marks)
        ],
    )
    yield _differences(task, found)


def _marks(quiz: Quiz, answer: Answer, before: Sequence[float]) -> Row:
    """What one answer is worth."""
    less = [said - alone for said, alone in zip(answer.logprobs, before, strict=True)]
    marks: dict[str, float] = {
        "cloze": float(_highest(answer.logprobs) == quiz.answer),
        "less prior": float(_highest(less) == quiz.answer),
        "ln P": answer.logprobs[quiz.answer],
    }
    if answer.kept:
        marks |= {"all of it kept": float(answer.kept["first"] == 1), "kept": answer.kept["first"]}
    return marks


def _highest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _summary(marks: Sequence[Row]) -> dict[str, float]:
    row: dict[str, float] = {}
    for name in marks[0]:
        values = _column(marks, name)
        row[name] = fmean(values)
        if name in ("cloze", "less prior"):
            row[f"± {name}"] = standard_error(values)
    return row


def _column(marks: Sequence[Row], name: str) -> list[float]:
    return [float(mark[name]) for mark in marks]  # type: ignore[arg-type]  # all are floats


def standard_error(values: Sequence[float]) -> float:
    """Of their mean; 0 for a single one."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _differences(task: str, found: Mapping[tuple[str, str], Sequence[Row]]) -> Table:
    """SirLLM less each control, paired by conversation; the bar is two standard errors."""
    rows: list[Row] = []
    for share in SHARES:
        cloze = {
            name: _column(marks, "cloze") for (part, name), marks in found.items() if part == share
        }
        controls = {
            "random": cloze["random"],
            "sinks + window": cloze["sinks + window"],
            "public code": cloze["sirllm, public code"],
        }
        for name in SIRLLM:
            for control, theirs in controls.items():
                gains = [a - b for a, b in zip(cloze[name], theirs, strict=True)]
                error = standard_error(gains)
                rows.append(
                    {
                        "difference": f"{name} - {control}, {share}",
                        "cloze": fmean(gains),
                        "± cloze": error,
                        "target": "> 2 standard errors",
                        "held": fmean(gains) > 2 * error,
                    }
                )
    note = "paired by conversation"
    return Table(title=f"{task}: what surprisal gains", rows=rows, note=note)


def decay(llm: LocalLLM, quizzes: Sequence[Quiz]) -> Iterator[Table]:
    """What is left of a thing told twenty turns ago, and of one told three turns ago."""
    found: dict[tuple[str, float], list[dict[str, float]]] = {}
    for number, quiz in enumerate(quizzes, start=1):
        progress(f"decay: conversation {number} of {len(quizzes)}")
        script = Script(llm, quiz)
        specs = {str(rate): f"sirllm:recent=0,decay={rate}" for rate in DECAYS}
        named = policies_of(script.length, specs)
        answers = answered(llm, script, {k: open_policy(spec) for k, spec in named.items()})
        for (share, rate), answer in answers.items():
            found.setdefault((share, float(rate)), []).append(answer.kept)
    rows: list[Row] = [
        {
            "policy": f"decay {rate:g}, {share}",
            "first item, all kept": fmean(each["first"] == 1 for each in kept),
            "first item, kept": fmean(each["first"] for each in kept),
            "late item, all kept": fmean(each["late"] == 1 for each in kept),
            "late item, kept": fmean(each["late"] for each in kept),
        }
        for (share, rate), kept in found.items()
    ]
    yield Table(
        title="Decay: survival by the age of what was told",
        rows=rows,
        note=f"{len(quizzes)} conversations; the first item was told 21 turns before the question,"
        " the late one three",
        plot=("first item, kept", "late item, kept"),
    )
    yield Table(title="Decay: what holds", rows=[*_decay_checks(rows)])


def _decay_checks(rows: Sequence[Row]) -> Iterator[Row]:
    for n, share in enumerate(SHARES):
        some = rows[n * len(DECAYS) : (n + 1) * len(DECAYS)]
        first = _column(some, "first item, kept")
        falls = all(a >= b for a, b in pairwise(first)) and first[-1] < first[0]
        yield {
            "check": f"the first item fades with decay, {share}",
            "measured": first[-1] - first[0],
            "target": "falls at each step",
            "held": falls,
        }
        late = _column(some, "late item, kept")
        yield at_least(f"the late item survives, at any decay, {share}", min(late), 0.8)
