"""The tables of an index, the same in SQLite and PostgreSQL but for full text search.

Everything that a search needs stands in them, vectors too, so that a change is one transaction and
an erasure leaves nothing elsewhere. Knows nothing of what the numbers in them mean.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    inspect,
    select,
    text,
)

from ...errors import StoreError
from ..database import MEND
from ..schema import Position

FORMAT = 1
"""Version of the tables and of what is written into them; an index of another one is refused."""

LEXICON = {
    "sqlite": """
        CREATE VIRTUAL TABLE {lexicon} USING fts5 (
            stems, content = '', columnsize = 1, tokenize = "ascii tokenchars '_'")""",
    "postgresql": """
        CREATE TABLE {lexicon} (key BIGINT PRIMARY KEY, stems tsvector NOT NULL);
        CREATE INDEX {lexicon}_stems ON {lexicon} USING gin (stems)""",
}
"""Candidates by words come from the database's own full text search. It is given stems as hashes
behind the number of their owner, so that no owner's words weigh on, or show in, another's."""


class Tables:
    """The tables of one index.

    Args:
        prefix: in front of every name, so that several indexes can share a server's database.
    """

    def __init__(self, prefix: str = "") -> None:
        self.metadata = MetaData()
        self.lexicon = f"{prefix}lexicon"
        self.owners = self._table(
            f"{prefix}owners",
            Column("number", Integer, primary_key=True),
            Column("name", Text, unique=True, nullable=False),
            Column("entries", Integer, nullable=False),
            Column("stems", Position, nullable=False),
            Column("episodes", Integer, nullable=False),
            Column("changed", Position, nullable=False),
            Column("removed", Position, nullable=False),
        )
        self.episodes = self._table(
            f"{prefix}episodes",
            Column("number", Integer, primary_key=True),
            Column("owner", Integer, nullable=False),
            Column("name", Text, nullable=False),
            Column("entries", Integer, nullable=False),
            Column("stems", Position, nullable=False),
            UniqueConstraint("owner", "name"),
        )
        self.entries = self._table(
            f"{prefix}entries",
            Column("key", Position, primary_key=True),
            Column("id", String(128), unique=True, nullable=False),
            Column("owner", Integer, nullable=False),
            Column("line", Text),
            Column("episode", Integer),
            Column("session", Text),
            Column("created", String(32), nullable=False),
            Column("lot", Position, nullable=False),
            Column("speaker", Text),
            Column("role", Text),
            Column("asks", Boolean, nullable=False),
            Column("stems", LargeBinary, nullable=False),
            Column("meta", JSON, nullable=False),
            Column("text", Text, nullable=False),
            Index(f"{prefix}entries_line", "owner", "line", "created", "id"),
            Index(f"{prefix}entries_lot", "owner", "lot", "id"),
            Index(f"{prefix}entries_speaker", "owner", "speaker"),
        )
        self.vectors = self._table(
            f"{prefix}vectors",
            Column("key", Position, primary_key=True),
            Column("vector", LargeBinary, nullable=False),
            Column("tokens", LargeBinary, nullable=False),
        )
        self.codes = self._table(
            f"{prefix}codes",
            Column("owner", Integer, primary_key=True),
            Column("key", Position, primary_key=True),
            Column("code", LargeBinary, nullable=False),
            sqlite_with_rowid=False,
        )
        self.terms = self._table(
            f"{prefix}terms",
            Column("owner", Integer, primary_key=True),
            Column("stem", Position, primary_key=True),
            Column("entries", Integer, nullable=False),
            sqlite_with_rowid=False,
        )
        self.mentions = self._table(
            f"{prefix}mentions",
            Column("owner", Integer, primary_key=True),
            Column("stem", Position, primary_key=True),
            Column("episode", Integer, primary_key=True),
            Column("times", Integer, nullable=False),
            sqlite_with_rowid=False,
        )
        self.pending = self._table(
            f"{prefix}pending",
            Column("id", String(128), primary_key=True),
            Column("owner", Text, primary_key=True),
        )
        self.facts = self._table(
            f"{prefix}facts",
            Column("name", String(64), primary_key=True),
            Column("value", Text, nullable=False),
        )

    def _table(self, name: str, *parts: Any, **options: Any) -> Table:
        return Table(name, self.metadata, *parts, **options)

    def create(self, connection: Connection, where: str) -> None:
        """Make what is missing.

        Raises:
            StoreError: the tables there are of another format.
        """
        if inspect(connection).has_table(self.facts.name):
            query = select(self.facts.c.value).where(self.facts.c.name == "format")
            found = connection.execute(query).scalar_one_or_none()
            if found != str(FORMAT):
                raise StoreError(
                    f"the index in {where} has format {found} and this version reads {FORMAT};"
                    f" {MEND}"
                )
            return
        self.metadata.create_all(connection)
        for statement in LEXICON[connection.dialect.name].format(lexicon=self.lexicon).split(";"):
            connection.execute(text(statement))
        connection.execute(self.facts.insert().values(name="format", value=str(FORMAT)))
