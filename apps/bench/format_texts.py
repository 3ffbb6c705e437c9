"""What storage formats are measured on: documents, and texts of facts with questions about them.

Knows nothing of caches.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ...errors import InputError
from .dialogue import book, chronicle
from .material import PEOPLE, SMALL_TALK, TOPICS
from .setting import Setting

BOOKS = ("pride_and_prejudice_1342", "the_adventures_of_sherlock_holmes_1661")

KINDS = {
    "favourite animal": ("fox", "horse", "eagle", "whale", "tiger", "rabbit", "spider", "goat"),
    "home town": ("Paris", "London", "Rome", "Berlin", "Vienna", "Madrid", "Dublin", "Moscow"),
}
"""What is told of each person, and the values it may have: one token each, by most vocabularies."""

PEOPLE_TOLD = 4
"""People that a text tells of; all of them are asked about, in both sets of questions."""


@dataclass(frozen=True, slots=True)
class Cloze:
    """The start of a sentence, and its possible ends, the right one first."""

    start: str
    ends: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """A text of facts among small talk, and two sets of questions, none of which it mentions."""

    text: str
    first: tuple[Cloze, ...]
    second: tuple[Cloze, ...]


def documents(setting: Setting, count: int) -> Iterator[tuple[str, str]]:
    """A source and a text of some 2,000 words each: dialogues and books by turns if there is data,
    else a chronicle of our own making."""
    rng = setting.rng("documents")
    for nth in range(count):
        if setting.data is None:
            yield "a made-up chronicle", chronicle(rng, 24)
        elif nth % 2 == 0:
            yield "dailydialog", _dialogues(setting.data, rng)
        else:
            name = BOOKS[nth // 2 % len(BOOKS)]
            words = book(setting.data, name).split()
            start = rng.randrange(len(words) - 2_000)
            yield name, " ".join(words[start : start + 2_000])


def _dialogues(data: Path, rng: Random) -> str:
    path = data / "dailydialog" / "dailydialog.jsonl.gz"
    if not path.is_file():
        raise InputError(f"--data has no {path.parent.name}/{path.name}; point it at the data sets")
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    said = (json.loads(line)["turns"] for line in rng.sample(lines, 40))
    return "\n\n".join("\n".join(turns) for turns in said)


def facts(rng: Random, long_enough: Callable[[str], bool]) -> Facts:
    """Two facts on each of four people, and small talk around them until it is long enough; the
    end is small talk.

    Args:
        long_enough: whether a text, without its end, has the length that is wanted.
    """
    people = rng.sample(PEOPLE, PEOPLE_TOLD)
    values = {kind: rng.sample(words, PEOPLE_TOLD) for kind, words in KINDS.items()}
    told = [
        f"{_start(kind, person)} {value}."
        for kind, drawn in values.items()
        for person, value in zip(people, drawn, strict=True)
    ]
    talk = _small_talk(rng)
    said = rng.sample(told, len(told))
    while not long_enough("\n".join(said)):
        said.insert(rng.randrange(len(said) + 1), next(talk))
    text = "\n".join([*said, *(next(talk) for _ in range(8))])

    def asked(kind: str) -> tuple[Cloze, ...]:
        drawn = values[kind]
        return tuple(
            Cloze(f"\n{_start(kind, person)}", _ends(drawn, own))
            for person, own in zip(people, drawn, strict=True)
        )

    first, second = rng.sample(list(KINDS), 2)
    return Facts(text, asked(first), asked(second))


def _start(kind: str, person: str) -> str:
    return (
        f"The {kind} of {person} is the"
        if kind.endswith("animal")
        else f"The {kind} of {person} is"
    )


def _ends(values: Sequence[str], own: str) -> tuple[str, ...]:
    """A person's own, and those of the others."""
    return tuple(f" {value}" for value in (own, *(value for value in values if value != own)))


def _small_talk(rng: Random) -> Iterator[str]:
    """Without end, each piece once before any comes again."""
    pieces = [
        f"{ask.format(topic=topic)} {reply.format(topic=topic, answer=answer)}"
        for topic, *answers in TOPICS
        for (ask, reply), answer in zip(SMALL_TALK, answers, strict=True)
    ]
    while True:
        yield from rng.sample(pieces, len(pieces))
