"""The ledger's first schema: records, sessions, events, and what stores and turns leave behind."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NAME = sa.String(128)
POSITION = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
SCOPE = ("tenant", "user", "agent")

STATISTICS = {
    ("records", "sqlite_autoindex_records_1"): "100000 1",
    ("records", "ix_records_scope"): "100000 50000 20000 20000 1",
    ("records", "ix_records_session"): "100000 50000 20000 20000 2000 1",
    ("records", "ix_records_supersedes"): "100000 2",
    ("parents", "sqlite_autoindex_parents_1"): "100000 2 1",
    ("parents", "ix_parents_parent"): "100000 3",
}
"""Rows per distinct key, for a ledger in use. Unless it is told, SQLite takes a scope to have ten
records, and then reads a whole session where it should look up three ids."""


def upgrade() -> None:
    """Make all tables, and the one row of `head`."""
    _sessions()
    _records()
    _derived()
    op.create_table(
        "events",
        sa.Column("seq", POSITION, primary_key=True, autoincrement=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("subject", NAME, nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("prev", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.create_index("ix_events_subject", "events", ["subject"])
    head = op.create_table(
        "head",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("seq", POSITION, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.bulk_insert(head, [{"id": 1, "seq": 0, "hash": "0" * 64}])
    if op.get_bind().dialect.name == "sqlite":
        _statistics()


def _sessions() -> None:
    op.create_table(
        "sessions",
        *(sa.Column(name, NAME, primary_key=True) for name in (*SCOPE, "session")),
        sa.Column("title", sa.Text()),
        sa.Column("created", TIME, nullable=False),
        sa.Column("forked_from", NAME),
        sa.Column("forked_at", POSITION),
        _session_key("forked_from"),
    )


def _records() -> None:
    op.create_table(
        "records",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("seq", POSITION, nullable=False, unique=True),
        *(sa.Column(name, NAME, nullable=False) for name in SCOPE),
        sa.Column("session", NAME),
        *(sa.Column(name, sa.String(32), nullable=False) for name in ("kind", "role", "source")),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("valid_from", TIME, nullable=False),
        sa.Column("valid_to", TIME),
        sa.Column("trust", sa.Double(), nullable=False),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("salt", sa.String(32), nullable=False),
        sa.Column("commitment", sa.String(64), nullable=False),
        sa.Column("supersedes", sa.String(64), sa.ForeignKey("records.id", ondelete="SET NULL")),
        sa.Column("superseded_at", TIME),
        sa.Column("meta", sa.JSON(), nullable=False),
        _session_key("session"),
    )
    op.create_index("ix_records_scope", "records", [*SCOPE, "seq"])
    op.create_index("ix_records_session", "records", [*SCOPE, "session", "seq"])
    op.create_index("ix_records_supersedes", "records", ["supersedes"])
    op.create_table(
        "parents",
        _record("record", primary_key=True),
        _record("parent", primary_key=True),
        sa.Column("position", sa.Integer(), nullable=False),
    )
    op.create_index("ix_parents_parent", "parents", ["parent"])


def _derived() -> None:
    op.create_table(
        "lineage",
        _record("record", primary_key=True),
        sa.Column("store", NAME, primary_key=True),
        sa.Column("artefact", sa.String(256), primary_key=True),
    )
    op.create_index("ix_lineage_store", "lineage", ["store"])
    op.create_table(
        "cursors",
        sa.Column("store", NAME, primary_key=True),
        sa.Column("seq", POSITION, nullable=False),
    )
    op.create_table(
        "traces",
        sa.Column("id", sa.String(64), primary_key=True),
        *(sa.Column(name, NAME, nullable=False) for name in SCOPE),
        sa.Column("session", NAME),
        _record("reply"),
        sa.Column("created", TIME, nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
    )
    op.create_index("ix_traces_reply", "traces", ["reply"])
    op.create_index("ix_traces_scope", "traces", [*SCOPE, "created"])


def _statistics() -> None:
    op.execute("ANALYZE sqlite_schema")  # makes the table of statistics
    names = ("tbl", "idx", "stat")
    table = sa.table("sqlite_stat1", *(sa.column(name, sa.Text()) for name in names))
    rows = [(*index, stat) for index, stat in STATISTICS.items()]
    op.bulk_insert(table, [dict(zip(names, row, strict=True)) for row in rows])
    op.execute("ANALYZE sqlite_schema")  # and makes this connection read it


def _record(name: str, *, primary_key: bool = False) -> sa.Column[str]:
    key = sa.ForeignKey("records.id", ondelete="CASCADE")
    return sa.Column(name, sa.String(64), key, primary_key=primary_key)


def _session_key(name: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        [*SCOPE, name], [f"sessions.{column}" for column in (*SCOPE, "session")]
    )
