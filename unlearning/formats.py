"""Files of what is to be forgotten: questions with their answers, or texts.

A line that holds nothing of the kind is told apart with its number and field, and hides no other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..editors.formats import BadField, BadLine, rows_of, text_of, texts_of
from ..errors import InputError
from .base import Sample

QUESTIONS = ("question", "prompt")
ANSWERS = ("answer", "text", "completion")
PARAPHRASES = ("paraphrases", "paraphrase", "paraphrased_question")

KINDS = (".csv", ".json", ".jsonl", ".txt")

_BETWEEN = re.compile(r"\n(?:[ \t]*\n)+")
"""Between paragraphs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFile:
    """What a file holds, in its order."""

    samples: tuple[Sample, ...]
    bad: tuple[BadLine, ...]


def read_samples(path: Path) -> SampleFile:
    """Read a `.jsonl`, `.json` (one list) or `.csv` file with a question and its answer, or a
    text, on each line; or a `.txt` file of paragraphs, or of lines where no line is empty. Also
    with `.gz` behind.

    Raises:
        InputError: it cannot be read at all, or is of another kind.
    """
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind not in KINDS:
        raise InputError(
            f"file={str(path)!r} must end in one of {list(KINDS)}, or one of these with .gz behind"
        )
    if kind == ".txt":
        return SampleFile(samples=tuple(_of_text(text_of(path))), bad=())
    samples: list[Sample] = []
    bad: list[BadLine] = []
    for line, row in rows_of(path):
        try:
            samples.append(_sample(row))
        except BadField as error:
            bad.append(BadLine(line=line, field=error.field, why=str(error)))
    return SampleFile(samples=tuple(samples), bad=tuple(bad))


def _of_text(text: str) -> list[Sample]:
    whole = text.replace("\r\n", "\n").strip()
    parts = _BETWEEN.split(whole) if _BETWEEN.search(whole) else whole.split("\n")
    return [Sample(answer=" ".join(part.split())) for part in parts if part.strip()]


def _sample(row: Any) -> Sample:
    if isinstance(row, BadField):
        raise row
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, Mapping):
        raise BadField("", f"must be an object with named fields, not {type(row).__name__}")
    name = next((each for each in ANSWERS if row.get(each) is not None), "answer")
    answer = _word(row, name)
    asks = next((each for each in QUESTIONS if row.get(each) is not None), None)
    question = _word(row, asks) if asks else ""
    others = tuple(text for each in PARAPHRASES for text in texts_of(row, each))
    try:
        return Sample(answer=answer, question=question, paraphrases=others)
    except InputError as error:
        raise BadField(name, str(error)) from None


def _word(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        raise BadField(name, f"is missing; give one of {ANSWERS}")
    if not isinstance(value, str):
        raise BadField(name, f"must be a text, not {type(value).__name__}")
    return value
