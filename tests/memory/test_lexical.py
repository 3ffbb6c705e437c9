import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.errors import InputError, StoreError
from palimpsest.memory.entry import Entry, Filter
from palimpsest.memory.lexical import EntryTable
from palimpsest.memory.record import Scope
from palimpsest.memory.words import match_query, words

HERE = Scope()
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def entry(id: str, text: str) -> Entry:
    return Entry(id=id, text=text, scope=HERE, created=NOON)


@pytest.fixture
def table(tmp_path: Path) -> Iterator[EntryTable]:
    with closing(EntryTable(tmp_path / "entries.db")) as opened:
        yield opened


def test_words_ignore_case_marks_and_compatibility_forms() -> None:
    assert words("Café ＣＡＦÉ, cafe\u0301!") == ["cafe", "cafe", "cafe"]


def test_unspaced_scripts_give_overlapping_pairs_beside_the_words_around_them() -> None:
    assert words("東京都") == ["東京", "京都"]
    assert words("abc東京x 火") == ["abc", "東京", "x", "火"]


def test_an_emoji_is_a_word_and_punctuation_is_none() -> None:
    assert words("snake_case -> 🎉!") == ["snake", "case", "🎉"]
    assert match_query("?!  -- \"'") is None


def test_common_words_are_searched_for_only_when_there_is_nothing_else() -> None:
    assert match_query("Who are the Who?") == '"who" OR "are" OR "the"'
    assert match_query("What is the tax?") == '"tax"'


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("I climbed the wall", "climbing walls"),
        ("Ich wohne in Zürich", "ZURICH"),
        ("أسكن في القاهرة", "القاهرة"),
        ("אני גר בחיפה", "בחיפה"),
        ("東京都に住んでいます", "京都"),
        ("ฉันอยู่กรุงเทพ", "กรุงเทพ"),
        ("हिन्दी सीखना", "हिन्दी"),
        ("we won 🎉", "🎉"),
        ('he said "no" AND left', '"no" NEAR(left) OR'),
    ],
)
def test_a_text_is_found_by_its_words_in_any_script(
    table: EntryTable, text: str, query: str
) -> None:
    fillers = ("rain again today", "some bread", "a red car", "nothing much")
    table.put([entry("this", text), *(entry(f"other{n}", t) for n, t in enumerate(fillers))])
    assert list(table.match(query, Filter.of(HERE), 10)) == ["this"]


@given(query=st.text())
def test_any_text_is_a_valid_query(query: str) -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE VIRTUAL TABLE t USING fts5 (words, tokenize = 'porter ascii')")
        db.execute("INSERT INTO t VALUES (?)", (" ".join(words(query)),))
        expression = match_query(query)
        if expression is not None:
            assert db.execute("SELECT count(*) FROM t WHERE t MATCH ?", (expression,)).fetchone()[0]


def test_a_query_of_many_thousand_words_asks_for_its_beginning_and_its_end(
    table: EntryTable,
) -> None:
    long = " ".join(f"word{n}" for n in range(50_000))
    table.put([entry("start", "word3"), entry("middle", "word25000"), entry("end", "word49999")])
    table.put([entry(f"other{n}", "filler") for n in range(5)])
    assert table.match(long, Filter.of(HERE), 10).keys() == {"start", "end"}


def test_removing_entries_leaves_the_scores_as_if_they_had_never_been(table: EntryTable) -> None:
    table.put([entry(str(n), f"bees number {n} in Porto") for n in range(5)])
    table.put([entry("x", "a rare heron"), entry("y", "stones")])
    before = table.match("heron bees 3", Filter.of(HERE), 10)
    table.put([entry(f"more{n}", "heron heron bees") for n in range(9)])
    assert table.match("heron bees 3", Filter.of(HERE), 10) != before
    table.remove([f"more{n}" for n in range(9)])
    assert table.match("heron bees 3", Filter.of(HERE), 10) == before


def test_a_removed_text_is_no_longer_in_the_entries(table: EntryTable) -> None:
    table.put([entry("a", "the secret word is xylophone"), entry("b", "keep")])
    table.remove(["a"])
    with closing(sqlite3.connect(table.path)) as db:
        assert "xylophone" not in "\n".join(db.iterdump())


def test_a_file_that_is_no_database_is_a_store_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "entries.db").write_bytes(b"not a database at all" * 99)
    with pytest.raises(StoreError, match="rebuild the store from the ledger"):
        EntryTable(tmp_path / "entries.db")


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "entries.db")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="format 99"):
        EntryTable(tmp_path / "entries.db")


def test_an_sqlite_without_fts5_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palimpsest.memory.lexical._TABLES", "CREATE VIRTUAL TABLE t USING fts55;")
    with pytest.raises(StoreError, match="built without FTS5"):
        EntryTable(tmp_path / "entries.db")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", ""),
        ("id", "a\nb"),
        ("id", "x" * 129),
        ("text", " \n"),
        ("text", "a\0b"),
        ("text", "\ud800"),
        ("created", datetime(2026, 1, 2)),
        ("meta", {"k": float("nan")}),
        ("meta", {"k": ["list"]}),
    ],
)
def test_an_entry_that_could_not_be_kept_is_refused(field: str, value: object) -> None:
    good = {"id": "a", "text": "b", "scope": HERE, "created": NOON, "meta": {"k": 1.5}}
    Entry(**good)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=field):
        Entry(**(good | {field: value}))  # type: ignore[arg-type]
