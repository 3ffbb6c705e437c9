"""A database: SQLite in a file, or a server by URL. The ledger lies in one, and so do the stores.

Knows nothing of records. Everything that depends on the kind of database is here: pragmas, how a
transaction begins, how space is scrubbed, and what to do about which error.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, inspect, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, TimeoutError
from sqlalchemy.orm import Session

from ..errors import ConfigError, LedgerError, PalimpsestError
from .migrations import migrate

BUSY_TIMEOUT_S = 10

PRAGMAS: dict[str, Any] = {
    "busy_timeout": BUSY_TIMEOUT_S * 1000,
    "journal_mode": "WAL",
    "synchronous": "FULL",  # a commit is on the disk when it returns
    "secure_delete": "ON",  # deleted content is overwritten with zeros
    "foreign_keys": "ON",
    "cache_size": -32768,  # KiB; of pages, for each connection
}

DAMAGED = ("SQLITE_NOTADB", "SQLITE_CORRUPT")

REMEDIES = {
    "SQLITE_FULL": "free some space; this file is as it was before the write",
    "SQLITE_IOERR": "check the disk and its space; this file is as it was before the write",
    "SQLITE_READONLY": "make the file and its folder writable, or choose another home",
    "SQLITE_CANTOPEN": "check that it is a file in a folder you may write to",
    "SQLITE_BUSY": "another process is using it; wait for it or close it",
    "SQLITE_LOCKED": "another process is using it; wait for it or close it",
}

READING = {
    "SQLITE_READONLY_DIRECTORY": "even to read it, SQLite must write beside it; copy the folder to"
    " where you may write",
    "SQLITE_READONLY": "it is opened to be read only; open it for writing to change it",
    "ReadOnlySqlTransaction": "it is opened to be read only; open it for writing to change it",
}
"""Remedies where a database was opened to be read only."""

MODES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "sqlite": {
        "read": {"begin": "BEGIN"},
        "write": {"begin": "BEGIN IMMEDIATE"},  # waits now, so that no write fails late
    },
    "postgresql": {
        "read": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
        "write": {"isolation_level": "READ COMMITTED"},  # writers queue up at the head's row lock
    },
}
"""How each kind of database begins a transaction, as execution options."""

REWRITE = {"sqlite": "VACUUM", "postgresql": "VACUUM (FULL) {tables}"}
"""How all tables are written anew, without what was deleted. A server may hold others' tables."""


_INSERTS: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a database is for: its name in messages, its error, how a damaged one is mended, and
    what brings its tables up to date."""

    name: str
    error: type[PalimpsestError]
    mend: str
    prepare: Callable[[Connection, str], None]


LEDGER = Purpose(
    "ledger",
    LedgerError,
    "restore it from a backup, or move it away to begin with an empty ledger",
    migrate,
)


MEND = "`palimpsest doctor --fix` makes it anew from the ledger"
"""What to do about a store that is damaged or gone; where an error says so, it ends in it."""


class Database:
    """Transactions on one database, from any thread.

    Args:
        where: a file path, or a SQLAlchemy URL such as "postgresql://user@host/name".
        read_only: makes and changes nothing, so that it may be used beside another process that
            writes. Every transaction is one of `read`.

    Raises:
        ConfigError: the URL cannot be used.
        LedgerError: it cannot be opened, or is not a ledger this version can read; a `purpose` of
            its own has an error of its own.
    """

    def __init__(
        self, where: str | Path, purpose: Purpose = LEDGER, *, read_only: bool = False
    ) -> None:
        url = _url(where)
        self._purpose, self._read_only = purpose, read_only
        self._remedies = READING | REMEDIES | READING if read_only else REMEDIES
        self.name = url.database if url.drivername == "sqlite" else url.render_as_string()
        self.file = Path(str(url.database)) if url.drivername == "sqlite" else None
        self._writing = RLock()  # our own threads queue here, in order, and not in SQLite's retries
        with self._explained():
            if self.file is not None and not read_only:
                self.file.parent.mkdir(parents=True, exist_ok=True)
            self._engine = _engine(url, read_only)
            modes = MODES[self._engine.dialect.name]
            if read_only:
                modes = {"read": modes["read"], "write": modes["read"]}
            self._engines = {
                mode: self._engine.execution_options(**options) for mode, options in modes.items()
            }
            try:
                with self._begin("write") as session:
                    purpose.prepare(session.connection(), str(self.name))
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

    def scrub(self, *, rewrite: bool = True) -> None:
        """Leave nothing of deleted rows in the files: what `secure_delete` overwrote reaches the
        main file, and the log with the old pages is emptied.

        Args:
            rewrite: write the whole file anew first. SQLite leaves a stale copy of a row in a page
                now and then when it balances its trees (seen: 1 of 4,200 deleted rows), and
                `secure_delete` does not reach it; PostgreSQL overwrites nothing.

        Raises:
            LedgerError: a reader still holds old pages after the busy timeout.
        """
        dialect = self._engine.dialect.name
        engine = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        with self._writing, self._explained(), engine.connect() as connection:
            if rewrite:
                quote = connection.dialect.identifier_preparer.quote_identifier
                tables = ", ".join(map(quote, inspect(connection).get_table_names()))
                connection.exec_driver_sql(REWRITE[dialect].format(tables=tables))
            if dialect == "sqlite":
                emptied = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
                if emptied.one()[0]:
                    raise self._error("a reader holds erased pages; end it and purge again")

    def faults(self) -> list[str]:
        """What SQLite finds wrong with the file's structure and its references; what a text says
        it cannot judge. A server looks after its own files, so there it is always nothing."""
        if self.file is None:
            return []
        found: list[str] = []
        with self._explained(), self._engine.connect() as connection:
            checked = connection.exec_driver_sql("PRAGMA integrity_check(20)")
            found += [str(line) for (line,) in checked if line != "ok"]
            for table, row, *_ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
                found.append(f"row {row} of {table} refers to a row that is not there")
        return found

    def copy(self, path: Path) -> None:
        """Write a copy of one state of the database to a new file, while it is in use.

        Raises:
            ConfigError: it lies on a server.
        """
        if self.file is None:
            raise ConfigError(
                f"{self._purpose.name} {self.name} lies on a server, which is backed up with"
                " pg_dump; or export the ledger to a file"
            )
        with (
            self._explained(),
            self._engine.connect() as connection,
            closing(sqlite3.connect(path)) as target,
        ):
            source = connection.connection.driver_connection
            assert isinstance(source, sqlite3.Connection)
            source.backup(target)  # all pages in one step: nothing is written in between
            target.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it

    def close(self) -> None:
        """Release the file. May be called twice."""
        self._engine.dispose()

    @contextmanager
    def _begin(self, mode: str) -> Iterator[Session]:
        with Session(self._engines[mode], expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """A database's error as a LedgerError with the path and the remedy."""
        try:
            yield
        except (DBAPIError, sqlite3.Error) as error:
            origin = error.orig if isinstance(error, DBAPIError) else error
            name = getattr(origin, "sqlite_errorname", "")
            known = name or type(origin).__name__
            missing = self._read_only and self.file is not None and not self.file.exists()
            if missing and known == "SQLITE_CANTOPEN":
                raise self._error(f"it is not there; {self._purpose.mend}") from error
            remedies = self._remedies | dict.fromkeys(DAMAGED, self._purpose.mend)
            remedy = next(
                (text for code, text in remedies.items() if known.startswith(code)),
                "check that the database is reachable and try again",
            )
            detail = f"{origin} ({name})" if name else type(origin).__name__
            raise self._error(f"{detail}; {remedy}") from error
        except TimeoutError as error:
            raise self._error("no connection became free; use fewer threads at once") from error
        except OSError as error:
            raise self._error(f"{error.strerror}; choose a folder you may write to") from error

    def _error(self, what: str) -> PalimpsestError:
        return self._purpose.error(f"{self._purpose.name} {self.name}: {what}")


def insert_into(session: Session, table: Table) -> Any:
    """An INSERT in the database's own words, which can say what to do on a conflict."""
    return _INSERTS[session.get_bind().dialect.name](table)


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
    if backend not in REWRITE:
        raise ConfigError(f"ledger URL scheme {backend!r} must be one of {sorted(REWRITE)}")
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if not url.database or url.database == ":memory:":
        raise ConfigError("a ledger is kept in a file; give the URL a path: sqlite:///ledger.db")
    return url.set(drivername="sqlite")


def _engine(url: URL, read_only: bool) -> Engine:
    pragmas = PRAGMAS
    if read_only and url.drivername == "sqlite":
        file = Path(str(url.database)).as_uri()
        url = url.set(database=file, query={"mode": "ro", "uri": "true"})
        pragmas = {"busy_timeout": PRAGMAS["busy_timeout"], "query_only": "ON"}
    try:
        # Parameters hold texts, and texts have no place in error messages.
        engine = create_engine(url, hide_parameters=True)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"a PostgreSQL ledger needs {error.name}; pip install 'palimpsest[postgres]'"
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", partial(_set_pragmas, pragmas))
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_pragmas(pragmas: Mapping[str, Any], connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where sqlite3 guesses
    for pragma, value in pragmas.items():
        # Pragmas take no bound parameters; both halves are the constants above.
        connection.execute(f"PRAGMA {pragma}={value}")


def _begin_sqlite(connection: Connection) -> None:
    begin = connection.get_execution_options().get("begin")
    if begin:
        connection.exec_driver_sql(begin)
