"""Servers that tests use beside files: Chroma, in a process of its own, and PostgreSQL, if there is
one.

`PALIMPSEST_TEST_POSTGRES` is the URL of a server on which tests may make a database, and drop it.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import cache, cached_property
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

import pytest
from palimpsest.memory.ledger import Ledger
from sqlalchemy import URL, Engine, create_engine, inspect, make_url

POSTGRES = os.environ.get("PALIMPSEST_TEST_POSTGRES")

CHROMA = "from chromadb.cli.cli import app; app()"

sqlite_only = pytest.mark.skipif(POSTGRES is not None, reason="about SQLite's file")


class Servers:
    """Each is started when first asked for; `close` stops those that were started.

    Args:
        folder: for what they keep.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running = ExitStack()
        self._schemas: set[str] = set()

    @cached_property
    def chroma(self) -> str:
        """The URL of a Chroma server on loopback."""
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = self._running.enter_context((self._folder / "chroma.log").open("w+"))
        where = ["--path", str(self._folder / "chroma"), "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(
            [sys.executable, "-c", CHROMA, "run", *where],
            stdout=log,
            stderr=log,
            env=os.environ | {"ANONYMIZED_TELEMETRY": "False"},
        )
        self._running.callback(process.wait, 30)
        self._running.callback(process.terminate)
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert process.poll() is None, (self._folder / "chroma.log").read_text()
            try:
                urlopen(f"{url}/api/v2/heartbeat", timeout=5).close()
                return url
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the Chroma server does not answer")

    @contextmanager
    def ledger(self, file: Path) -> Iterator[Ledger]:
        """A fresh ledger in a file, or in what stands for it."""
        if POSTGRES:
            self.drop(file)
        else:
            file.write_bytes(_empty_ledger())
        with Ledger.open(self.place(file)) as opened:
            yield opened

    def place(self, file: Path) -> str | Path:
        """The file, or the URL of what stands for it where there is a PostgreSQL."""
        return self.database(file) if POSTGRES else file

    def database(self, file: Path) -> str:
        """The URL of what stands for a file on PostgreSQL: a schema of its own."""
        schema = _schema(file)
        if schema not in self._schemas:
            self._execute(f"CREATE SCHEMA {schema}")
            self._schemas.add(schema)
        options = {"options": f"-csearch_path={schema}"}
        return self._url.update_query_dict(options).render_as_string(hide_password=False)

    def contents(self, file: Path) -> dict[str, bytes]:
        """Every table of what stands for that file, as the bytes of its rows."""
        engine = create_engine(self.database(file))
        found: dict[str, bytes] = {}
        with closing(engine.raw_connection()) as connection:
            for table in inspect(engine).get_table_names():
                with connection.cursor().copy(f'COPY "{table}" TO STDOUT (FORMAT binary)') as rows:
                    found[table] = b"".join(map(bytes, rows))
        engine.dispose()
        return found

    def drop(self, file: Path) -> None:
        """Remove what stands for that file."""
        self._execute(f"DROP SCHEMA IF EXISTS {_schema(file)} CASCADE")
        self._schemas.discard(_schema(file))

    def close(self) -> None:
        """Stop what was started, and drop what was made."""
        self._running.close()

    def _execute(self, statement: str) -> None:
        with self._engine.connect() as connection:
            connection.exec_driver_sql(statement)

    @cached_property
    def _url(self) -> URL:
        """Of a database of these servers' own."""
        assert POSTGRES is not None
        server = make_url(POSTGRES).set(drivername="postgresql+psycopg")
        name = f"t{uuid4().hex[:16]}"
        engine = create_engine(server, isolation_level="AUTOCOMMIT")
        self._running.callback(engine.dispose)

        def drop() -> None:
            with engine.connect() as connection:
                connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")

        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        self._running.callback(drop)
        return server.set(database=name)

    @cached_property
    def _engine(self) -> Engine:
        engine = create_engine(self._url, isolation_level="AUTOCOMMIT")
        self._running.callback(engine.dispose)
        return engine


def _schema(file: Path) -> str:
    return f"t{hashlib.sha256(str(file).encode()).hexdigest()[:16]}"


@cache
def _empty_ledger() -> bytes:
    """A migrated file, made once: hypothesis opens hundreds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        Ledger.open(path).close()
        return path.read_bytes()
