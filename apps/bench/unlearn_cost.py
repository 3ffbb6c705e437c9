"""What a request costs to learn, and what a model with many requests costs to ask."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from statistics import median

import torch

from ...llm.places import Delta
from ...llm.twin import patched
from ...unlearning.base import Unlearnt
from .harness import Row, Table, progress
from .metrics import Spread
from .unlearn_lab import Laboratory, Plan, request

TOKENS = 48
LOADED = (1, 10, 100)
"""Requests that are loaded."""


def cost(lab: Laboratory, plan: Plan) -> Iterator[Table]:
    """Minutes for a request; and, with more and more requests loaded, milliseconds for deciding
    about a message, and per token with every gate shut and with one open."""
    told = lab.tofu
    bench = lab.bench("tofu")
    rows: list[Row] = []
    for system in plan.systems:
        progress(f"cost: {system}")
        pupil = lab.pupil(bench, system)
        learnt = pupil.study("forget01", told.requests[0], told.known, plan.retain)
        rows.append(
            {
                "system": system,
                "samples": len(told.requests[0]),
                "passes": len(learnt.change.curve),
                "minutes": learnt.change.seconds / 60,
                "kB": learnt.change.nbytes / 1000,
            }
        )
    yield Table(
        title="Minutes to unlearn forget01",
        rows=rows,
        note=f"{torch.get_num_threads()} threads; those that were learnt in an earlier part are not"
        " learnt again, and their time is that of then",
        plot=("minutes",),
    )
    pupil = lab.pupil(bench, "o3")
    one = pupil.learn(request("forget01", told.requests[0]))
    open_, shut = told.requests[0][0].question, "Tell me a long story about a lighthouse."
    speeds: list[Row] = []
    for count in LOADED if plan.full else LOADED[:2]:
        progress(f"cost: {count} requests loaded")
        many = [Unlearnt(id=one.id, name=str(at), change=one.change) for at in range(count)]
        # As many gates are asked; only one of them opens, since as many equal ones all would.
        patch = pupil.method.patch(bench, many)
        single = pupil.method.patch(bench, many[:1])
        deciding = [_decide(patch.open, prompt) for prompt in (open_, shut) * 3]
        shapes: dict[str, Mapping[str, Delta]] = {
            "nothing": {},
            "all shut": patch.open([shut]).deltas,
            "one open": single.open([open_]).deltas,
            "all open": patch.open([open_]).deltas,
        }
        times: dict[str, list[float]] = {name: [] for name in shapes}
        for _ in range(5 if plan.full else 3):
            for name, deltas in shapes.items():
                times[name].append(_ms_per_token(bench, open_, deltas))
        for name in list(shapes)[1:]:
            ratios = [a / b for a, b in zip(times[name], times["nothing"], strict=True)]
            speeds.append(
                {
                    "gates": f"{count} loaded, {name}",
                    "ms/token": Spread.of(times[name]),
                    "ratio to nothing": Spread.of(ratios),
                    "deciding ms": median(deciding),
                }
            )
    yield Table(
        title="Asking with requests loaded",
        rows=speeds,
        note=f"{TOKENS} tokens, runs in turns; deciding is done once for a message",
        plot=("ratio to nothing",),
    )


def _decide(open_: object, prompt: str) -> float:
    began = time.perf_counter()
    open_([prompt])  # type: ignore[operator]
    return 1000 * (time.perf_counter() - began)


@torch.no_grad()
def _ms_per_token(bench: object, prompt: str, deltas: Mapping[str, Delta]) -> float:
    from ...editors.workbench import Workbench

    assert isinstance(bench, Workbench)
    ids = torch.tensor([bench.prober.asked(prompt)])
    with patched(bench.model, deltas):
        cache = bench.model(input_ids=ids, use_cache=True).past_key_values
        token = ids[:, -1:]
        began = time.perf_counter()
        for _ in range(TOKENS):
            cache = bench.model(
                input_ids=token, past_key_values=cache, use_cache=True
            ).past_key_values
        return 1000 * (time.perf_counter() - began) / TOKENS
