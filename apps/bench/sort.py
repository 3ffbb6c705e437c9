"""`palimpsest bench sort`: does a memory still know what came first?

Sequence order recall (Pink et al. 2024, "Assessing Episodic Memory in LLMs with Sequence Order
Recall Tasks", arXiv 2410.08133), at the level of the store, where no language model takes part: an
excerpt of a book is told in order, two segments of it are shown, and each is looked up; the one
that was found in what was told earlier came first. Not found, or found in the same place: 0.5.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random

from ...memory.record import Record
from .dialogue import book, chronicle
from .harness import Row, Table, progress
from .rankers import Ranker, bm25, chance
from .scm import at_least, at_most
from .setting import Setting

BOOKS = ("the_time_machine_35", "pride_and_prejudice_1342")
EXCERPTS = (1_000, 2_500, 20_000)
"""Words of an excerpt."""

QUICK_EXCERPTS = (1_000, 2_500)
SEGMENTS = (20, 50)
"""Words of a segment."""

CHUNK = 100
"""Words of a record: about a paragraph."""

PAIRS = 100
TRIES = 10_000
EDGES = (0.25, 1 / 3, 0.5, 0.8)
"""Upper edges of the distances between two segments, as shares of the excerpt."""

_END = re.compile(r"[.?!;]")
_TITLES = frozenset({"mr.", "mrs.", "dr."})


@dataclass(frozen=True, slots=True)
class Pair:
    """Two segments, the earlier one first, and how far apart they begin, in words."""

    first: str
    second: str
    distance: int


def sort(setting: Setting) -> Iterator[Table]:
    """Accuracy by length of excerpt and segment; chance is 0.5."""
    rng = setting.rng("sort")
    rows: list[Row] = []
    counts: dict[str, list[float]] = {}
    for length in EXCERPTS if setting.full else QUICK_EXCERPTS:
        for size in SEGMENTS:
            progress(f"SORT: excerpts of {length} words, segments of {size}")
            scores = _scores(setting, rng, length, size)
            for name, found in scores.items():
                counts.setdefault(name, []).extend(found)
                mean = sum(found) / len(found)
                rows.append({"system": name, "words": length, "segment": size, "accuracy": mean})
    yield Table(
        title="SORT, store level, by length",
        rows=rows,
        note=f"{PAIRS} pairs a row, records of {CHUNK} words",
    )
    means = {name: sum(found) / len(found) for name, found in counts.items()}
    yield Table(
        title="SORT, store level",
        rows=[
            {"system": name, "accuracy": mean, "± 95 %": _half_width(mean, len(counts[name]))}
            for name, mean in means.items()
        ],
        note=f"{len(next(iter(counts.values())))} pairs; chance is 0.5",
        plot=("accuracy",),
    )
    yield Table(title="what holds", rows=_checks(means, real=setting.data is not None))


def _checks(means: dict[str, float], *, real: bool) -> list[Row]:
    """A made-up chronicle repeats itself so much that the bar for books means nothing there."""
    ours = means["palimpsest"]
    return [
        at_least("accuracy on books", ours, 0.95)
        if real
        else at_least("accuracy above that of BM25", ours - means["BM25 (FTS5)"], -0.03),
        at_most("of the same with the order shuffled: off 0.5 by", _off(means), 0.1),
    ]


def _off(means: dict[str, float]) -> float:
    return abs(means["palimpsest, order shuffled"] - 0.5)


def _half_width(mean: float, n: int) -> float:
    return 1.96 * math.sqrt(mean * (1 - mean) / n)


def _scores(setting: Setting, rng: Random, length: int, size: int) -> dict[str, list[float]]:
    """System -> 1, 0 or 0.5 for each pair."""
    excerpts = 2 if length > 10_000 else 5
    scores: dict[str, list[float]] = {}
    for _ in range(excerpts):
        words = _excerpt(setting, rng, length)
        pairs = list(_pairs(words, size, rng, PAIRS // excerpts))
        chunks = [" ".join(words[at : at + CHUNK]) for at in range(0, len(words), CHUNK)]
        for name, place in _systems(setting, chunks, rng).items():
            scores.setdefault(name, []).extend(_judged(place, pair) for pair in pairs)
    return scores


def _judged(place: Callable[[str], int | None], pair: Pair) -> float:
    first, second = place(pair.first), place(pair.second)
    if first is None or second is None or first == second:
        return 0.5
    return float(first < second)


def _systems(
    setting: Setting, chunks: Sequence[str], rng: Random
) -> dict[str, Callable[[str], int | None]]:
    """System -> where in the order of telling a text is found."""
    agent = setting.resources.enter_context(setting.agent("scm"))
    scope = replace(agent.scope, session="book")
    agent.append([Record(text=text, scope=scope, kind="document") for text in chunks])
    order: dict[str, int] = {record.id: n for n, record in enumerate(agent.ledger.records(scope))}

    @cache
    def ours(text: str) -> int | None:
        notes = agent.recall(text, session="book").notes
        return order[notes[0].records[0]] if notes else None

    texts = {str(n): text for n, text in enumerate(chunks)}
    shuffled = rng.sample(range(len(chunks)), len(chunks))
    return {
        "palimpsest": ours,
        "palimpsest, order shuffled": lambda text: _through(shuffled, ours(text)),
        "BM25 (FTS5)": _first(bm25(texts, setting.resources)),
        "any record": _first(chance(texts, rng)),
    }


def _through(order: Sequence[int], place: int | None) -> int | None:
    return None if place is None else order[place]


def _first(rank: Ranker) -> Callable[[str], int | None]:
    def place(text: str) -> int | None:
        found = rank(text, 1)
        return int(found[0]) if found else None

    return place


def _excerpt(setting: Setting, rng: Random, length: int) -> list[str]:
    """Words of a book from the start of a sentence on; of a chronicle where there is no data."""
    if setting.data is None:
        text = chronicle(rng, sections=190)
    else:
        text = book(setting.data, rng.choice(BOOKS))
    words = text.split()
    starts = _starts(words)
    start = rng.choice([at for at in starts if at + length <= len(words)])
    return words[start : start + length]


def _starts(words: Sequence[str]) -> list[int]:
    """Where sentences begin."""
    return [0] + [
        at + 1
        for at, word in enumerate(words[:-1])
        if _END.search(word) and word.lower() not in _TITLES
    ]


def _pairs(words: Sequence[str], size: int, rng: Random, count: int) -> Iterator[Pair]:
    """Pairs of segments that begin sentences, do not overlap and stand nowhere else, their
    distances spread evenly over the paper's four bins."""
    said = Counter(" ".join(words[at : at + size]) for at in range(len(words)))
    starts = [at for at in _starts(words) if at + size <= len(words)]
    starts = [at for at in starts if said[" ".join(words[at : at + size])] == 1]
    lows = [size, *(int(edge * len(words)) for edge in EDGES[:-1])]
    bins = list(zip(lows, (int(edge * len(words)) for edge in EDGES), strict=True))
    for n in range(count):
        low, high = bins[n % len(bins)]
        for _ in range(TRIES):
            first, second = sorted(rng.sample(starts, 2))
            if low < second - first <= high:
                yield Pair(
                    " ".join(words[first : first + size]),
                    " ".join(words[second : second + size]),
                    second - first,
                )
                break
