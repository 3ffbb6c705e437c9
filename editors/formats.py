"""Files of edits: JSON lines and CSV, with our own field names or those of ZsRE and CounterFact.

A line that is no edit is told apart with its number and field, and hides none of the others.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .base import Edit

TARGETS = ("target", "target_new", "alt")
PARAPHRASES = ("paraphrases", "rephrase_prompt", "rephrase", "paraphrase_prompts")
PAIRS = (("locality_prompt", "locality_ground_truth"), ("loc", "loc_ans"))
"""Fields of a prompt whose answer must not move, and of that answer."""
PROMPTS = ("loc_prompt", "neighborhood_prompts")
"""Fields of prompts whose answers must not move, and are not told."""
COLUMNS = ("prompt", "target", "subject", "paraphrases", "locality")
"""Of a CSV file as it is written here; lists are JSON in their cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """A line that is no edit.

    Args:
        field: in which something is wrong; "" if it is the line as a whole.
    """

    line: int
    field: str
    why: str

    def __str__(self) -> str:
        field = f", field {self.field!r}" if self.field else ""
        return f"line {self.line}{field}: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EditFile:
    """What a file holds, in its order."""

    edits: tuple[Edit, ...]
    bad: tuple[BadLine, ...]


class BadField(Exception):
    """What is wrong with a field of a line; `field` is "" if it is the line as a whole."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(why)
        self.field, self.why = field, why


def read_edits(path: Path) -> EditFile:
    """Read a `.jsonl`, `.json` (one list) or `.csv` file, or one of these with `.gz` behind.

    Raises:
        InputError: it cannot be read at all, or is of another kind.
    """
    edits: list[Edit] = []
    bad: list[BadLine] = []
    for line, row in rows_of(path):
        try:
            edits.append(_edit(row))
        except BadField as error:
            bad.append(BadLine(line=line, field=error.field, why=error.why))
    return EditFile(edits=tuple(edits), bad=tuple(bad))


def rows_of(path: Path) -> Iterator[tuple[int, Any]]:
    """Lines of a file with their numbers: fields by name, or a `BadField`.

    Raises:
        InputError: it cannot be read at all, or is of another kind.
    """
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    readers = {".jsonl": _json_lines, ".json": _json_list, ".csv": _csv_rows}
    if kind not in readers:
        raise InputError(
            f"file={str(path)!r} must end in one of {sorted(readers)}, or one of"
            " these with .gz behind"
        )
    yield from readers[kind](text_of(path), path)


def write_edits(path: Path, edits: Iterable[Edit]) -> None:
    """Write a `.jsonl` or `.csv` file that `read_edits` reads back.

    Raises:
        InputError: another ending, or the file cannot be written.
    """
    rows = [{name: value for name, value in asdict(edit).items() if value} for edit in edits]
    if path.suffix not in (".jsonl", ".csv"):
        raise InputError(f"file={str(path)!r} must end in .jsonl or .csv")
    text = io.StringIO()
    if path.suffix == ".jsonl":
        text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        table = csv.DictWriter(text, COLUMNS)
        table.writeheader()
        table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    try:
        path.write_bytes(text.getvalue().encode())
    except OSError as error:
        raise InputError(f"file={str(path)!r} cannot be written: {error.strerror}") from None


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def text_of(path: Path) -> str:
    """A UTF-8 file, also with `.gz` behind.

    Raises:
        InputError: it cannot be read.
    """
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"file={str(path)!r} is not UTF-8 (byte {error.start}); convert it"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"file={str(path)!r} cannot be read: {error}") from None


def _json_lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    for line, part in enumerate(text.split("\n"), start=1):
        if part.strip():
            try:
                yield line, json.loads(part)
            except ValueError as error:
                yield line, BadField("", f"is not JSON: {error}")


def _json_list(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise InputError(f"file={str(path)!r} is not JSON: {error}") from None
    if not isinstance(rows, list):
        raise InputError(f"file={str(path)!r} must be a list of edits; give one per line as .jsonl")
    yield from enumerate(rows, start=1)


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield rows.line_num, BadField("", f"is not CSV: {error}")
            return
        if header is None:
            header = cells
        elif len(cells) > len(header):
            why = f"has {len(cells)} cells and the header {len(header)}; quote cells with commas"
            yield rows.line_num, BadField("", why)
        elif cells:
            named = zip(header, cells, strict=False)
            yield rows.line_num, {name: _value(name, cell) for name, cell in named if cell}


def _value(name: str, cell: str) -> Any:
    """A cell; one that is JSON where lists may stand is read as such."""
    if name in (*PARAPHRASES, *PROMPTS, "locality") and cell.lstrip().startswith("["):
        try:
            return json.loads(cell)
        except ValueError:
            return cell
    return cell


def _edit(row: Any) -> Edit:
    if isinstance(row, BadField):
        raise row
    if not isinstance(row, Mapping):
        raise BadField("", f"must be an object with named fields, not {type(row).__name__}")
    row = _flat(row)
    target = next((name for name in TARGETS if row.get(name) is not None), "target")
    prompt, subject = _word(row, "prompt"), row.get("subject")
    if subject is not None and not isinstance(subject, str):
        raise BadField("subject", f"must be a text, not {type(subject).__name__}")
    if subject and "{}" in prompt:
        prompt = prompt.replace("{}", subject, 1)
    answer, held = _word(row, target), tuple(_locality(row))
    others = tuple(text for name in PARAPHRASES for text in texts_of(row, name))
    try:
        return Edit(
            prompt=prompt,
            target=answer,
            subject=subject or None,
            paraphrases=others,
            locality=held,
        )
    except InputError as error:
        field = str(error).partition("=")[0].partition(" ")[0]
        raise BadField(target if field == "target" else field, str(error)) from None


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """CounterFact as it was published nests the edit."""
    nested = row.get("requested_rewrite")
    flat = {**row, **nested} if isinstance(nested, Mapping) else dict(row)
    target = flat.get("target_new")
    if isinstance(target, Mapping):
        flat["target_new"] = target.get("str")
    return flat


def _word(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        known = f"one of {TARGETS}" if name in TARGETS else "it"
        raise BadField(name, f"is missing; give {known}")
    if not isinstance(value, str):
        raise BadField(name, f"must be a text, not {type(value).__name__}")
    return value


def texts_of(row: Mapping[str, Any], name: str) -> list[str]:
    """A field that holds a text, or several.

    Raises:
        BadField: it holds something else.
    """
    value = row.get(name)
    several = [value] if isinstance(value, str) else value or []
    if not isinstance(several, list) or not all(isinstance(each, str) for each in several):
        raise BadField(name, "must be a text, or a list of texts")
    return [each for each in several if each]


def _locality(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    own = row.get("locality") or []
    if not isinstance(own, list):
        raise BadField("locality", "must be a list of [prompt, answer]")
    for each in own:
        pair = [each, ""] if isinstance(each, str) else each
        if not (isinstance(pair, list) and len(pair) == 2 and all(map(_is_text, pair))):
            raise BadField("locality", f"has {each!r}, and must be a list of [prompt, answer]")
        yield pair[0], pair[1]
    for prompt, answer in PAIRS:
        if row.get(prompt) is not None:
            yield _word(row, prompt), _word({answer: "", **row}, answer)
    for name in PROMPTS:
        yield from ((text, "") for text in texts_of(row, name))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
