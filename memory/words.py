"""The words that a text is found by, and any text as a full-text query.

Knows nothing of what is searched: the lexical index and the hashing embedder share it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import TypeVar

_Sliceable = TypeVar("_Sliceable", str, list[str])

_WORD = re.compile(r"[^\W_]+|[\U0001F000-\U0001FAFF\u2600-\u27BF]")
_UNSPACED = re.compile(
    r"[\u0E00-\u0EFF\u1000-\u109F\u1780-\u17FF\u3040-\u30FF\u3400-\u9FFF\uAC00-\uD7AF"
    r"\uF900-\uFAFF\U00020000-\U0003FFFF]+"
)
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "a about all also am an and any are as at be been but by can could did do does for from had"
        " has have he her his how i if in is it its just me my not of on or our she should so some"
        " that the their them then there these they this those to us was we were what when where"
        " which who why will with would you your",
    )
)
"""English words that stand in most texts: BM25 gives them next to no weight, and a search that
looks them up reads most of the index. Indexed all the same, for queries made of nothing else."""


def words(text: str) -> list[str]:
    """The words that a text is found by: compatibility forms unified, marks and case removed.

    Scripts written without spaces (Chinese, Japanese, Thai, ...) and Hangul give overlapping pairs
    of characters, as Lucene's CJK analyser does; an emoji is a word.
    """
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(char for char in plain if not unicodedata.combining(char))
    found: list[str] = []
    for word in _WORD.findall(unicodedata.normalize("NFC", plain).casefold()):
        found += _pairs(word) if _UNSPACED.search(word) else [word]
    return found


def _pairs(word: str) -> Iterator[str]:
    """Overlapping character pairs of a word's unspaced stretches, and the stretches between."""
    end = 0
    for run in _UNSPACED.finditer(word):
        if run.start() > end:
            yield word[end : run.start()]
        found, end = run.group(), run.end()
        yield from (found[at : at + 2] for at in range(max(1, len(found) - 1)))
    if end < len(word):
        yield word[end:]


def match_query(text: str) -> str | None:
    """Any text as an FTS5 query: its words, each quoted, OR-ed; None if it has none.

    `words` leaves neither quotes nor operators, so no text can break out of the quotes. Of a long
    text only the beginning and the end are asked for: a question stands there, and FTS5 takes no
    more than 256 terms.
    """
    distinct = list(dict.fromkeys(words(_ends(text, 10_000))))
    telling = _ends([word for word in distinct if word not in _COMMON] or distinct, 32)
    return " OR ".join(f'"{word}"' for word in telling) or None


def _ends(whole: _Sliceable, size: int) -> _Sliceable:
    """The first and the last `size` of it, or all of it."""
    return whole if len(whole) <= 2 * size else whole[:size] + whole[-size:]
