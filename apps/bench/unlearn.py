"""`palimpsest bench unlearn`: what a model was taught is unlearnt, request after request, by every
method, beside a model that was never taught it.

Without --full two authors of TOFU under few methods, on a model taught them in minutes; with it all
that there is, for hours. What was measured is kept at once in `unlearn-points.jsonl` in the folder
of results, and a run with the same settings goes on from there. Parts of it, one at a time:

    from pathlib import Path
    from palimpsest.apps.bench.harness import run_bench

    results = Path("bench-results")
    run_bench("unlearn", data=Path("data"), out=results, options={
        "taught": "taught", "parts": ("continual",), "systems": ("o3", "npo"),
    }).save(results)

`taught` is a folder of models that `python -m palimpsest.apps.bench.teach` wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ...unlearning.registry import METHODS
from .harness import Table
from .setting import Setting
from .unlearn_attacks import attacks
from .unlearn_continual import continual
from .unlearn_cost import cost
from .unlearn_lab import Laboratory, Plan
from .unlearn_rollback import rollback
from .unlearn_styles import styles
from .unlearn_tasks import tasks

PARTS: dict[str, Callable[[Laboratory, Plan], Iterator[Table]]] = {
    "continual": continual,
    "rollback": rollback,
    "attacks": attacks,
    "styles": styles,
    "tasks": tasks,
    "cost": cost,
}
"""What can be measured alone."""

BRIEF = ("continual", "rollback")
FEW = ("o3", "grad_diff")
"""Of a run without --full."""


def unlearn(
    setting: Setting,
    *,
    parts: Sequence[str] | None = None,
    systems: Sequence[str] | None = None,
    sample: int | None = None,
    tokens: int | None = None,
    retain: int = 80,
    requests: int | None = None,
    taught: str | None = None,
) -> Iterator[Table]:
    """What is forgotten, what is kept, what undoing brings back, what it costs.

    Args:
        parts: some of `PARTS`.
        systems: unlearning methods, with options.
        sample: questions of each group at most.
        tokens: of a reply at most.
        retain: questions of what is to be kept that methods which ask for them are given.
        requests: how many of TOFU's requests are made, one after the other; by default all.
        taught: a folder of taught models; see the module.
    """
    full = setting.full
    lab = Laboratory(setting, Path(taught) if taught else None)
    plan = Plan(
        systems=systems or (tuple(METHODS) if full else FEW),
        sample=sample or (None if full else 10),
        tokens=tokens or (64 if full else 24),
        retain=retain,
        requests=requests,
        full=full,
    )
    for part in parts or (PARTS if full else BRIEF):
        yield from PARTS[part](lab, plan)
