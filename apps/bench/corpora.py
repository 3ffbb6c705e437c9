"""Data sets of texts and of questions on them whose evidence is stated, all in one form.

Knows nothing of how evidence is searched for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from ...errors import InputError
from ...memory.record import Scope
from ...memory.search.base import Entry
from .dialogue import read_gzip

LONG_AGO = datetime(2024, 1, 1, tzinfo=UTC)
"""When texts were said that have no date."""

PAUSE = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Utterance:
    """What somebody said, or a stretch of a document.

    Args:
        speaker: a name, or empty.
        role: "user" or "assistant", or empty for a document.
    """

    id: str
    text: str
    session: str
    when: datetime
    speaker: str = ""
    role: str = ""

    @property
    def line(self) -> str:
        """As a library that knows no speakers is given it."""
        return f"{self.speaker}: {self.text}" if self.speaker else self.text

    def entry(self, owner: str) -> Entry:
        """As our index is given it."""
        meta = {"speaker": self.speaker, "role": self.role}
        return Entry(
            id=f"{owner}:{self.id}",
            text=self.text,
            scope=Scope(user=owner, session=self.session),
            created=self.when,
            meta={key: value for key, value in meta.items() if value},
        )


@dataclass(frozen=True, slots=True)
class Question:
    """A question, the ids of the utterances that answer it, and when it is asked.

    Args:
        kind: the data set's own name for this kind of question.
    """

    text: str
    evidence: frozenset[str]
    asked: datetime
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Corpus:
    """One person's history, or some documents, and the questions on it."""

    name: str
    said: tuple[Utterance, ...]
    questions: tuple[Question, ...]

    @property
    def sessions(self) -> dict[str, str]:
        """Utterance id -> session."""
        return {each.id: each.session for each in self.said}


def locomo(data: Path) -> Iterator[Corpus]:
    """LoCoMo's conversations (Maharana et al. 2024): two people over months. Adversarial questions
    (category 5) have no answer and are left out, and so are the few with a malformed evidence id.
    What a picture shows stands behind the words it was sent with.

    Raises:
        InputError: the folder has no LoCoMo.
    """
    for line in read_gzip(data / "locomo" / "locomo.jsonl.gz").splitlines():
        sample = json.loads(line)
        said = tuple(_locomo_turns(sample["conversation"]))
        ids = {each.id for each in said}
        yield Corpus(
            sample["sample_id"],
            said,
            tuple(
                Question(qa["question"], frozenset(qa["evidence"]), said[-1].when, str(kind))
                for qa in sample["qa"]
                if (kind := qa["category"]) != 5
                and qa["evidence"]
                and ids.issuperset(qa["evidence"])
            ),
        )


def _locomo_turns(conversation: Mapping[str, Any]) -> Iterator[Utterance]:
    for key in sorted(filter(re.compile(r"session_\d+").fullmatch, conversation), key=_number):
        when = datetime.strptime(conversation[f"{key}_date_time"], "%I:%M %p on %d %B, %Y")
        for place, turn in enumerate(conversation[key]):
            shown = f" [{turn['blip_caption']}]" if turn.get("blip_caption") else ""
            at = when.replace(tzinfo=UTC) + place * PAUSE
            yield Utterance(turn["dia_id"], turn["text"] + shown, key, at, turn["speaker"], "user")


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])


def longmemeval(data: Path, rng: Random) -> Iterator[Corpus]:
    """LongMemEval's oracle sessions (Wu et al. 2024), those of 4 to 40 questions put together to
    histories of different lengths. Questions without an answer are left out."""
    path = data / "longmemeval_oracle" / "longmemeval_oracle.jsonl.gz"
    rows = [json.loads(line) for line in read_gzip(path).splitlines()]
    rows = [row for row in rows if not row["question_id"].endswith("_abs")]
    rng.shuffle(rows)
    for name, part in _parts(rows, (4, 12, 4, 40, 4, 12)):
        said: dict[str, Utterance] = {}
        questions = []
        for row in part:
            evidence = set()
            sessions = (row[f"haystack_{what}"] for what in ("session_ids", "dates", "sessions"))
            for session, date, turns in zip(*sessions, strict=True):
                for place, turn in enumerate(turns):
                    id = f"{session}:{place}"
                    if turn["content"].strip():
                        when = _lme_time(date) + place * PAUSE
                        text = turn["content"].replace("\0", " ")
                        said[id] = Utterance(id, text, session, when, role=turn["role"])
                        evidence |= {id} if turn.get("has_answer") else set()
            if evidence:
                asked = _lme_time(row["question_date"])
                kind = row["question_type"]
                questions.append(Question(row["question"], frozenset(evidence), asked, kind))
        yield Corpus(f"longmemeval-{name}", tuple(said.values()), tuple(questions))


def _lme_time(text: str) -> datetime:
    return datetime.strptime(text, "%Y/%m/%d (%a) %H:%M").replace(tzinfo=UTC)


def xquad(data: Path, rng: Random) -> Iterator[Corpus]:
    """XQuAD's English paragraphs (Artetxe et al. 2020), sentence by sentence."""
    rows = [json.loads(line) for line in _lines(data / "squad_xquad_en" / "xquad_en.jsonl")]
    rng.shuffle(rows)
    for name, part in _parts(rows, (5, 10, 20, 40)):
        said, questions = [], []
        for place, row in enumerate(part):
            starts = [0, *(m.end() for m in re.finditer(r"[.!?]\s+(?=[A-Z\"“])", row["context"]))]
            ends = [*starts[1:], None]
            texts = [row["context"][s:e].strip() for s, e in zip(starts, ends, strict=True)]
            said += list(_document(str(place), place, texts))
            for qa in row["qas"]:
                spots = {
                    max(n for n, start in enumerate(starts) if start <= answer["answer_start"])
                    for answer in qa["answers"]
                }
                evidence = frozenset(f"{place}:{n}" for n in spots)
                questions.append(Question(qa["question"].strip(), evidence, _later()))
        yield Corpus(f"xquad-{name}", tuple(said), tuple(questions))


def timeqa(data: Path, rng: Random, articles: int = 75) -> Iterator[Corpus]:
    """TimeQA's human questions on Wikipedia articles (Chen et al. 2021), paragraph by paragraph."""
    path = data / "timeqa_human" / "timeqa_human.jsonl.gz"
    rows = [json.loads(line) for line in read_gzip(path).splitlines()]
    for name, part in _parts(rng.sample(rows, articles), (5, 10, 25)):
        said, questions = [], []
        for place, row in enumerate(part):
            said += list(_document(str(place), place, row["paras"]))
            for question, answers in row["questions"]:
                evidence = frozenset(f"{place}:{a['para']}" for a in answers if a.get("answer"))
                if evidence:
                    questions.append(Question(question, evidence, _later()))
        yield Corpus(f"timeqa-{name}", tuple(said), tuple(questions))


def _document(id: str, day: int, texts: Sequence[str]) -> Iterator[Utterance]:
    for n, text in enumerate(texts):
        if text.strip():
            when = LONG_AGO + timedelta(days=day) + n * PAUSE
            yield Utterance(f"{id}:{n}", text, id, when)


def _later() -> datetime:
    return LONG_AGO + timedelta(days=400)


def _parts(rows: Sequence[Any], sizes: Sequence[int]) -> Iterator[tuple[int, Sequence[Any]]]:
    """The rows in parts of these sizes, over and over, numbered."""
    start = number = 0
    while start < len(rows):
        end = start + sizes[number % len(sizes)]
        yield number, rows[start:end]
        start, number = end, number + 1


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(
            f"--data has no {path.parent.name}/{path.name}; point it at the folder of data sets"
        )
    return path.read_text(encoding="utf-8").splitlines()
