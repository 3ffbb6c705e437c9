from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from palimpsest.errors import LedgerError
from palimpsest.memory.database import LEDGER, Database
from palimpsest.memory.ledger import Ledger
from palimpsest.memory.migrations import FOLDER, VERSION_TABLE, migrate
from palimpsest.memory.record import Record, Scope, new_id
from palimpsest.memory.schema import SCHEMA, Base
from sqlalchemy import Connection, event


def test_the_newest_revision_is_the_schema_of_the_code() -> None:
    assert ScriptDirectory(str(FOLDER)).get_heads() == [SCHEMA]


def test_migrations_make_exactly_the_tables_of_the_models(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db") as ledger, ledger._database.read() as session:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(session.connection(), opts=options)
        assert compare_metadata(context, Base.metadata) == []


def test_a_lookup_by_id_never_reads_a_whole_session(tmp_path: Path) -> None:
    """The plan, not the time: SQLite needs the statistics that the migration leaves it."""
    path, scope = tmp_path / "ledger.db", Scope(session="s")
    plans: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "FROM records" in statement and "ORDER BY" not in statement:
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.extend(row[3] for row in cursor.fetchall())

    with Ledger.open(path) as ledger:
        message = Record(text="m", scope=scope)
        reply = Record(text="r", scope=scope, role="assistant", parents=(message.id,))
        ledger.append([message, reply])
        event.listen(ledger._database._engine, "before_cursor_execute", explain)
        ledger.turns(scope)
        ledger.find([message.id, *(new_id() for _ in range(400))], scope)
    lookups = [plan for plan in plans if plan.startswith("SEARCH records USING")]
    assert len(lookups) == 2
    assert all("sqlite_autoindex_records_1 (id=?)" in plan for plan in lookups)


def test_opening_again_migrates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger.open(path).close()
    before = path.read_bytes()
    Ledger.open(path).close()
    assert path.read_bytes() == before


def test_a_ledger_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger.open(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE palimpsest_version SET version_num = '9999'")
    raw.close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=rf"{path} has schema '9999'.*newer palimpsest"):
        Ledger.open(path)
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "photos.db"
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE photos (id)")
    raw.close()
    with pytest.raises(LedgerError, match=r"another program.*photos"):
        Ledger.open(path)
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT name FROM sqlite_master").fetchall() == [("photos",)]
    raw.close()


def test_a_migration_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"

    def cut_short(connection: Connection, name: str) -> None:
        migrate(connection, name)
        raise LedgerError("power cut")

    with pytest.raises(LedgerError, match="power cut"):
        Database(path, replace(LEDGER, prepare=cut_short))
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT name FROM sqlite_master").fetchall() == []
    raw.close()
    with Ledger.open(path) as ledger:
        assert ledger.head() == "0" * 64
