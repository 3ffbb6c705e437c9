import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from palimpsest.errors import StoreError
from palimpsest.memory.chroma import VectorStore
from palimpsest.memory.index import Check, Entry, HybridIndex
from palimpsest.memory.record import Scope
from palimpsest.memory.vectors import HashingEmbedder, Vectors

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
HERE = Scope(session="monday")


def entries(start: int, end: int, text: str = "entry about bees") -> list[Entry]:
    return [
        Entry(id=f"e{n:04d}", text=f"{text} {n}", scope=HERE, created=NOON)
        for n in range(start, end)
    ]


def opened(folder: Path, dimension: int = 16, url: str | None = None) -> HybridIndex:
    return HybridIndex(folder, HashingEmbedder(dimension), collection="faults", chroma_url=url)


class PowerCut(BaseException):
    """Ends the writer wherever it is."""


@pytest.mark.parametrize("step", ["upsert", "delete", "settle"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_what_a_crash_leaves_between_the_two_is_settled_at_the_next_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    index = opened(tmp_path)
    index.add(entries(0, 6))
    from palimpsest.memory.lexical import EntryTable

    owner: type = EntryTable if step == "settle" else VectorStore
    real = getattr(owner, step)

    def cut(*args: object) -> None:
        if after:
            real(*args)
        raise PowerCut

    with monkeypatch.context() as patched:
        patched.setattr(owner, step, cut)
        with pytest.raises(PowerCut):
            if step == "delete":
                index.delete(["e0003"])
            else:
                index.add([*entries(0, 2, "wholly new words"), *entries(6, 8)])
    assert index.check().ok == (step == "settle" and after)
    index.close()

    again = opened(tmp_path)
    best = again.search("wholly new words", HERE, 2)
    assert again.check().ok
    if step == "delete":
        assert again.ids() == {e.id for e in entries(0, 6)} - {"e0003"}
    else:
        assert {hit.entry.id for hit in best} == {"e0000", "e0001"}
        assert all(hit.cosine is not None and hit.cosine > 0.5 for hit in best)
    again.close()


def test_a_writer_that_is_killed_loses_no_entry_it_acknowledged(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}
from pathlib import Path
from test_index_faults import entries, opened
index = opened(Path({str(tmp_path)!r}))
for n in range(10_000):
    index.add(entries(n, n + 1))
    print(n, flush=True)
"""
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = 0
    for line in writer.stdout:
        acknowledged = int(line)
        if acknowledged == 25:
            writer.kill()
    writer.wait()
    writer.stdout.close()
    index = opened(tmp_path)
    index.search("bees", HERE, 1)
    assert index.ids() >= {e.id for e in entries(0, acknowledged + 1)}
    assert index.check().ok
    index.close()


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Path]:
    """The folder of an index of 1200 entries, more than Chroma keeps unsynced, and closed."""
    index = opened(tmp_path / "index")
    index.add(entries(0, 1200))
    index.close()
    yield tmp_path / "index"


def truncate(folder: Path, pattern: str) -> None:
    (file,) = (folder / "chroma").glob(pattern)
    file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda at: shutil.rmtree(at / "chroma"), id="folder deleted"),
        pytest.param(lambda at: truncate(at, "chroma.sqlite3"), id="database torn"),
        pytest.param(lambda at: truncate(at, "*/data_level0.bin"), id="vectors torn"),
        pytest.param(
            lambda at: next((at / "chroma").glob("*/header.bin")).write_bytes(b""), id="no header"
        ),
        pytest.param(
            lambda at: (at / "chroma").rename(at / "old") and (at / "chroma").write_text("x"),
            id="not a folder",
        ),
    ],
)
def test_damaged_vectors_are_an_error_that_repair_heals(
    filled: Path, damage: Callable[[Path], object]
) -> None:
    damage(filled)
    index = opened(filled)
    with pytest.raises(StoreError, match="repair"):
        index.search("bees", HERE, 3)
    with pytest.raises(StoreError, match="repair"):
        index.add(entries(1200, 1201))
    assert index.check().fault
    digest = index.digest()
    assert index.repair().fault
    assert index.check().ok
    assert index.digest() == digest
    assert index.search("entry about bees 700", HERE, 1)[0].entry.id == "e0700"
    index.close()


@pytest.mark.parametrize("torn", ["chroma.sqlite3", "*/data_level0.bin"])
def test_repair_may_be_the_first_thing_done(filled: Path, torn: str) -> None:
    truncate(filled, torn)
    index = opened(filled)
    assert index.repair().fault
    assert index.check().ok
    index.close()


def test_a_damaged_index_can_be_cleared_and_filled_again(filled: Path) -> None:
    truncate(filled, "chroma.sqlite3")
    index = opened(filled)
    index.clear()
    index.add(entries(0, 3))
    assert index.check().ok and index.count() == 3
    index.close()


def test_a_lost_segment_is_found_by_check_and_healed_by_repair(filled: Path) -> None:
    segment = next((filled / "chroma").glob("*/header.bin")).parent
    shutil.rmtree(segment)
    index = opened(filled)
    assert not index.check().ok
    index.repair()
    assert index.check().ok
    assert index.vectors([e.id for e in entries(0, 1200)]).shape == (1200, 16)
    index.close()


def test_missing_and_orphaned_vectors_are_named_and_mended(tmp_path: Path) -> None:
    index = opened(tmp_path)
    index.add(entries(0, 5))
    index.close()
    other = HybridIndex(tmp_path / "b", HashingEmbedder(16), collection="faults")
    store = VectorStore(tmp_path / "chroma", collection="faults", keys=("kind",))
    store.delete('["default", "default", "default"]', ["e0001"])
    rows = HashingEmbedder(16).embed(["stray"])
    store.upsert('["default", "default", "default"]', entries(7, 8), rows)
    store.upsert('["default", "somebody", "default"]', entries(9, 10), rows)
    store.close()
    other.close()
    index = opened(tmp_path)
    found = index.check()
    assert found == Check(frozenset({"e0001"}), frozenset({"e0007", "e0009"}))
    assert {h.entry.id for h in index.search("stray bees", HERE, 9)} == index.ids()
    assert index.repair() == found
    assert index.check().ok
    index.close()


def test_another_embedder_needs_a_repair_and_then_works(tmp_path: Path) -> None:
    index = opened(tmp_path)
    index.add(entries(0, 5))
    index.close()
    other = opened(tmp_path, dimension=32)
    with pytest.raises(StoreError, match=r"hashing:16.*hashing:32"):
        other.search("bees", HERE, 1)
    other.repair()
    assert other.vectors(["e0000"]).shape == (1, 32)
    assert other.check().ok
    other.close()


def test_an_embedder_that_fails_leaves_entries_for_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: HashingEmbedder, texts: Sequence[str]) -> Vectors:
        raise RuntimeError("out of breath")

    index = opened(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(HashingEmbedder, "embed", fail)
        with pytest.raises(RuntimeError, match="out of breath"):
            index.add(entries(0, 3))
    assert index.check().missing == {"e0000", "e0001", "e0002"}
    index.add([])
    assert index.check().ok
    index.close()


def test_a_server_that_is_not_there_is_a_store_error_without_its_password(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        index = opened(tmp_path, url=f"http://me:secret@127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(StoreError, match="Chroma at http://127") as raised:
            index.add(entries(0, 1))
    assert "secret" not in str(raised.value)
    assert index.count() == 0
    index.close()
