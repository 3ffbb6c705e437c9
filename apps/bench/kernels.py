"""`palimpsest bench kernels`: attention over memory, beside what else could be called for it.

What ours compute is compared with float64 first: if it is wrong, nothing is timed. On CUDA the
Triton kernels run, as a graph and launched one by one; on a CPU the torch paths. Fractions are of
what a large copy moves on the same device in the same run.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace

import torch

from ...kernels.base import Format
from .harness import Row, Table, progress
from .kernel_baselines import Unavailable
from .kernel_cases import Case, Inputs, cases
from .kernel_experiments import Experiment, System, of_case
from .kernel_side_ops import side_ops
from .kernel_timing import Clock, WrongResult, clock_mhz
from .kernel_verdicts import beside_dense, verdicts
from .metrics import Spread
from .setting import Setting

TITLES = {
    "decode": "attention to a selection (gather_decode)",
    "score": "which blocks (score_blocks)",
    "step": "the whole step (retrieval_attention)",
    "merge": "partitions joined (merge_partials)",
    "cosine": "the nearest rows (cosine_topk)",
    "compact": "entries closed up and turned (compact)",
}

SHOWN = ("system", "case", "us", "eager us", "GB/s", "of copy", "error", "A/A", "note")
"""Columns of a point that are printed; all of them are in the file."""

ROOM = 0.4
"""Share of a GPU's free memory that one copy of a bank may take; dense attention needs another."""

CPU_ROOM = 3 << 30
"""The same on a CPU, in bytes."""


def kernels(setting: Setting) -> Iterator[Table]:
    """Is it right, what can the device do, then op by op; what holds."""
    clock = Clock(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    yield _correctness(clock, setting.seed)
    progress("ceilings")
    yield _ceilings(clock)
    points: list[Row] = []
    for experiment in _experiments(clock, setting):
        progress(f"{experiment.op}: {experiment.label}")
        points += measured(experiment, clock)
    for op, title in TITLES.items():
        some = [point for point in points if point["op"] == op]
        yield Table(
            title=title,
            rows=[{name: point[name] for name in SHOWN if name in point} for point in some],
            note=_note(clock),
            points=some,
            curve=("MB", "of copy") if len({point.get("MB") for point in some}) > 2 else None,
        )
    yield beside_dense(points)
    yield Table(title="what holds", rows=verdicts(points, clock.device.type))


def _note(clock: Clock) -> str:
    if clock.cuda:
        name = torch.cuda.get_device_name(clock.device)
        return f"on {name}; Triton kernels, us as one CUDA graph, eager us from Python"
    threads = torch.get_num_threads()
    return f"on a CPU, the better of 1 and {threads} threads: the torch paths; Triton was not run"


def small_cases(clock: Clock) -> list[Case]:
    """What correctness is checked on before anything is timed: each format and dtype, few heads."""
    base = Case(b=2, n=4096, hq=8, h=2, d=64, tokens=1024)
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    forms: tuple[Format, ...] = ("int8", "fp8", "int4")
    usual = torch.bfloat16 if clock.cuda else torch.float32
    return [replace(base, dtype=dtype) for dtype in dtypes] + [
        replace(base, format=form, dtype=usual) for form in forms
    ]


def _correctness(clock: Clock, seed: int) -> Table:
    """The error of ours, op by op.

    Raises:
        WrongResult: one is beyond its limit.
    """
    rows: list[Row] = []
    every = [x for c in small_cases(clock) for x in of_case(Inputs(c, clock, room=1 << 30))]
    for experiment in [*every, *side_ops(clock, seed, small=True, full=False)]:
        for system in experiment.ours.values():
            rows.append(
                {
                    "op": experiment.op,
                    "case": experiment.label,
                    "error": _checked(experiment, system),
                    "limit": experiment.limit,
                }
            )
    return Table(
        title="is it right",
        rows=rows,
        note="relative L2 error against float64 on the same stored inputs; for scores, how much"
        " worse the chosen blocks are than the best",
    )


def _checked(experiment: Experiment, system: System) -> float:
    assert system.error is not None
    error = system.error(system.calls()[0]())
    if not error <= experiment.limit:
        raise WrongResult(
            f"{experiment.op} on {experiment.label} is off by {error:.1e}, beyond"
            f" {experiment.limit:.0e}; a time of it would mean nothing"
        )
    return error


def _ceilings(clock: Clock) -> Table:
    return Table(
        title="what the device can do",
        rows=[
            {"ceiling": "copy, GB/s read and written", "measured": clock.copy_gb_s},
            {"ceiling": "matrix product, TFLOP/s", "measured": clock.matmul_tflop_s},
            {"ceiling": "clocks, MHz SM/memory", "measured": clock_mhz(clock.device)},
        ],
        note=_note(clock),
    )


def _experiments(clock: Clock, setting: Setting) -> Iterator[Experiment]:
    for case in cases(clock.device.type, setting.full):
        room = CPU_ROOM
        if clock.cuda:
            room = int(torch.cuda.mem_get_info(clock.device)[0] * ROOM)
        if case.bank_bytes > room or 4 * case.summary_bytes > room:
            continue
        yield from of_case(Inputs(case, clock, room=room, seed=setting.seed))
        gc.collect()  # an experiment's closures hold its inputs, in cycles
        if clock.cuda:
            torch.cuda.empty_cache()
    yield from side_ops(clock, setting.seed, small=False, full=setting.full)


def measured(experiment: Experiment, clock: Clock) -> Iterator[Row]:
    """A point for each system, ours first.

    Raises:
        WrongResult: ours is beyond its limit at this size.
    """
    for name, system in experiment.ours.items():
        try:
            error = _checked(experiment, system)
            yield _point(experiment, clock, name, system, error, twice=True)
        except torch.OutOfMemoryError:
            yield _named(experiment, name) | {"note": "not run: does not fit"}
    for name, system in experiment.others.items():
        try:
            found = None if system.error is None else system.error(system.calls()[0]())
            if found is not None and not found <= 2 * experiment.limit:
                yield _named(experiment, name) | {"error": found, "note": "wrong; not timed"}
            else:
                yield _point(experiment, clock, name, system, found)
        except (Unavailable, RuntimeError, TypeError, ValueError) as reason:
            said = str(reason).strip().split("\n")[0][:90]
            yield _named(experiment, name) | {"note": f"not run: {said}"}


def _named(experiment: Experiment, name: str) -> dict[str, str | int | float | bool | None]:
    return {"system": name, "op": experiment.op, "case": experiment.label, **experiment.columns}


def _point(
    experiment: Experiment,
    clock: Clock,
    name: str,
    system: System,
    error: float | None,
    *,
    twice: bool = False,
) -> Row:
    calls = system.calls()
    timing = clock.time(calls)
    again = {"A/A": clock.time(calls).us.median / timing.us.median} if twice else {}
    moved = system.moved or experiment.moved
    rate = moved / 1e3 / timing.us.median
    eager: dict[str, Spread] = {"eager us": timing.eager} if timing.eager else {}
    return {
        **_named(experiment, name),
        "us": timing.us,
        **eager,
        "how": timing.how,
        "MB": moved / 1e6,
        "GB/s": rate,
        "of copy": rate / clock.copy_gb_s.median,
        "error": error,
        **again,
        "clocks MHz": clock_mhz(clock.device),
    }
