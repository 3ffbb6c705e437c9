"""Conversations and documents to measure on: made from `material.py`, or read from a data folder.

Everything made is a function of the random generator it is given. Knows nothing of agents.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from ...errors import InputError
from ...memory.record import Record, Scope
from .material import DEEDS, EVENTS, FACTS, PEOPLE, PLACES, SMALL_TALK, TOPICS

LAST_FILLERS = 5
"""Turns at the end that are never evidence, so that looking at the last few cannot help."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A question, the ids of the turns that answer it, and a word that a right answer contains."""

    question: str
    evidence: frozenset[str]
    keyword: str = ""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Turns by id, in order, each a user's and an assistant's message; and what is asked later."""

    turns: Mapping[str, tuple[str, str]]
    probes: tuple[Probe, ...]

    def texts(self) -> dict[str, str]:
        """Turn id -> both messages as one text, as a retriever would index it."""
        return {key: f"{said}\n{reply}" for key, (said, reply) in self.turns.items()}

    def ages(self) -> list[int]:
        """For each probe, how many turns ago its latest evidence was said."""
        place = {key: index for index, key in enumerate(self.turns)}
        return [len(place) - max(place[key] for key in p.evidence) for p in self.probes]


def needle_dialogue(rng: Random, *, facts: int = 20, fillers: int = 120) -> Dialogue:
    """Unique facts among small talk; the probes come in pairs, two for each fact."""
    small_talk = [
        (ask.format(topic=topic), reply.format(topic=topic, answer=answer))
        for topic, *answers in TOPICS
        for (ask, reply), answer in zip(SMALL_TALK, answers, strict=True)
    ]
    chatter = rng.sample(small_talk, fillers)
    needles = rng.sample(FACTS, facts)
    body = len(chatter) + len(needles) - min(LAST_FILLERS, fillers)
    at = dict(zip(rng.sample(range(body), len(needles)), needles, strict=True))
    rest = iter(chatter)
    turns = [
        (at[n].said, at[n].reply) if n in at else next(rest)
        for n in range(len(chatter) + len(needles))
    ]
    return Dialogue(
        turns={turn_id(n): turn for n, turn in enumerate(turns)},
        probes=tuple(
            Probe(question, frozenset({turn_id(n)}), fact.keyword)
            for n, fact in sorted(at.items())
            for question in fact.questions
        ),
    )


def turn_id(place: int) -> str:
    """The id of the turn at a place, from 0."""
    return f"t{place:04}"


def records(
    turns: Mapping[str, tuple[str, str]], scope: Scope, *, minutes_apart: float = 5
) -> Iterator[Record]:
    """A conversation that was held elsewhere, as the ledger takes it. `meta["turn"]` is its id."""
    start = datetime.now(UTC) - timedelta(minutes=minutes_apart * (len(turns) + 1))
    for place, (key, (said, reply)) in enumerate(turns.items()):
        when = start + timedelta(minutes=minutes_apart * place)
        user = Record(text=said, scope=scope, created=when, meta={"turn": key})
        yield user
        yield Record(
            text=reply,
            scope=scope,
            role="assistant",
            source="assistant",
            parents=(user.id,),
            created=when,
            meta={"turn": key},
        )


def book(data: Path, name: str) -> str:
    """A public-domain book of the data folder, such as `the_time_machine_35`.

    Raises:
        InputError: it is not there.
    """
    return read_gzip(data / "books" / f"{name}.txt.gz")


def read_gzip(path: Path) -> str:
    """A gzipped UTF-8 text.

    Raises:
        InputError: there is no such file.
    """
    if not path.is_file():
        raise InputError(
            f"--data has no {path.parent.name}/{path.name}; point it at the folder of data sets"
        )
    return gzip.decompress(path.read_bytes()).decode()


def chronicle(rng: Random, sections: int = 24) -> str:
    """A made-up chronicle, about 120 tokens a section; its places recur, its people change."""
    years = sorted(rng.sample(range(1601, 1799), sections))
    return "\n\n".join(_section(rng, year) for year in years)


def _section(rng: Random, year: int) -> str:
    place, other = rng.sample(PLACES, 2)
    first, second = rng.sample(PEOPLE, 2)
    event, later = rng.sample(EVENTS, 2)
    deeds = rng.sample(DEEDS, 3)
    return (
        f"In the year {year} {event}, and nowhere was it felt more than in {place}. There {first}"
        f" {deeds[0]}, while {second} {deeds[1]}. The people of {other} heard of it within days and"
        f" sent two carts with bread and blankets. Before the year was out {later}, and old men"
        f" said that {place} had seen worse. It was {first} who {deeds[2]}, and when the spring"
        f" came {second} was still living in {other}, in the house beside the mill."
    )


def key_names(text: str, limit: int = 20) -> list[str]:
    """The names that a text uses most: capitalised words that never stand in lower case, counted
    where they do not begin a sentence. A summary that keeps them keeps who and where."""
    common = set(re.findall(r"\b[a-z]+\b", text))
    inside = re.findall(r"(?<=[a-z,;] )[A-Z][a-z]{2,}", text)
    counted = Counter(word for word in inside if word.lower() not in common)
    return [word for word, _ in counted.most_common(limit)]


def coverage(names: Sequence[str], text: str) -> float:
    """Share of the names that occur in a text."""
    return sum(name in text for name in names) / len(names) if names else 0.0
