"""The scorers by name. To add one: its own file, one row here, one row in its test."""

from __future__ import annotations

from ....registry import Registry

SCORERS = Registry(
    "scorer",
    {
        "fused": ".memory.gates.scorers.fused:Fused",
        "knn": ".memory.gates.scorers.knn:Knn",
        "mahalanobis": ".memory.gates.scorers.mahalanobis:Mahalanobis",
    },
    group="palimpsest.scorers",
)
