"""A stream that drifts: domains of CLINC150 arrive one after another, sixteen sentences of each,
and count as inside from then on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from ...memory.gates.scorers.base import State
from ...memory.gates.scorers.drift import Adapting, Moments
from ...memory.gates.scorers.fused import Fused
from .harness import Row, Table, progress
from .metrics import auc, percentile
from .ood_material import domains

if TYPE_CHECKING:
    from torch import Tensor

    from .ood import Remembered

FIRST, SHOTS, ASKED, STEPS = 40, 16, 40, 4
META = 4
"""Domains that drifts are simulated from; they are in no stream."""

Score = Callable[["Tensor"], "Tensor"]


def stream(data: Path, features: Remembered, *, full: bool, seed: int) -> Iterator[Table]:
    """AUROC of what has just arrived, averaged over the stream, and of the first at the end."""
    progress("stream")
    every = domains(data)
    by = {name: features(texts[: FIRST + SHOTS + ASKED]) for name, texts in every.items()}
    outside = by.pop("oos")
    found: dict[str, list[dict[str, float]]] = {}
    for order in range(10 if full else 3):
        names = Random(f"{seed}:{order}").sample(sorted(by), len(by))
        met, arriving = names[:META], names[META : META + STEPS + 1]
        absent = names[META + STEPS + 1 :]
        others = torch.cat([outside, *(by[name][-ASKED:] for name in absent)])
        parts = _detectors([by[name] for name in met], by[arriving[0]][:FIRST], features.background)
        for name, (score, adapt) in parts.items():
            run = _run(score, adapt, [by[name] for name in arriving], others)
            found.setdefault(name, []).append(run)
    rows: list[Row] = [
        {"detector": name} | {key: fmean(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    ]
    yield Table(
        title="A drifting stream: domains arrive",
        rows=rows,
        note=f"CLINC150, {SHOTS} sentences of each new domain, {STEPS} steps, mean of"
        f" {len(next(iter(found.values())))} orders; outside: domains that never arrive, and out of"
        " scope",
        plot=("AUROC", "first, at the end"),
    )


def _run(
    score: Score, adapt: Callable[[Tensor], Score], kinds: Sequence[Tensor], outside: Tensor
) -> dict[str, float]:
    aucs, rates = [], []
    other = score(outside).tolist()
    for kind in kinds[1:]:
        score = adapt(kind[FIRST : FIRST + SHOTS])
        inside, other = score(kind[-ASKED:]).tolist(), score(outside).tolist()
        aucs.append(auc(inside, other))
        rates.append(fmean(value >= percentile(inside, 5) for value in other))
    first = auc(score(kinds[0][-ASKED:]).tolist(), other)
    every = [value for kind in kinds for value in score(kind[-ASKED:]).tolist()]
    return {
        "AUROC": fmean(aucs),
        "FPR95": fmean(rates),
        "first, at the end": first,
        "all, at the end": auc(every, other),
    }


def _detectors(
    met: Sequence[Tensor], first: Tensor, background: Tensor
) -> dict[str, tuple[Score, Callable[[Tensor], Score]]]:
    """Name -> how it scores at first, and what it scores by after each step."""
    adapting, moments, fused = Adapting(), Moments(), Fused()
    # Nothing that was met before the stream may be asked in it, but all may use it as background.
    general = torch.cat([background, *met])
    states = {
        "MOL-like": adapting.meta_learn(met, background),
        "the same, not meta-learned": adapting.begin(met, background),
    }
    found: dict[str, tuple[Score, Callable[[Tensor], Score]]] = {}
    for name, state in states.items():
        found[name] = _following(
            adapting.adapt(state, first, general),
            lambda state, new: adapting.adapt(state, new, general),
            adapting.score,
        )
    found["closed form"] = _following(moments.fit(first), moments.adapt, moments.score)
    frozen = fused.fit(first, background)
    found["frozen (fused)"] = _following(frozen, lambda state, new: state, fused.score)
    found["refit to the new alone (fused)"] = _following(
        frozen, lambda state, new: fused.fit(new, background), fused.score
    )
    found["all that came, kept and refit (fused)"] = _following(
        {"points": first},
        lambda state, new: {"points": torch.cat([state["points"], new])},
        lambda state, asked: fused.score(fused.fit(state["points"], background), asked),
    )
    return found


def _following(
    state: State, adapt: Callable[[State, Tensor], State], score: Callable[[State, Tensor], Tensor]
) -> tuple[Score, Callable[[Tensor], Score]]:
    """A detector whose state goes from step to step."""
    now = [state]

    def step(new: Tensor) -> Score:
        now[0] = adapt(now[0], new)
        return lambda asked: score(now[0], asked)

    return lambda asked: score(now[0], asked), step
