"""The unlearners by name. To add one: its own file, one row here, one row in its test."""

from __future__ import annotations

from ..registry import Registry

METHODS = Registry(
    "unlearner",
    {
        "grad_ascent": ".unlearning.grad_ascent:GradAscent",
        "grad_diff": ".unlearning.grad_diff:GradDiff",
        "npo": ".unlearning.npo:Npo",
        "o3": ".unlearning.o3.method:O3",
        "refusal": ".unlearning.refusal:Refusal",
        "rmu": ".unlearning.rmu:Rmu",
        "simnpo": ".unlearning.simnpo:SimNpo",
        "task_vector": ".unlearning.task_vector:TaskVector",
        "uoe": ".unlearning.uoe:Uoe",
    },
    group="palimpsest.unlearners",
)
