"""The search of files: whatever was planted is found, wherever it lies and in whatever form."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from palimpsest.memory.erasures import Content
from palimpsest.memory.record import RecordId, content_hash
from palimpsest.unlearning.residue import BLOCK, STEP, Found, Needles

TEXT = 'Zoë keeps the "heron" key\nunder the third stone of the well in Évora.'
SALT = "0123456789abcdef" * 2
FORMS: dict[str, Callable[[str], bytes]] = {
    "UTF-8": str.encode,
    "UTF-16-LE": lambda text: text.encode("utf-16-le"),
    "UTF-16-BE": lambda text: text.encode("utf-16-be"),
    "JSON": lambda text: json.dumps(text).encode(),
    "JSON in UTF-8": lambda text: json.dumps(text, ensure_ascii=False).encode(),
    "on one line": lambda text: " ".join(text.split()).encode(),
    "small letters": lambda text: text.casefold().encode(),
}

one_folder = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40
)
telling = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=12, max_size=700
).filter(lambda text: len(set(text)) > 8)


def needles(text: str = TEXT) -> Needles:
    made = Needles()
    made.add(Content(RecordId("record"), text, content_hash(text), SALT))
    return made


def told(found: Found, made: Needles) -> set[tuple[str, str]]:
    """(file, whose) of what was found."""
    return {(hit.file, hit.of) for _, hit in made.hits(found)}


@pytest.mark.parametrize("form", FORMS)
@given(offset=st.integers(0, 3 * BLOCK), after=st.integers(0, 50))
@example(offset=BLOCK - 1, after=0)
@example(offset=BLOCK - 20, after=0)
@settings(one_folder, max_examples=12)
def test_a_text_is_found_in_every_form_at_any_offset(
    tmp_path: Path, form: str, offset: int, after: int
) -> None:
    (tmp_path / "file").write_bytes(bytes(offset) + FORMS[form](TEXT) + bytes(after))
    made = needles()
    found = made.search(tmp_path)
    assert told(found, made) == {("file", "record")}
    assert found.size == (tmp_path / "file").stat().st_size


@given(text=telling)
@one_folder
def test_any_telling_text_is_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_bytes(b"\xff\0" + text.encode() + b"\0\xff")
    made = needles(text)
    assert not made.unsearchable
    assert told(made.search(tmp_path), made) == {("file", "record")}


@given(data=st.data())
@one_folder
def test_a_part_of_a_text_left_in_a_page_is_found(tmp_path: Path, data: st.DataObject) -> None:
    text = "".join(f"{n * 7919 % 9973:05} " for n in range(400))
    size = STEP + 2 * 24
    start = data.draw(st.integers(0, len(text) - size), label="start")
    (tmp_path / "file").write_bytes(bytes(40) + text[start : start + size].encode() + bytes(40))
    made = needles(text)
    assert told(made.search(tmp_path), made) == {("file", "record")}


@given(offset=st.integers(0, 5000), size=st.sampled_from([64, 384, 1024]), seed=st.integers(0, 99))
@one_folder
def test_the_bytes_of_a_vector_are_found(tmp_path: Path, offset: int, size: int, seed: int) -> None:
    vector = np.random.default_rng(seed).normal(size=size)
    made = Needles()
    for kind in (np.float32, np.float16):
        made.add_mark("store", vector.astype(kind).tobytes())
    for kind in (np.float32, np.float16):
        (tmp_path / "file").write_bytes(bytes(offset) + vector.astype(kind).tobytes())
        assert told(made.search(tmp_path), made) == {("file", "store")}


@given(start=st.integers(0, 1100), seed=st.integers(0, 9))
@one_folder
def test_a_part_of_a_vector_left_in_a_page_is_found(tmp_path: Path, start: int, seed: int) -> None:
    raw = np.random.default_rng(seed).normal(size=384).astype(np.float32).tobytes()
    made = Needles()
    made.add_mark("store", raw)
    (tmp_path / "file").write_bytes(b"\1" * 11 + raw[start : start + 400])
    assert told(made.search(tmp_path), made) == {("file", "store")}


def test_the_fingerprint_of_a_text_is_found(tmp_path: Path) -> None:
    (tmp_path / "hex").write_text(content_hash(TEXT))
    (tmp_path / "raw").write_bytes(bytes.fromhex(content_hash(TEXT)))
    (tmp_path / "salt").write_text(SALT)
    made = needles()
    files = {"hex", "raw", "salt"}
    assert told(made.search(tmp_path), made) == {(file, "record") for file in files}


def test_what_stood_beside_a_text_is_found_in_every_form(tmp_path: Path) -> None:
    made = Needles()
    made.add(Content(RecordId("record"), "short", content_hash("short"), SALT, (TEXT, "too short")))
    assert made.unsearchable == ["record"]
    for form, encode in FORMS.items():
        (tmp_path / "file").write_bytes(encode(TEXT))
        hits = [hit for _, hit in made.hits(made.search(tmp_path))]
        assert {(hit.of, hit.form) for hit in hits} == {("record", "meta")}, form


def test_the_name_of_a_file_is_read_like_its_content(tmp_path: Path) -> None:
    (tmp_path / "My sister keeps bees in Porto.txt").write_text("nothing here")
    made = needles("My sister keeps bees in Porto")
    assert told(made.search(tmp_path), made) == {("names of files", "record")}


def test_folders_are_read_to_the_bottom_and_links_are_not_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    (inside / "a" / "b").mkdir(parents=True)
    outside.mkdir()
    (inside / "a" / "b" / "deep").write_text(TEXT, encoding="utf-8")
    (outside / "file").write_text(TEXT, encoding="utf-8")
    (inside / "link").symlink_to(outside)
    (inside / "file").symlink_to(outside / "file")
    made = needles()
    found = made.search(inside)
    assert told(found, made) == {("a/b/deep", "record")}
    assert found.files == 1
    assert told(made.search(inside, [outside / "file"]), made) == {
        ("a/b/deep", "record"),
        (str(outside / "file"), "record"),
    }


def test_what_is_too_short_or_too_plain_is_said_to_be_so(tmp_path: Path) -> None:
    made = Needles()
    for record, text in {"short": "yes", "plain": "a" * 500, "fine": "My PIN is 4417."}.items():
        made.add(Content(RecordId(record), text, content_hash(text), SALT))
    assert made.unsearchable == ["short", "plain"]


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shut").write_text(TEXT, encoding="utf-8")
    (tmp_path / "open").write_text(TEXT, encoding="utf-8")
    made = needles()
    assert made.search(tmp_path).unread == []
    monkeypatch.setattr("palimpsest.unlearning.residue.os.open", _refusing("shut"))
    found = made.search(tmp_path)
    assert found.unread == ["shut: Permission denied"]
    assert told(found, made) == {("open", "record")}


def test_what_a_record_that_stays_says_too_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(f"{TEXT} and Bob drinks his coffee black", encoding="utf-8")
    made = needles()
    found = made.search(tmp_path)
    nobody = made.also_held(found, lambda: iter(["something else"]), lambda store: [])
    another = made.also_held(found, lambda: iter([f"She said: {TEXT}"]), lambda store: [])
    strings = {string for string, _ in made.hits(found)}
    assert nobody == frozenset()
    assert another == strings


def test_a_mark_that_what_stays_has_too_is_told_apart(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).normal(size=64).astype(np.float32).tobytes()
    other = np.random.default_rng(1).normal(size=64).astype(np.float32).tobytes()
    (tmp_path / "file").write_bytes(raw)
    made = Needles()
    made.add_mark("store", raw)
    found = made.search(tmp_path)
    assert not made.also_held(found, lambda: iter(()), lambda store: [other])
    assert made.also_held(found, lambda: iter(()), lambda store: [other, raw]) == {
        string for string, _ in made.hits(found)
    }


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "x.sqlite3", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (text)")
        yield connection


def test_reading_a_database_leaves_its_locks_alone(
    tmp_path: Path, database: sqlite3.Connection
) -> None:
    """Closing any descriptor of a file drops this process's POSIX locks on it: another process
    could then write in the middle of our transaction."""
    database.execute("PRAGMA journal_mode = DELETE")  # here the locks lie on the file itself
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO t VALUES (?)", (TEXT,))
    needles().search(tmp_path)
    script = (
        "import sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)\n"
        "try: c.execute('BEGIN IMMEDIATE')\n"
        "except sqlite3.OperationalError as error: print(error)\n"
        "c.close()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "x.sqlite3")]
    asked = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "locked" in asked.stdout
    database.execute("COMMIT")


def test_a_row_deleted_without_care_is_found_and_one_deleted_with_care_is_not(
    tmp_path: Path, database: sqlite3.Connection
) -> None:
    def left() -> set[tuple[str, str]]:
        made = needles()
        return told(made.search(tmp_path), made)

    def write_and_delete() -> None:
        for line in ("before", TEXT, "after"):
            database.execute("INSERT INTO t VALUES (?)", (line,))
        database.execute("DELETE FROM t WHERE text = ?", (TEXT,))
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    database.execute("PRAGMA secure_delete = OFF")
    write_and_delete()
    assert left() == {("x.sqlite3", "record")}
    database.execute("VACUUM")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert left() == set()
    database.execute("PRAGMA secure_delete = ON")
    write_and_delete()
    assert left() == set()


def _refusing(name: str) -> Callable[..., int]:
    real = os.open

    def refuse(path: Path, *options: int) -> int:
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied")
        return real(path, *options)

    return refuse
