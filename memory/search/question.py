"""A query, understood: whom it is about, when, by which stems, and how to embed it.

Knows nothing of entries or of scores.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from ..words import asked, phrases, words
from .times import Interval, intervals


@dataclass(frozen=True, slots=True)
class Question:
    """A query, understood: whom it is about, when, by which stems, and how to embed it.

    Args:
        text: as it is embedded. Whoever says something says "I"; so a speaker's name in the query
            becomes "I", and the name counts by the signal `speaker` instead.
        speakers: names in the query of people who have said something.
        role: "user" or "assistant", where the query speaks of them as "I" or "you".
        stems: what BM25 asks for; without those names.
        phrases: two words side by side, as stems; without those names.
        times: what the query says of when.
    """

    text: str
    speakers: frozenset[str]
    role: str | None
    stems: tuple[int, ...]
    phrases: tuple[tuple[int, int], ...]
    times: tuple[Interval, ...]

    @classmethod
    def of(cls, query: str, speakers: Collection[str], now: datetime) -> Question:
        """Understand `query`, asked at `now`, where `speakers` have said something."""
        named = {name: _pattern(name) for name in speakers}
        named = {name: found for name, found in named.items() if found.search(query)}
        text, bare = query, query
        for found in named.values():
            text = found.sub(lambda match: "my" if match[1] else "I", text)
            bare = found.sub(" ", bare)
        said = set(words(query))
        role = "user" if said & _MINE else "assistant" if said & _YOURS else None
        return cls(
            text=text,
            speakers=frozenset(named),
            role=None if named else role,
            stems=tuple(asked(bare)),
            phrases=tuple(phrases(bare)),
            times=tuple(intervals(query, now)),
        )


_MINE = frozenset({"i", "me", "my", "mine", "myself", "we", "us", "our", "ours"})
_YOURS = frozenset({"you", "your", "yours", "yourself"})


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(name)}\b(['’]s)?", re.IGNORECASE)
