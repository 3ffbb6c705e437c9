"""An index in each kind of place that it can lie in."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest
from palimpsest.errors import StoreError
from palimpsest.memory.database import Database, Purpose
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.search.index import HybridIndex
from palimpsest.memory.search.tables import Tables
from palimpsest.memory.vectors import CachedEmbedder

from ...servers import POSTGRES, Servers

PLACES = ["file", "file and Chroma server", *(["PostgreSQL"] if POSTGRES else [])]

Open = Callable[[], HybridIndex]


@pytest.fixture(scope="session")
def chroma(servers: Servers) -> str:
    """The URL of a Chroma server in a process of its own."""
    return servers.chroma


@pytest.fixture(params=PLACES)
def reopen(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Open]:
    """Opens the test's index, as often as it likes; the one before is closed."""
    name = f"t{uuid4().hex[:12]}"
    on_server = request.param == "PostgreSQL"
    where = servers.database(tmp_path) if on_server else tmp_path / "index.sqlite3"
    url = servers.chroma if "Chroma" in request.param else None
    tables = Tables(f"{name}_" if on_server else "")
    purpose = Purpose("index", StoreError, "mend it", tables.create)
    with ExitStack() as open_now:

        def open_it() -> HybridIndex:
            open_now.close()
            database = Database(where, purpose)
            open_now.callback(database.close)
            index = HybridIndex(
                database, tables, CachedEmbedder(HashingEmbedder()), chroma_url=url, collection=name
            )
            open_now.callback(index.close)
            return index

        yield open_it


@pytest.fixture
def index(reopen: Open) -> HybridIndex:
    return reopen()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[HybridIndex]:
    """An index in a file."""
    with HybridIndex.alone(tmp_path / "local.sqlite3", HashingEmbedder()) as opened:
        yield opened
