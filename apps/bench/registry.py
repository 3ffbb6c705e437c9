"""The benches by name. To add one: its own file, one row here, one row in its test."""

from __future__ import annotations

from ...registry import Registry

BENCHES = Registry(
    "bench",
    {
        "recall": ".apps.bench.recall:recall",
        "scm": ".apps.bench.scm:scm",
    },
    group="palimpsest.benches",
)
