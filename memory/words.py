"""The words that a text is found by, and their stems.

Knows nothing of what is searched: the lexical signals and the embedders share it.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import pairwise
from threading import Lock
from typing import Any

_WORD = re.compile(r"[^\W_]+|[\U0001F000-\U0001FAFF\u2600-\u27BF]")
_UNSPACED = re.compile(
    r"[\u0E00-\u0EFF\u1000-\u109F\u1780-\u17FF\u3040-\u30FF\u3400-\u9FFF\uAC00-\uD7AF"
    r"\uF900-\uFAFF\U00020000-\U0003FFFF]+"
)
_stemming = Lock()

COMMON = frozenset(
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

MOST_ASKED = 64
"""Distinct stems that a query looks up."""


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


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> int:
    """The word's English stem (Porter 1980), as a 32-bit hash: an index of hashes says nothing of
    the texts in it to whoever reads its file."""
    with _stemming:  # a stemmer keeps the word it is at as its own state
        return zlib.crc32(_stemmer().stemWord(word).encode())


def stems(text: str) -> list[int]:
    """The stems of all words of a text, in order."""
    return [stem(word) for word in words(text)]


def asked(text: str) -> list[int]:
    """The stems that a query asks for: its telling words, or all of them if none tells anything.

    Of a long text only the beginning and the end are asked for: a question stands there.
    """
    distinct = list(dict.fromkeys(words(_ends(text))))
    telling = [word for word in distinct if word not in COMMON] or distinct
    if len(telling) > MOST_ASKED:
        telling = telling[: MOST_ASKED // 2] + telling[-MOST_ASKED // 2 :]
    return list(dict.fromkeys(map(stem, telling)))


def phrases(text: str) -> list[tuple[int, int]]:
    """The stems of each two words that stand side by side, without pairs that tell nothing."""
    said = words(_ends(text))
    pairs = [pair for pair in pairwise(said) if not COMMON.issuperset(pair)]
    return list(dict.fromkeys((stem(first), stem(second)) for first, second in pairs))


def _ends(text: str) -> str:
    return text if len(text) <= 20_000 else f"{text[:10_000]} {text[-10_000:]}"


@cache
def _stemmer() -> Any:
    from snowballstemmer import stemmer

    return stemmer("porter")
