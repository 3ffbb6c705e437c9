"""Files of edits: written and read back, known field names understood, bad lines told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from palimpsest.editors.base import Edit
from palimpsest.editors.formats import read_edits, write_edits
from palimpsest.errors import InputError

words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
said = words.filter(str.strip)
pairs = st.tuples(said, st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8))
edits = st.builds(
    lambda subject, rest, target, paraphrases, locality, named: Edit(
        prompt=f"{subject} {rest}",
        target=target,
        subject=subject if named else None,
        paraphrases=tuple(paraphrases),
        locality=tuple(locality),
    ),
    said,
    words,
    said,
    st.lists(said, max_size=3),
    st.lists(pairs, max_size=3),
    st.booleans(),
)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(given_=st.lists(edits, max_size=4))
def test_what_is_written_is_read_back(tmp_path: Path, ending: str, given_: list[Edit]) -> None:
    file = tmp_path / f"edits.{ending}"
    write_edits(file, given_)
    found = read_edits(file)
    assert list(found.edits) == given_ and not found.bad


def read(tmp_path: Path, *rows: Any, name: str = "edits.jsonl") -> Any:
    file = tmp_path / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    file.write_text("\n".join(lines), encoding="utf-8")
    return read_edits(file)


def test_the_fields_of_zsre_are_understood(tmp_path: Path) -> None:
    row = {
        "id": 6,
        "subject": "Lola Beeth",
        "prompt": "What voice type is Lola Beeth?",
        "target_new": "mezzo",
        "rephrase_prompt": "What sort of voice is Lola Beeth?",
        "locality_prompt": "nq question: who won",
        "locality_ground_truth": "the home side",
        "loc_prompt": "nq question: when was it 1949",
    }
    assert read(tmp_path, row).edits == (
        Edit(
            prompt="What voice type is Lola Beeth?",
            target="mezzo",
            subject="Lola Beeth",
            paraphrases=("What sort of voice is Lola Beeth?",),
            locality=(
                ("nq question: who won", "the home side"),
                ("nq question: when was it 1949", ""),
            ),
        ),
    )


def test_the_fields_of_counterfact_are_understood_flat_and_nested(tmp_path: Path) -> None:
    flat = {
        "case_id": 0,
        "prompt": "The mother tongue of Danielle Darrieux is",
        "target_new": "English",
        "subject": "Danielle Darrieux",
        "ground_truth": "French",
        "rephrase_prompt": "Danielle Darrieux speaks",
    }
    nested = {
        "case_id": 0,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "subject": "Danielle Darrieux",
            "target_new": {"str": "English", "id": "Q1860"},
        },
        "paraphrase_prompts": ["Danielle Darrieux speaks"],
    }
    one, other = read(tmp_path, flat, nested).edits
    assert one == other and one.target == "English"
    file = tmp_path / "edits.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(flat).encode()))
    assert read_edits(file).edits == (one,)
    assert read(tmp_path, [flat, nested], name="edits.json").edits == (one, one)


@pytest.mark.parametrize(
    ("row", "field", "why"),
    [
        ({"target": "Y"}, "prompt", "is missing"),
        ({"prompt": "X"}, "target", "one of ('target', 'target_new', 'alt')"),
        ({"prompt": "X", "target_new": " "}, "target_new", "says nothing"),
        ({"prompt": "X", "target": 3}, "target", "must be a text, not int"),
        ({"prompt": "X", "target": "Y", "subject": "Z"}, "subject", "does not occur in prompt"),
        ({"prompt": "X", "target": "Y", "subject": 1}, "subject", "must be a text, not int"),
        ({"prompt": "X", "target": "Y", "paraphrases": [1]}, "paraphrases", "a list of texts"),
        ({"prompt": "X", "target": "Y", "paraphrases": [" "]}, "paraphrases", "says nothing"),
        ({"prompt": "X", "target": "Y", "locality": [["a"]]}, "locality", "[prompt, answer]"),
        (["X", "Y"], "", "must be an object with named fields, not list"),
        ('{"prompt": "X",', "", "is not JSON"),
    ],
)
def test_a_bad_line_is_told_with_its_number_and_field_and_hides_no_other(
    tmp_path: Path, row: Any, field: str, why: str
) -> None:
    good = {"prompt": "A", "target": "B"}
    found = read(tmp_path, good, "", row, good)
    assert found.edits == (Edit(prompt="A", target="B"),) * 2
    [bad] = found.bad
    assert (bad.line, bad.field) == (3, field) and why in bad.why
    assert str(bad).startswith("line 3")


def test_a_row_of_too_many_cells_is_told(tmp_path: Path) -> None:
    found = read(tmp_path, "prompt,target", "A,B", "A,B,C", name="edits.csv")
    assert len(found.edits) == 1 and "has 3 cells and the header 2" in found.bad[0].why
    assert read(tmp_path, "prompt,target", 'A,"B', name="edits.csv").bad[0].line == 2


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("edits.txt", b"", "must end in one of"),
        ("edits.jsonl", b"\xff", "is not UTF-8"),
        ("edits.json", b"{}", "must be a list of edits"),
        ("edits.json", b"{", "is not JSON"),
        ("edits.csv.gz", b"no", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: bytes, why: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=why):
        read_edits(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_edits(tmp_path / "none.jsonl")
