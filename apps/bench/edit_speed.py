"""What an edit costs, and what a model with edits costs to ask; the way of the official code beside
it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from statistics import fmean, median

import torch
from langchain_core.messages import HumanMessage

from ...editors.base import Edit
from ...editors.editor import Editor
from ...editors.rows import Rows
from ...llm.base import GenerationConfig
from ...llm.places import Contribution
from ...llm.twin import patched
from ...memory.base import Cue
from ...memory.record import Scope, now
from .edit_lab import Laboratory, Plan
from .edit_material import Window, facts
from .edit_systems import edited
from .harness import Row, Table, progress
from .metrics import Spread

PREFIXES, OFFICIAL_STEPS = 10, 70
"""Of the official code for Llama-2-7B: with the bare prompt 11 rows, and one that is irrelevant."""

TIMED = 3
"""Steps of it that are timed; each costs the same."""

TOKENS = 64


def speed(lab: Laboratory, plan: Plan) -> Iterator[Table]:
    """Seconds per edit, and milliseconds per token."""
    count = 10 if plan.full else 3
    every = facts(plan.sets[0], lab.setting.data, count)
    progress(f"speed: {count} edits")
    editor = lab.editor("wise")
    applied = edited(editor, Window("speed", every))
    steps = median(len(each.change.curve) for each in editor.learnt(Scope(user="speed")))
    resident = _peak_mb()
    progress("speed: steps of the official code")
    theirs = [_official(lab, fact.edit) for fact in every[:2]]
    step = median(seconds for each in theirs for seconds in each)
    ours = Spread.of(applied.seconds)
    rows: list[Row] = [
        {
            "how": "ours: from the edited layer on",
            "s/edit": ours,
            "steps": steps,
            "s/100 edits": 100 * fmean(applied.seconds),
            "peak MB": resident,
        },
        {
            "how": "whole model each step, as many steps",
            "s/edit": step * steps,
            "steps": steps,
            "s/step": step,
            "s/100 edits": 100 * step * steps,
            "peak MB": _peak_mb(),
        },
        {
            "how": f"whole model, {OFFICIAL_STEPS} steps",
            "s/edit": step * OFFICIAL_STEPS,
            "steps": OFFICIAL_STEPS,
            "s/step": step,
            "s/100 edits": 100 * step * OFFICIAL_STEPS,
            "peak MB": _peak_mb(),
        },
    ]
    yield Table(
        title=f"Seconds to learn an edit, T = {count}",
        rows=rows,
        note=f"{torch.get_num_threads()} threads; the other way is timed for {2 * TIMED} steps of"
        f" {PREFIXES + 2} rows each, and extrapolated; seconds per 100 are 100 times the mean; peak"
        " memory is of the whole process so far",
        plot=("s/edit",),
    )
    yield _decoding(lab, editor, every[0].edit, runs=7 if plan.full else 3)


def _official(lab: Laboratory, edit: Edit) -> list[float]:
    """Seconds of each step with nothing computed beforehand: all rows through all layers, the whole
    matrix learnt under a random mask."""
    bench = lab.bench
    name = bench.down(bench.layer(0.86))
    weight = bench.weight(name)
    copy = weight.clone().requires_grad_()
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    prober = bench.prober
    target = prober.ids(" " + edit.target)
    prompts = [edit.prompt, *(f"{text} {edit.prompt}" for text in bench.contexts(PREFIXES))]
    beside = edit.locality[0][0] if edit.locality else "The weather was fine on that day."
    asked = [(prober.ids(prompt), target) for prompt in prompts]
    rows = Rows.of([*asked, (prober.ids(beside)[:-1], prober.ids(beside)[-1:])])
    optimiser = torch.optim.SGD([copy], lr=0.1)
    seconds = []
    for _ in range(TIMED):
        began = time.perf_counter()
        with torch.enable_grad(), patched(bench.model, {name: lambda a, out: a @ copy.T}):
            loss = rows.losses(bench.model)[:-1].mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert copy.grad is not None
        copy.grad *= mask
        optimiser.step()
        seconds.append(time.perf_counter() - began)
    return seconds


def _decoding(lab: Laboratory, editor: Editor, edit: Edit, *, runs: int) -> Table:
    """The same model with nothing attached, with a gate that stays shut, and with one open; in
    turns, so that a busy machine is busy for all."""
    open_, shut = edit.prompt, "Tell me a long story about a lighthouse and its keeper."
    scope = Scope(user="speed")
    given: dict[str, tuple[str, Contribution | None]] = {
        "nothing attached, shut prompt": (shut, None),
        "gate shut": (shut, editor.recall(_cue(shut, scope))),
        "nothing attached, open prompt": (open_, None),
        "gate open": (open_, editor.recall(_cue(open_, scope))),
    }
    times: dict[str, list[float]] = {name: [] for name in given}
    for _ in range(runs):
        for name, (prompt, contribution) in given.items():
            times[name].append(_ms_per_token(lab, prompt, [contribution] if contribution else []))
    routing = []
    for prompt in (open_, shut) * runs:
        began = time.perf_counter()
        editor.recall(_cue(prompt, scope))
        routing.append(1000 * (time.perf_counter() - began))
    plain = [name for name in given if name.startswith("nothing")]
    rows: list[Row] = []
    for name, (prompt, _) in given.items():
        beside = next(each for each in plain if given[each][0] == prompt)
        row: dict[str, Spread | float | str] = {
            "model": name,
            "ms/token": Spread.of(times[name]),
        }
        if name not in plain:
            ratios = [a / b for a, b in zip(times[name], times[beside], strict=True)]
            row |= {"ratio to nothing": Spread.of(ratios), "routing ms": Spread.of(routing)}
        rows.append(row)
    return Table(
        title="Decoding with edits attached",
        rows=rows,
        note=f"up to {TOKENS} tokens, without the first, {runs} runs in turns; ratios are of"
        " neighbouring runs; routing is done once for a message, before it",
        plot=("ms/token",),
    )


def _cue(message: str, scope: Scope) -> Cue:
    return Cue(message=message, scope=scope, budget=0, now=now())


def _ms_per_token(lab: Laboratory, prompt: str, given: Sequence[Contribution]) -> float:
    config = GenerationConfig(max_tokens=TOKENS)
    times = []
    for _ in lab.llm.stream([HumanMessage(prompt)], given, config):
        times.append(time.perf_counter())
    return 1000 * (times[-1] - times[0]) / max(1, len(times) - 1)


def _peak_mb() -> float:
    """Most that the process ever had in memory."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
