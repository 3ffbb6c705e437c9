"""Conversations at whose end something is asked: two of SirLLM's tasks (arXiv 2405.12528,
section 4); the third is a game (`rock_paper_scissors.py`).

Made by the paper's record format from material of our own, or from sets of the data folder.
Everything made is a function of the random generator it is given. Knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ...errors import InputError
from .dialogue import read_gzip
from .quiz_material import GROCERIES, QUESTIONS

DISTRACTORS = 20
OPTIONS = 4

MOST_QUESTION, MOST_CHOICE = 140, 40
"""Characters of an MMLU question and of each of its choices, so that all turns are short."""

LEAST_TURNS = 12
"""Of a DailyDialog conversation, so that there is something to forget."""

Turn = tuple[str, str]
"""What the user says, and what the assistant answers."""


@dataclass(frozen=True, slots=True)
class Quiz:
    """A conversation and a question at its end, scored by which option a model would rather say.

    Args:
        question: the user's last message.
        cue: how the assistant's reply begins; an option goes on from there.
        options: of which `options[answer]` is right.
        facts: by name, a turn and the words in what the user says there that have to be kept.
    """

    turns: tuple[Turn, ...]
    question: str
    cue: str
    options: tuple[str, ...]
    answer: int
    facts: dict[str, tuple[int, str]]


def grocery(rng: Random, pool: Sequence[Sequence[str]], *, late: bool = False) -> Quiz:
    """One thing to buy, twenty questions on other things, and what was to be bought.

    Args:
        pool: questions, each with its answer and some that are wrong.
        late: a second thing is told three turns before the end.
    """
    items = rng.sample(GROCERIES, OPTIONS + 1)
    item, other, options = items[0], items[-1], items[:OPTIONS]
    rng.shuffle(options)
    turns = [_told(item)]
    turns += [_asked(rng, *row) for row in rng.sample(list(pool), DISTRACTORS)]
    facts = {"first": (0, item)}
    if late:
        turns.insert(len(turns) - 2, _told(other))
        facts["late"] = (len(turns) - 3, other)
    return Quiz(
        turns=tuple(turns),
        question="What is the GROCERY I want you to buy?",  # options would be copied
        cue="The GROCERY you want me to buy is: [",
        options=tuple(f"{option}]" for option in options),
        answer=options.index(item),
        facts=facts,
    )


def _told(item: str) -> Turn:
    return f"I want you to buy the GROCERY: [{item}].", "OK"


def _asked(rng: Random, question: str, answer: str, *wrong: str) -> Turn:
    options = [answer, *wrong]
    rng.shuffle(options)
    return choices(question, options), answer


def choices(question: str, options: Sequence[str]) -> str:
    """A question with its options, a letter each."""
    return "\n".join([question, *(f"{chr(65 + n)}. {each}" for n, each in enumerate(options))])


def distractors(data: Path | None) -> Sequence[Sequence[str]]:
    """Short questions of MMLU (Hendrycks et al. 2021, MIT) where there is a data folder, our own
    elsewhere; each with its answer first."""
    if data is None:
        return QUESTIONS
    lines = read_gzip(data / "mmlu" / "mmlu_test_subset.jsonl.gz").splitlines()
    found = []
    for row in map(json.loads, lines):
        question, choices = row["question"].strip(), [each.strip() for each in row["choices"]]
        short = len(question) <= MOST_QUESTION and max(map(len, choices)) <= MOST_CHOICE
        if short and "\n" not in question:
            right = choices.pop(row["answer"])
            found.append((question, right, *choices))
    return found


def daily_dialogs(data: Path, rng: Random, count: int) -> list[Quiz]:
    """Real conversations of DailyDialog (Li et al. 2017), each reply chosen from four, three of
    which are from elsewhere. The last one is asked for, without its options: they would be copied.

    Raises:
        InputError: there are fewer than `count` that are long enough.
    """
    lines = read_gzip(data / "dailydialog" / "dailydialog.jsonl.gz").splitlines()
    dialogs = [json.loads(line)["turns"] for line in lines]
    long = [each for each in dialogs if len(each) >= LEAST_TURNS]
    if len(long) < count:
        raise InputError(
            f"dailydialog has {len(long)} conversations of {LEAST_TURNS} turns, and {count} were"
            " asked for; ask for fewer"
        )
    replies = sorted({turn for each in dialogs for turn in each})
    return [_daily(rng, each, replies) for each in rng.sample(long, count)]


def _daily(rng: Random, dialog: Sequence[str], replies: Sequence[str]) -> Quiz:
    asked = []
    for at in range(0, len(dialog) - 1, 2):
        wrong = rng.sample([each for each in rng.sample(replies, 8) if each not in dialog], 3)
        options = [dialog[at + 1], *wrong]
        rng.shuffle(options)
        asked.append((choices(dialog[at], options), options))
    turns = tuple((text, dialog[2 * n + 1]) for n, (text, _) in enumerate(asked[:-1]))
    at, options = 2 * len(turns), asked[-1][1]
    answer = options.index(dialog[at + 1])
    return Quiz(turns, dialog[at], "", tuple(options), answer, {})
