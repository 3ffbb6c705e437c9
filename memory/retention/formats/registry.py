"""The formats by name. To add one: its own file, one row here, one row in the tests."""

from __future__ import annotations

from typing import Any

from ....registry import Registry
from ..storage import StorageFormat

FORMATS = Registry(
    "storage format",
    {
        "plain": ".memory.retention.storage:Plain",
        "int8": ".memory.retention.formats.quantized:Int8",
        "int4": ".memory.retention.formats.quantized:Int4",
        "int2": ".memory.retention.formats.quantized:Int2",
        "gear": ".memory.retention.formats.gear:Gear",
        "think": ".memory.retention.formats.think:Think",
    },
    group="palimpsest.formats",
)


def open_format(spec: str, **options: Any) -> StorageFormat:
    """The format of a spec such as `"int4"` or `"gear:bits=2,rank=4"`.

    Raises:
        UnknownName: no such format.
        ConfigError: it has no such option, or an option breaks a rule.
    """
    form: StorageFormat = FORMATS.build(spec, **options)
    return form
