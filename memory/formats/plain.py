"""Plain text, in UTF-8 or in whatever its first bytes say."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from ...errors import InputError
from .base import Document

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def decode(data: bytes, name: str) -> str:
    """The text of a file, with plain ends of line and without NUL.

    Raises:
        InputError: it is not in the encoding that its first bytes say, or UTF-8.
    """
    encoding = next((codec for mark, codec in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name!r} is not {encoding.upper()} (byte {error.start}); convert it, e.g. with iconv"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")


def parse(data: bytes, name: str) -> Iterator[Document]:
    """The whole file, called by its name."""
    yield Document(text=decode(data, name), title=name)
