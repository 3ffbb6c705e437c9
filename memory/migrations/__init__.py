"""Alembic migrations of the ledger, run from inside the package: no alembic.ini, no env.py.

Knows nothing of records. To change the schema: change `schema.py`, add a revision under
`versions/` with the next number, and set `schema.SCHEMA` to it. A test compares the two.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, String, Table, inspect, select

from ...errors import LedgerError
from ..schema import SCHEMA

VERSION_TABLE = "palimpsest_version"
FOLDER = Path(__file__).parent

_version = Table(VERSION_TABLE, MetaData(), Column("version_num", String(32)))


def migrate(connection: Connection, name: str) -> None:
    """Bring the database to `SCHEMA`, in the caller's transaction.

    Raises:
        LedgerError: it belongs to another program, or a newer version of this one wrote it.
    """
    tables = inspect(connection).get_table_names()
    if VERSION_TABLE in tables:
        version = connection.execute(select(_version.c.version_num)).scalar_one_or_none()
    elif tables:
        raise LedgerError(
            f"ledger {name} has tables of another program ({tables[0]!r}); give the ledger a"
            " database of its own"
        )
    else:
        version = None
    if version != SCHEMA:
        _upgrade(connection, version, name)


def _upgrade(connection: Connection, version: str | None, name: str) -> None:
    # Alembic takes a while to import and is needed only when there is something to do.
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(FOLDER))
    known = [revision.revision for revision in script.walk_revisions()]
    if version is not None and version not in known:
        raise LedgerError(
            f"ledger {name} has schema {version!r} and this version reads up to {SCHEMA!r};"
            " install a newer palimpsest"
        )
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    with Operations.context(context):
        for revision in reversed(list(script.iterate_revisions(SCHEMA, version or "base"))):
            revision.module.upgrade()
            context.stamp(script, revision.revision)
