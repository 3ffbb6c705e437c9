"""The editing methods by name. To add one: its own file, one row here, one row in its test."""

from __future__ import annotations

from ..registry import Registry

METHODS = Registry(
    "editing method",
    {
        "wise": ".editors.wise:Wise",
    },
    group="palimpsest.editors",
)
