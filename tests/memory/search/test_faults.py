"""What a crash, a lost server or a torn file leaves, and how it is told and mended."""

import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from palimpsest.errors import StoreError
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.record import Scope
from palimpsest.memory.search.base import Entry
from palimpsest.memory.search.chroma import VectorStore
from palimpsest.memory.search.index import HybridIndex
from palimpsest.memory.search.table import EntryTable

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
HERE = Scope(session="monday")
COLLECTION = "faults"


def entries(start: int, end: int, text: str = "entry about bees") -> list[Entry]:
    return [
        Entry(id=f"e{n:04d}", text=f"{text} {n}", scope=HERE, created=NOON)
        for n in range(start, end)
    ]


def opened(folder: Path, url: str | None = None, collection: str = COLLECTION):  # type: ignore[no-untyped-def]
    return HybridIndex.alone(
        folder / "index.sqlite3", HashingEmbedder(16), chroma_url=url, collection=collection
    )


class PowerCut(BaseException):
    """Ends the writer wherever it is."""


@pytest.mark.parametrize("step", ["upsert", "delete", "settle"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_what_a_crash_leaves_between_tables_and_server_is_settled_at_the_next_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chroma: str, step: str, after: bool
) -> None:
    name = f"crash-{step}-{after}"
    owner: type = EntryTable if step == "settle" else VectorStore
    real = getattr(owner, step)

    def cut(*args: object) -> None:
        if after:
            real(*args)
        raise PowerCut

    with opened(tmp_path, chroma, name) as index:
        index.add(entries(0, 6))
        with monkeypatch.context() as patched:
            patched.setattr(owner, step, cut)
            with pytest.raises(PowerCut):
                if step == "delete":
                    index.delete(["e0003"])
                else:
                    index.add([*entries(0, 2, "wholly new words"), *entries(6, 8)])
    with opened(tmp_path, chroma, name) as again:
        best = again.search("wholly new words", HERE, 2)
        server = VectorStore(chroma, collection=name)
        on_server = server.ids('["default", "default", "default"]')
        server.close()
        assert on_server == again.ids()
        if step == "delete":
            assert again.ids() == {e.id for e in entries(0, 6)} - {"e0003"}
        else:
            assert {hit.entry.id for hit in best} == {"e0000", "e0001"}


def test_what_is_on_the_server_and_not_in_the_tables_is_never_shown(
    tmp_path: Path, chroma: str
) -> None:
    with opened(tmp_path, chroma, "stray") as index:
        index.add(entries(0, 3))
        server = VectorStore(chroma, collection="stray")
        rows = HashingEmbedder(16).embed(["entry about bees 9"])
        server.upsert('["default", "default", "default"]', ["e0009"], ["monday"], rows)
        server.close()
        assert {hit.entry.id for hit in index.search("bees 9", HERE, 9)} == index.ids()


def test_a_server_that_lost_its_vectors_is_found_out_and_filled_again(
    tmp_path: Path, chroma: str
) -> None:
    with opened(tmp_path, chroma, "lost") as index:
        index.add(entries(0, 3))
    server = VectorStore(chroma, collection="lost")
    server.sweep(())
    server.close()
    with opened(tmp_path, chroma, "lost") as index:
        with pytest.raises(StoreError, match=r"lost the vectors of 1 owners.*doctor --fix"):
            index.search("bees", HERE, 3)
        index.clear()
        index.add(entries(0, 3))
        assert len(index.search("bees", HERE, 3)) == 3


def test_a_writer_that_is_killed_loses_no_entry_it_acknowledged(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}
from pathlib import Path
from test_faults import entries, opened
with opened(Path({str(tmp_path)!r})) as index:
    for n in range(10_000):
        index.add(entries(n, n + 1))
        print(n, flush=True)
"""
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = -1
    for line in writer.stdout:
        acknowledged = int(line)
        if acknowledged == 25:
            writer.kill()
    writer.wait()
    writer.stdout.close()
    with opened(tmp_path) as index:
        assert index.ids() >= {e.id for e in entries(0, acknowledged + 1)}
        assert index.search("bees 7", HERE, 1)[0].entry.id == "e0007"


def torn(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])


def overwritten(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[0:4096] = b"x" * 4096
    file.write_bytes(whole)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [torn, overwritten, a_folder])
def test_a_damaged_file_is_a_typed_error_that_says_what_to_do(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    with opened(tmp_path) as index:
        index.add(entries(0, 300))
    damage(tmp_path / "index.sqlite3")
    with pytest.raises(StoreError, match=r"index\.sqlite3"), opened(tmp_path) as index:
        index.search("bees", HERE, 3)
        list(index.entries())


def test_an_embedder_that_fails_leaves_the_index_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: HashingEmbedder, texts: object) -> None:
        raise RuntimeError("out of breath")

    with opened(tmp_path) as index:
        index.add(entries(0, 1))
        with monkeypatch.context() as patched:
            patched.setattr(HashingEmbedder, "encode", fail)
            with pytest.raises(RuntimeError, match="out of breath"):
                index.add(entries(0, 3))
        assert index.ids() == {"e0000"}
        index.add(entries(0, 3))
        assert len(index.ids()) == 3


def test_a_server_that_is_not_there_is_a_store_error_without_its_password(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://me:secret@127.0.0.1:{taken.getsockname()[1]}"
        with opened(tmp_path, url) as index:
            with pytest.raises(StoreError, match="Chroma at http://127") as raised:
                index.add(entries(0, 1))
            assert "secret" not in str(raised.value)
            with pytest.raises(StoreError, match="Chroma at http://127"):
                index.search("bees", HERE, 1)
