"""Texts cut into passages for a search: about as long as an answer, along their paragraphs.

Knows nothing of tokens: a passage is measured in words, or in pairs of characters where a script
has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from ..stream.documents import split
from ..words import words

LENGTH = 200
"""Words of a passage, at most: within what small sentence encoders read, 256 tokens."""

WIDE = 12
"""Characters that count as a word where a text has next to none: rows of digits, rulers, data."""

_BLANK_LINES = re.compile(r"\n\s*\n")


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a text: `text == whole[start:end]`."""

    start: int
    end: int
    text: str


def passages(text: str, length: int = LENGTH) -> Iterator[Passage]:
    """Stretches of at most `length` words that cover all but blanks, in order.

    Whole paragraphs are put together as long as they fit. One that does not fit by itself is cut
    where its sentences end.
    """
    start = end = size = 0
    for begin, paragraph in _paragraphs(text):
        count = _size(paragraph)
        if size and size + count > length:
            yield Passage(start, end, text[start:end])
            size = 0
        if count > length:
            for block in split(paragraph, length, _size):
                yield Passage(begin + block.start, begin + block.end, block.text)
            continue
        start = start if size else begin
        end = begin + len(paragraph)
        size += count
    if size:
        yield Passage(start, end, text[start:end])


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Where each begins, and its text without blanks around it."""
    edges = [(0, 0), *(found.span() for found in _BLANK_LINES.finditer(text)), (len(text),) * 2]
    for (_, begin), (end, _) in pairwise(edges):
        part = text[begin:end]
        if paragraph := part.strip():
            yield begin + part.index(paragraph[0]), paragraph


def _size(text: str) -> int:
    return max(1, len(words(text)), len(text) // WIDE)
