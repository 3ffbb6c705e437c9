"""The scorers by name. To add one: its own file, one row here, one row in its test."""

from __future__ import annotations

from ....registry import Registry

SCORERS = Registry(
    "scorer",
    {
        "energy": ".memory.gates.scorers.energy:Energy",
        "fused": ".memory.gates.scorers.fused:Fused",
        "knn": ".memory.gates.scorers.knn:Knn",
        "mahalanobis": ".memory.gates.scorers.mahalanobis:Mahalanobis",
        "o3": ".memory.gates.scorers.o3:O3",
        "palm": ".memory.gates.scorers.palm:Palm",
    },
    group="palimpsest.scorers",
)
