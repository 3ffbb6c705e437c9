"""What unlearners are measured on: questions and answers a model is taught first, by who or what
they are about.

TOFU (Maini et al. 2024): fictitious authors, so that nothing of them is known before; and two tasks
of the O3 paper as multiple choice, ScienceQA without images and the domains of CLINC150.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

LETTERS = "ABCDE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A question with its answer.

    Args:
        topic: who or what it is about: an author, a subject, a domain.
        paraphrase: another way to ask.
        reworded: the answer in other words.
        wrong: answers of the same form that are not true.
        letters: of a multiple choice, how many letters there are to choose from.
        held_out: it is asked, and never taught or unlearnt.
    """

    topic: str
    question: str
    answer: str
    paraphrase: str = ""
    reworded: str = ""
    wrong: tuple[str, ...] = ()
    letters: int = 0
    held_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tofu:
    """TOFU, as far as it is taught.

    Args:
        requests: what is to be unlearnt, in order: forget01, and what forget05 and forget10
            add to it.
        retained: of other authors.
        authors, facts: of real ones, and of the world.
    """

    requests: tuple[tuple[Sample, ...], ...]
    retained: tuple[Sample, ...]
    authors: tuple[Sample, ...]
    facts: tuple[Sample, ...]

    @property
    def everything(self) -> tuple[Sample, ...]:
        """All that the model is taught."""
        return (*(each for part in self.requests for each in part), *self.known)

    @property
    def known(self) -> tuple[Sample, ...]:
        """All that it is to keep."""
        return (*self.retained, *self.authors, *self.facts)


def tofu(data: Path, retained: int | None = 36) -> Tofu:
    """The forget sets, and the first `retained` other authors (None: all)."""
    folder = data / "tofu"
    records = list(_records(folder / "tofu_full.jsonl.gz"))
    parts: dict[str, list[Sample]] = {"forget01": [], "forget05": [], "forget10": []}
    kept: dict[str, list[Sample]] = {}
    for record in records:
        sample = _tofu(record)
        names = [name for name in parts if name in record["splits"]]
        if names:
            parts[names[0]].append(sample)  # the splits contain one another, the smallest first
        else:
            kept.setdefault(sample.topic, []).append(sample)
    chosen = list(kept.values())[:retained]
    return Tofu(
        requests=tuple(tuple(part) for part in parts.values()),
        retained=tuple(sample for author in chosen for sample in author),
        authors=_asides(folder / "real_authors.jsonl", "real authors"),
        facts=_asides(folder / "world_facts.jsonl", "world facts"),
    )


def _tofu(record: Mapping[str, Any]) -> Sample:
    return Sample(
        topic=f"author {record['author']}",
        question=record["question"],
        answer=record["answer"],
        paraphrase=record.get("paraphrased_question") or "",
        reworded=record.get("paraphrased_answer") or "",
        wrong=tuple(record.get("perturbed_answer") or ()),
    )


def _asides(path: Path, topic: str) -> tuple[Sample, ...]:
    return tuple(
        Sample(
            topic=topic,
            question=record["question"],
            answer=record["answer"],
            wrong=tuple(record["perturbed_answer"]),
        )
        for record in _records(path)
    )


def science(data: Path, most: int | None = None, held_out: float = 0.3) -> list[Sample]:
    """ScienceQA without images, by subject; the first `most` of each."""
    path = data / "scienceqa_text" / "scienceqa_text_test.jsonl.gz"
    by: dict[str, list[Mapping[str, Any]]] = {}
    for record in _records(path):
        by.setdefault(record["subject"], []).append(record)
    samples = []
    for subject, records in by.items():
        for at, record in enumerate(records[:most]):
            context = f"Context: {record['context']}\n" if record["context"] else ""
            samples.append(
                _choice(
                    subject,
                    f"{context}Question: {record['question']}",
                    record["choices"],
                    record["answer"],
                    held_out=_every(at, held_out),
                )
            )
    return samples


def intents(data: Path, domains: Sequence[str], each: int, held_out: float = 0.3) -> list[Sample]:
    """CLINC150 as multiple choice: what a sentence asks for, of five intents of its domain."""
    by: dict[str, list[Mapping[str, Any]]] = {}
    for record in _records(data / "clinc150" / "clinc150.jsonl.gz"):
        by.setdefault(record["domain"], []).append(record)
    samples = []
    for domain in domains:
        draw = Random(f"clinc150:{domain}")
        names = sorted({record["intent"] for record in by[domain]})
        for at, record in enumerate(draw.sample(by[domain], each)):
            others = [name for name in names if name != record["intent"]]
            options = [record["intent"], *draw.sample(others, 4)]
            draw.shuffle(options)
            samples.append(
                _choice(
                    domain,
                    f'Question: What does this ask for?\n"{record["text"]}"',
                    [option.replace("_", " ") for option in options],
                    options.index(record["intent"]),
                    held_out=_every(at, held_out),
                )
            )
    return samples


def general(data: Path, most: int) -> list[Sample]:
    """Questions of MMLU, of all its subjects: what no request is about."""
    records = list(_records(data / "mmlu" / "mmlu_test_subset.jsonl.gz"))
    step = max(1, len(records) // most)
    return [
        _choice(
            "MMLU",
            f"Question: {record['question']}",
            record["choices"],
            record["answer"],
            held_out=True,
        )
        for record in records[::step][:most]
    ]


def _choice(
    topic: str, question: str, options: Sequence[str], right: int, *, held_out: bool
) -> Sample:
    listed = " ".join(
        f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)
    )
    answers = [f"The answer is {letter}." for letter, _ in zip(LETTERS, options, strict=False)]
    return Sample(
        topic=topic,
        question=f"{question}\nOptions: {listed}",
        answer=answers[right],
        wrong=tuple(answer for at, answer in enumerate(answers) if at != right),
        letters=len(options),
        held_out=held_out,
    )


def _every(at: int, share: float) -> bool:
    """Whether the one at this place is among an evenly spread share."""
    return int((at + 1) * share) > int(at * share)


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)
