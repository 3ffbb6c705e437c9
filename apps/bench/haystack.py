"""Long texts with something to find in them: pass keys in a book, and pairs of keys and values.

One text serves all lengths: what is asked at a length lies before it. Knows nothing of memories.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from uuid import UUID

from .dialogue import book, read_gzip

BOOKS = ("great_expectations_1400", "pride_and_prejudice_1342")

FILLER = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
"""Of the pass-key task (Mohtashami & Jaggi 2023, arXiv 2305.16300)."""

FIRST = ("Maria", "Thomas", "Ingrid", "Pablo", "Yuki", "Amara", "Victor", "Leila", "Oscar", "Grace")
LAST = ("Stone", "Rivers", "Baker", "Holt", "Marsh", "Frost", "Pike", "Vance", "Drake", "Quinn")

FROM_TASK = (
    "There is important information hidden inside a lot of irrelevant text. Memorize it.\n\n"
)
FROM_PAIRS = (
    "Extract the value corresponding to the specified key in the JSON object below.\n\n"
    "JSON data:\n{"
)

OTHERS = 3
"""Wrong answers of each kind that a right one is ranked among."""

FEW = 8
"""Tokens of a value that are asked for; once these are said, the rest is copied from them."""

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class Needle:
    """What can be asked of a text.

    Args:
        start, end: its tokens, start..end-1.
        question: ids that ask for it, up to where the answer begins.
        answer: ids that are right.
        strange: ids of answers of the same form that stand nowhere in the text.
        rivals: ids of answers to other questions on the same text.
    """

    start: int
    end: int
    question: list[int]
    answer: list[int]
    strange: list[list[int]]
    rivals: list[list[int]]


@dataclass(frozen=True, slots=True)
class Haystack:
    """A text's ids, and what is in it, in its order."""

    ids: list[int]
    needles: list[Needle]


def pass_keys(
    encode: Encode, data: Path | None, lengths: Sequence[int], each: int, rng: Random
) -> Haystack:
    """A book with sentences that give somebody's pass key, `each` of them between one length and
    the next."""
    places = _places(lengths, each, rng)
    people = rng.sample([f"{first} {last}" for first in FIRST for last in LAST], len(places))
    drawn = rng.sample(range(10_000, 100_000), len(places) * (1 + OTHERS))
    keys = [encode(f" {key}") for key in drawn]
    hay, ids, needles = _hay(encode, data, rng), encode(FROM_TASK), []
    for n, (place, person, number) in enumerate(zip(places, people, drawn, strict=False)):
        while len(ids) < place:
            ids += next(hay)
        start = len(ids)
        ids += encode(
            f"\n\nThe pass key of {person} is {number}. Remember it."
            f" {number} is the pass key of {person}.\n\n"
        )
        asked = encode(f"\n\nWhat is the pass key of {person}? The pass key of {person} is")
        strange = keys[len(places) + n * OTHERS :][:OTHERS]
        rivals = [keys[m] for m in rng.sample([m for m in range(max(each, n)) if m != n], OTHERS)]
        needles.append(Needle(start, len(ids), asked, keys[n], strange, rivals))
    while len(ids) < lengths[-1]:
        ids += next(hay)
    return Haystack(ids, needles)


def pairs(
    encode: Encode, data: Path | None, lengths: Sequence[int], count: int, rng: Random
) -> Haystack:
    """Nothing but pairs (Liu et al. 2023, "Lost in the Middle", arXiv 2307.03172, section 3), of
    which `count` between one length and the next are asked for. Answers are cut to FEW tokens."""
    source, ids = _pairs(data, rng), encode(FROM_PAIRS)
    told: list[tuple[str, list[int], int, int]] = []
    while len(ids) < lengths[-1]:
        key, value = next(source)
        start = len(ids)
        ids += encode(f'"{key}": "{value}",\n ')
        told.append((key, encode(value)[:FEW], start, len(ids)))
    needles = []
    for place in _places(lengths, count, rng):
        key, answer, start, end = min(told, key=lambda pair: abs(pair[2] - place))
        before = max(lengths[0], end)
        others = [each[1] for each in told if each[3] <= before and each[0] != key]
        strange = [encode(_uuid(rng))[:FEW] for _ in range(OTHERS)]
        asked = encode(f'\n}}\n\nKey: "{key}"\nCorresponding value: "')
        needles.append(Needle(start, end, asked, answer, strange, rng.sample(others, OTHERS)))
    return Haystack(ids, needles)


def _places(lengths: Sequence[int], each: int, rng: Random) -> list[int]:
    """Where needles lie: evenly between one length and the next, each moved at random within its
    share."""
    places, before = [], 200
    for length in lengths:
        share = (length * 0.98 - before) / each
        places += [int(before + share * (n + rng.random() * 0.6)) for n in range(each)]
        before = length
    return places


def _hay(encode: Encode, data: Path | None, rng: Random) -> Iterator[list[int]]:
    """Ids of paragraphs of books; of the task's own five sentences where there is no data."""
    if data is None:
        yield from cycle([encode(" " + " ".join(FILLER))])
    else:
        for name in cycle(rng.sample(BOOKS, len(BOOKS))):
            for paragraph in book(data, name).split("\n\n"):
                yield encode(" ".join(paragraph.split()) + "\n\n")


def _pairs(data: Path | None, rng: Random) -> Iterator[tuple[str, str]]:
    """The data set's pairs, record after record, and then made-up ones."""
    if data is not None:
        for line in read_gzip(data / "kv_retrieval" / "kv_75_keys.jsonl.gz").splitlines():
            yield from json.loads(line)["ordered_kv_records"]
    while True:
        yield _uuid(rng), _uuid(rng)


def _uuid(rng: Random) -> str:
    return str(UUID(int=rng.getrandbits(128), version=4))
