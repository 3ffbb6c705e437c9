"""The formats by suffix. To add one: its own file, one row here, one row in its test."""

from __future__ import annotations

from pathlib import PurePath

from ...errors import InputError
from ...registry import Registry
from .base import Parser

FORMATS = Registry(
    "format",
    {
        ".txt": ".memory.formats.plain:parse",
        ".md": ".memory.formats.markdown:parse",
        ".markdown": ".memory.formats.markdown:parse",
        ".html": ".memory.formats.html:parse",
        ".htm": ".memory.formats.html:parse",
        ".pdf": ".memory.formats.pdf:parse",
        ".json": ".memory.formats.exports:parse",
        ".af": ".memory.formats.exports:parse",
    },
    group="palimpsest.formats",
)


def parser(name: str) -> Parser | None:
    """How a file of this name is read; None if that is not known."""
    suffix = PurePath(name).suffix.lower()
    if suffix not in FORMATS:
        return None
    found: Parser = FORMATS.load(suffix)
    return found


def why_not(name: str) -> str:
    """Why a file is not read, and what could be done."""
    suffix = PurePath(name).suffix.lower()
    return f"{suffix or 'no suffix'} is none of {', '.join(FORMATS)}"


def require(name: str) -> Parser:
    """How a file of this name is read.

    Raises:
        InputError: that is not known.
    """
    found = parser(name)
    if found is None:
        raise InputError(f"{name!r} cannot be ingested: {why_not(name)}; convert it first")
    return found
