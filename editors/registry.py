"""The editing methods by name. To add one: its own file, one row here, one row in its test."""

from __future__ import annotations

from ..registry import Registry

METHODS = Registry(
    "editing method",
    {
        "alphaedit": ".editors.alphaedit:AlphaEdit",
        "ft_l": ".editors.fine_tune:FineTune",
        "grace": ".editors.grace:Grace",
        "lora": ".editors.lora:Lora",
        "memit": ".editors.memit:Memit",
        "rome": ".editors.rome:Rome",
        "ultraedit": ".editors.ultraedit:UltraEdit",
        "wise": ".editors.wise:Wise",
    },
    group="palimpsest.editors",
)
