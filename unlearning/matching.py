"""Many byte strings found in much data at once, in time that hardly depends on how many they are.

Knows nothing of files, of texts or of why the strings are looked for.

Every occurrence of 3w - 1 bytes covers two neighbouring w-byte words of the data of which the
first starts at a multiple of w. So the data is read as an array of words, each pair is looked up
among all pairs that the cores of the strings, of that many bytes, show at any of the w shifts, and
only what is found there is compared in full. A core is taken where its string is first telling. It
is the block filter of Wu and Manber's multi-pattern search (TR-94-17, University of Arizona, 1994),
with numpy for the inner loop.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHORTEST = 11
"""Bytes of the shortest string that can be looked for: two words of four, at any shift."""

_MIX = {8: 0x9E3779B97F4A7C15, 4: 0x9E3779B1}
"""Word size in bytes -> Knuth's multiplier, 2^bits / golden ratio, odd."""

_RUN = re.compile(rb"(.)\1{7}", re.DOTALL)
"""Eight times the same byte, as in the slack of any page."""

DISTINCT = 5
"""Different bytes that a core must have to be telling: zeros stand everywhere."""


def telling(string: bytes) -> int | None:
    """Where the first part of a string begins that would not be found in any data by the thousand;
    it has the size of a core. None if there is none, or the string is too short."""
    size = _size(string)
    for at in range(0, len(string) - size + 1, 4):
        part = string[at : at + size]
        if len(set(part)) >= DISTINCT and not _RUN.search(part):
            return at
    return None


def _size(string: bytes) -> int:
    return 23 if len(string) >= 23 else SHORTEST


class Matcher:
    """Finds any of `strings`, each of at least SHORTEST bytes."""

    def __init__(self, strings: Collection[bytes]) -> None:
        self.longest = max(map(len, strings), default=0)
        wide = [each for each in strings if len(each) >= 23]
        narrow = [each for each in strings if len(each) < 23]
        self._pairs = [_Pairs(part, width) for part, width in ((wide, 8), (narrow, 4)) if part]

    def find(self, data: bytes | bytearray | memoryview) -> Iterator[tuple[int, bytes]]:
        """Every occurrence as (offset, string), in no particular order."""
        for pairs in self._pairs:
            yield from pairs.find(data)


class _Pairs:
    """The pairs of words in the cores of some strings, at every shift."""

    def __init__(self, strings: list[bytes], width: int) -> None:
        self._strings = strings
        self._width = width
        self._type: np.dtype[Any] = np.dtype(f"u{width}")
        self._mix = self._type.type(_MIX[width])
        size = 3 * width - 1
        places = [telling(each) or 0 for each in strings]
        self._core = np.array(places)
        joined = b"".join(each[at : at + size] for each, at in zip(strings, places, strict=True))
        cores = np.frombuffer(joined, np.uint8).reshape(len(strings), size)
        keys = np.concatenate(
            [
                self._pair(np.ascontiguousarray(cores[:, s : s + 2 * width]).view(self._type).T)
                for s in range(width)
            ]
        )
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._shift, self._string = np.divmod(order, len(strings))
        bits = min(max(16, (16 * len(keys)).bit_length()), 24)
        self._drop = self._type.type(8 * width - bits)
        self._seen = np.zeros(1 << bits, bool)
        self._seen[keys >> self._drop] = True

    def _pair(self, words: NDArray[Any] | tuple[NDArray[Any], NDArray[Any]]) -> NDArray[Any]:
        """A hash of each pair; its upper bits depend on all bits of both."""
        first, second = words
        mixed: NDArray[Any] = ((first * self._mix) ^ second) * self._mix
        return mixed

    def find(self, data: bytes | bytearray | memoryview) -> Iterator[tuple[int, bytes]]:
        """Every occurrence as (offset, string)."""
        view = memoryview(data)
        words = np.frombuffer(data, self._type, count=len(view) // self._width)
        pairs = self._pair((words[:-1], words[1:]))
        maybe = np.flatnonzero(self._seen[pairs >> self._drop])
        found = pairs[maybe]
        first = np.searchsorted(self._keys, found)
        last = np.searchsorted(self._keys, found, side="right")
        hit = last > first
        for place, start, end in zip(maybe[hit], first[hit], last[hit], strict=True):
            for key in range(start, end):
                number = self._string[key]
                string = self._strings[number]
                offset = int(place) * self._width - int(self._shift[key] + self._core[number])
                if offset >= 0 and view[offset : offset + len(string)] == string:
                    yield offset, string
