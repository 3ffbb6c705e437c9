"""The database under the ledger: SQLite in a file, or a server by URL.

Knows nothing of records. Everything that depends on the kind of database is here: pragmas, how a
transaction begins, how space is scrubbed, and what to do about which error.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, TimeoutError
from sqlalchemy.orm import Session

from ..errors import ConfigError, LedgerError
from .migrations import migrate

BUSY_TIMEOUT_S = 10

PRAGMAS = {
    "busy_timeout": BUSY_TIMEOUT_S * 1000,
    "journal_mode": "WAL",
    "synchronous": "FULL",  # a commit is on the disk when it returns
    "secure_delete": "ON",  # deleted content is overwritten with zeros
    "foreign_keys": "ON",
}

REMEDIES = {
    "SQLITE_FULL": "free some space; nothing of this write was kept",
    "SQLITE_IOERR": "check the disk and its free space; nothing of this write was kept",
    "SQLITE_READONLY": "make the file and its folder writable, or choose another home",
    "SQLITE_CANTOPEN": "check that it is a file in a folder you may write to",
    "SQLITE_NOTADB": "restore it from a backup, or move it away to begin with an empty ledger",
    "SQLITE_CORRUPT": "restore it from a backup, or move it away to begin with an empty ledger",
    "SQLITE_BUSY": "another process is using it; wait for it or close it",
    "SQLITE_LOCKED": "another process is using it; wait for it or close it",
}

MODES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "sqlite": {
        "read": {"begin": "BEGIN"},
        "write": {"begin": "BEGIN IMMEDIATE"},  # waits now, so that no write fails late
    },
    "postgresql": {
        "read": {"isolation_level": "REPEATABLE READ"},
        "write": {"isolation_level": "READ COMMITTED"},  # writers queue up at the head's row lock
    },
}
"""How each kind of database begins a transaction, as execution options."""

SCRUB = {
    "sqlite": "PRAGMA wal_checkpoint(TRUNCATE)",
    "postgresql": "VACUUM (FULL) records",
}


class Database:
    """Transactions on one database, from any thread.

    Args:
        where: a file path, or a SQLAlchemy URL such as "postgresql://user@host/name".

    Raises:
        ConfigError: the URL cannot be used.
        LedgerError: it cannot be opened, or is not a ledger this version can read.
    """

    def __init__(self, where: str | Path) -> None:
        url = _url(where)
        self.name = url.database if url.drivername == "sqlite" else url.render_as_string()
        self._writing = RLock()  # our own threads queue here, in order, and not in SQLite's retries
        with self._explained():
            if url.drivername == "sqlite":
                Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
            self._engine = _engine(url)
            try:
                with self._begin("write") as session:
                    migrate(session.connection(), str(self.name))
            except BaseException:
                self._engine.dispose()
                raise

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that sees one state throughout and changes nothing."""
        with self._explained(), self._begin("read") as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is durable when the block ends, and undone if it raises."""
        with self._writing, self._explained(), self._begin("write") as session:
            yield session

    def scrub(self) -> None:
        """Leave nothing of deleted rows in the files: what `secure_delete` overwrote reaches the
        main file, and the log with the old pages is emptied.

        Raises:
            LedgerError: a reader still holds old pages after the busy timeout.
        """
        statement = SCRUB[self._engine.dialect.name]
        engine = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        with self._writing, self._explained(), engine.connect() as connection:
            result = connection.exec_driver_sql(statement)
            if result.returns_rows and result.one()[0]:
                raise LedgerError(
                    f"ledger {self.name}: a reader holds erased pages; end it and purge again"
                )

    def close(self) -> None:
        """Release the file. May be called twice."""
        self._engine.dispose()

    @contextmanager
    def _begin(self, mode: str) -> Iterator[Session]:
        engine = self._engine.execution_options(**MODES[self._engine.dialect.name][mode])
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """A database's error as a LedgerError with the path and the remedy."""
        try:
            yield
        except (DBAPIError, sqlite3.Error) as error:
            origin = error.orig if isinstance(error, DBAPIError) else error
            name = getattr(origin, "sqlite_errorname", "")
            remedy = next(
                (text for code, text in REMEDIES.items() if name.startswith(code)),
                "check that the database is reachable and try again",
            )
            detail = f"{origin} ({name})" if name else type(origin).__name__
            raise LedgerError(f"ledger {self.name}: {detail}; {remedy}") from error
        except TimeoutError as error:
            raise LedgerError(
                f"ledger {self.name}: no connection became free; use fewer threads at once"
            ) from error
        except OSError as error:
            raise LedgerError(
                f"ledger {self.name}: {error.strerror}; choose a folder you may write to"
            ) from error


def _url(where: str | Path) -> URL:
    if isinstance(where, Path) or "://" not in where:
        return URL.create("sqlite", database=str(Path(where).expanduser().absolute()))
    try:
        url = make_url(where)
    except ArgumentError:
        raise ConfigError(
            "the ledger's URL cannot be read; write it as postgresql://USER@HOST/DATABASE"
        ) from None
    backend = url.get_backend_name()
    if backend not in SCRUB:
        raise ConfigError(f"ledger URL scheme {backend!r} must be one of {sorted(SCRUB)}")
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if not url.database or url.database == ":memory:":
        raise ConfigError("a ledger is kept in a file; give the URL a path: sqlite:///ledger.db")
    return url.set(drivername="sqlite")


def _engine(url: URL) -> Engine:
    try:
        # Parameters hold texts, and texts have no place in error messages.
        engine = create_engine(url, hide_parameters=True)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"a PostgreSQL ledger needs {error.name}; pip install 'palimpsest[postgres]'"
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_pragmas)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_pragmas(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where sqlite3 guesses
    for pragma, value in PRAGMAS.items():
        # Pragmas take no bound parameters; both halves are the constants above.
        connection.execute(f"PRAGMA {pragma}={value}")


def _begin_sqlite(connection: Connection) -> None:
    begin = connection.get_execution_options().get("begin")
    if begin:
        connection.exec_driver_sql(begin)
