import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from palimpsest.errors import ConfigError, InputError, StoreError
from palimpsest.memory.index import Entry, HybridIndex, Scalar
from palimpsest.memory.record import Scope
from palimpsest.memory.vectors import CachedEmbedder, HashingEmbedder

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
MARIA = Scope(user="maria")
MONDAY = Scope(user="maria", session="monday")
TUESDAY = Scope(user="maria", session="tuesday")
JOHN = Scope(user="john", session="monday")

Open = Callable[[], HybridIndex]


def entry(
    id: str, text: str, scope: Scope = MONDAY, meta: Mapping[str, Scalar] | None = None
) -> Entry:
    return Entry(id=id, text=text, scope=scope, created=NOON, meta=meta or {})


FACTS = [
    entry("climb", "I climb rocks", meta={"kind": "fact", "source": "user"}),
    entry("porto", "My sister Ana keeps bees in Porto", TUESDAY, {"kind": "fact"}),
    entry("train", "The train to Lisbon was late", TUESDAY, {"kind": "message"}),
    entry("bread", "We baked bread with rye", meta={"kind": "message", "source": "user"}),
    entry("john", "I climb rocks and keep bees", JOHN, {"kind": "fact"}),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Chroma server in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    chroma = "from chromadb.cli.cli import app; app()"
    arguments = ["run", "--path", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", chroma, *arguments],
            stdout=log,
            stderr=log,
            env=os.environ | {"ANONYMIZED_TELEMETRY": "False"},
        )
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(300):
                assert process.poll() is None, (folder / "log").read_text()
                try:
                    urlopen(f"{url}/api/v2/heartbeat", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(params=["embedded", "server"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the test's index, as often as it likes; the one before is closed."""
    url = request.getfixturevalue("server") if request.param == "server" else None
    collection = f"test-{uuid4().hex}"
    opened: list[HybridIndex] = []

    def open_it() -> HybridIndex:
        while opened:
            opened.pop().close()
        embedder = CachedEmbedder(HashingEmbedder())
        opened.append(
            HybridIndex(tmp_path / "index", embedder, collection=collection, chroma_url=url)
        )
        return opened[-1]

    yield open_it
    for left in opened:
        left.close()


@pytest.fixture
def index(reopen: Open) -> HybridIndex:
    return reopen()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[HybridIndex]:
    opened = HybridIndex(tmp_path / "local", HashingEmbedder(), collection="local")
    yield opened
    opened.close()


def found(index: HybridIndex, query: str, scope: Scope = MARIA, k: int = 3) -> list[str]:
    return [hit.entry.id for hit in index.search(query, scope, k)]


def test_what_was_added_is_found_and_carries_both_signals(index: HybridIndex) -> None:
    assert index.add(FACTS) == {fact.id for fact in FACTS}
    best, *others = index.search("Who keeps bees?", MARIA, 3)
    assert best.entry == FACTS[1]
    assert best.cosine is not None and best.bm25 is not None
    assert 1 >= best.score > max(hit.score for hit in others) >= 0
    query, row = HashingEmbedder().embed(["Who keeps bees?", best.entry.text])
    assert best.cosine == pytest.approx(float(query @ row), abs=1e-5)
    assert {hit.entry.id for hit in others} <= {"climb", "train", "bread"}
    assert all(hit.bm25 is None for hit in others)


def test_an_index_outlives_its_process(reopen: Open) -> None:
    index = reopen()
    index.add(FACTS)
    digest, hits = index.digest(), index.search("bees in Porto", MARIA, 3)
    again = reopen()
    assert again.digest() == digest
    same = again.search("bees in Porto", MARIA, 3)
    assert [hit.entry for hit in same] == [hit.entry for hit in hits]
    assert [hit.score for hit in same] == pytest.approx([hit.score for hit in hits], abs=1e-6)
    assert again.check().ok


def test_adding_again_changes_only_what_is_new(index: HybridIndex) -> None:
    index.add(FACTS)
    digest = index.digest()
    assert index.add(FACTS) == frozenset()
    assert index.digest() == digest
    new = entry("climb", "I gave up climbing and sail boats now", TUESDAY, {"kind": "fact"})
    assert index.add([new, FACTS[1]]) == {"climb"}
    assert index.count() == len(FACTS)
    assert index.get(["climb", "nobody"]) == {"climb": new}
    assert found(index, "sail boats", TUESDAY)[0] == "climb"
    assert "climb" not in found(index, "climb rocks", MONDAY)
    assert index.check().ok


def test_an_unchanged_entry_is_not_embedded_again(tmp_path: Path) -> None:
    asked: list[str] = []

    class Watched(HashingEmbedder):
        def embed(self, texts):  # type: ignore[no-untyped-def]
            asked.extend(texts)
            return super().embed(texts)

    index = HybridIndex(tmp_path, Watched(), collection="watched")
    index.add(FACTS)
    asked.clear()
    index.add(FACTS)
    index.close()
    assert asked == []


def test_an_entry_that_changes_hands_leaves_its_former_owner(index: HybridIndex) -> None:
    index.add(FACTS)
    index.add([entry("porto", FACTS[1].text, JOHN)])
    assert "porto" not in found(index, "bees in Porto", MARIA, 9)
    assert found(index, "bees in Porto", JOHN)[0] == "porto"
    assert index.check().ok


def test_deleted_entries_are_gone_and_named(index: HybridIndex) -> None:
    index.add(FACTS)
    assert index.delete(["porto", "nobody", "john"]) == {"porto", "john"}
    assert index.delete(["porto"]) == frozenset()
    assert index.ids() == {"climb", "train", "bread"}
    assert "porto" not in found(index, "bees in Porto", MARIA, 9)
    assert found(index, "bees", JOHN) == []
    assert index.check().ok


def test_deleting_empties_the_embedders_cache_of_the_text(tmp_path: Path) -> None:
    cached = CachedEmbedder(HashingEmbedder())
    index = HybridIndex(tmp_path, cached, collection="cached")
    index.add(FACTS[:2])
    assert len(cached) == 2
    index.delete(["porto"])
    index.close()
    assert len(cached) == 1


def test_a_session_sees_itself_and_no_session_sees_all_of_one_owner(index: HybridIndex) -> None:
    index.add(FACTS)
    assert set(found(index, "climb bees train", MARIA, 9)) == {"climb", "porto", "train", "bread"}
    assert set(found(index, "climb bees train", TUESDAY, 9)) == {"porto", "train"}
    assert set(found(index, "climb bees train", JOHN, 9)) == {"john"}
    assert found(index, "climb", Scope(user="maria", session="friday")) == []
    assert found(index, "climb", Scope(user="nobody")) == []
    assert [e.id for e in index.entries(TUESDAY)] == ["porto", "train"]
    assert {e.id for e in index.entries()} == index.ids()


def test_metadata_narrows_a_search(index: HybridIndex) -> None:
    index.add(FACTS)

    def kinds(**where: Scalar | list[Scalar]) -> set[str]:
        return {hit.entry.id for hit in index.search("climb bees", MARIA, 9, where=where)}

    assert kinds(kind="fact") == {"climb", "porto"}
    assert kinds(kind=["fact", "message"]) == {"climb", "porto", "train", "bread"}
    assert kinds(kind="message", source="user") == {"bread"}
    assert kinds(kind="summary") == set()
    index.add([entry("climb", "I climb rocks", meta={"source": "user"})])
    assert kinds(kind="fact") == {"porto"}


@pytest.mark.parametrize("key", ["owner", "meta", "kind' OR 1 --", '$."x"', "session"])
def test_only_listed_keys_can_be_filtered_by(local: HybridIndex, key: str) -> None:
    with pytest.raises(ConfigError, match="it may have"):
        local.search("climb", MARIA, 3, where={key: "x"})


def test_a_search_that_makes_no_sense_is_refused(local: HybridIndex) -> None:
    with pytest.raises(ConfigError, match="k=0"):
        local.search("climb", MARIA, 0)
    with pytest.raises(ConfigError, match=r"weight=1\.5"):
        local.search("climb", MARIA, 3, weight=1.5)
    with pytest.raises(ConfigError, match="must be a value"):
        local.search("climb", MARIA, 3, where={"kind": []})
    with pytest.raises(InputError, match="empty"):
        local.search("  ", MARIA, 3)


@pytest.mark.parametrize(
    ("collection", "url"), [("a", None), ("a/b/c", None), ("good", "ftp://x"), ("good", "x:1")]
)
def test_a_malformed_name_or_url_is_refused(
    tmp_path: Path, collection: str, url: str | None
) -> None:
    with pytest.raises(ConfigError, match="must be"):
        HybridIndex(tmp_path, HashingEmbedder(), collection=collection, chroma_url=url)


def test_the_weight_moves_the_score_from_words_to_meaning(local: HybridIndex) -> None:
    local.add(FACTS)
    by_words, by_meaning = (
        {hit.entry.id: hit for hit in local.search("keeps bees", MARIA, 9, weight=weight)}
        for weight in (0.0, 1.0)
    )
    for id, hit in by_meaning.items():
        assert hit.cosine is not None
        assert hit.score == pytest.approx(max(hit.cosine, 0.0))
        assert (by_words[id].score > 0) == (hit.bm25 is not None)


def test_equal_scores_come_in_order_of_id(local: HybridIndex) -> None:
    local.add([entry(id, "the very same text") for id in ("c", "a", "d", "b")])
    assert found(local, "same text", k=9) == ["a", "b", "c", "d"]


def test_vectors_come_in_the_order_asked_for(index: HybridIndex) -> None:
    index.add(FACTS)
    ids = ["john", "climb", "porto"]
    texts = [index.get([id])[id].text for id in ids]
    assert np.allclose(index.vectors(ids), HashingEmbedder().embed(texts), atol=1e-6)
    assert index.vectors([]).shape == (0, 256)
    with pytest.raises(InputError, match="nobody"):
        index.vectors(["climb", "nobody"])


def test_a_cleared_index_is_as_good_as_new(index: HybridIndex) -> None:
    empty = index.digest()
    index.add(FACTS)
    index.clear()
    assert index.digest() == empty
    assert index.count() == 0 and found(index, "climb") == []
    assert index.add(FACTS) == {fact.id for fact in FACTS}
    assert index.check().ok


def test_a_saved_index_is_loaded_whole(index: HybridIndex, tmp_path: Path) -> None:
    index.add(FACTS)
    digest = index.digest()
    index.save(tmp_path / "saved")
    index.delete(["climb"])
    index.add([entry("later", "something else")])
    index.load(tmp_path / "saved")
    assert index.digest() == digest
    assert index.check().ok
    assert found(index, "bees in Porto")[0] == "porto"


def test_what_another_embedder_saved_is_embedded_anew(local: HybridIndex, tmp_path: Path) -> None:
    local.add(FACTS)
    local.save(tmp_path / "saved")
    other = HybridIndex(tmp_path / "other", HashingEmbedder(64), collection="other")
    other.load(tmp_path / "saved")
    assert other.vectors(["climb"]).shape == (1, 64)
    assert other.check().ok
    other.close()


@pytest.mark.parametrize("file", ["entries.json", "vectors.safetensors"])
def test_a_torn_snapshot_replaces_nothing(local: HybridIndex, tmp_path: Path, file: str) -> None:
    local.add(FACTS)
    local.save(tmp_path / "saved")
    torn = tmp_path / "saved" / file
    torn.write_bytes(torn.read_bytes()[:-40])
    digest = local.digest()
    with pytest.raises(StoreError, match="cannot be read"):
        local.load(tmp_path / "saved")
    assert local.digest() == digest


def test_readers_and_writers_share_an_index(local: HybridIndex) -> None:
    def work(n: int) -> None:
        local.add([entry(f"{n}", f"number {n} likes bees")])
        assert f"{n}" in found(local, f"number {n}", k=50)
        if n % 2:
            local.delete([f"{n}"])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(36)))
    assert local.ids() == {f"{n}" for n in range(0, 36, 2)}
    assert local.check().ok


def test_an_embedded_index_opens_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[object] = []
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, lambda self, *to: reached.append(to))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *to, **_: reached.append(to))
    index = HybridIndex(tmp_path / "index", HashingEmbedder(), collection="quiet")
    index.add(FACTS)
    assert found(index, "bees")[0] == "porto"
    index.save(tmp_path / "saved")
    index.load(tmp_path / "saved")
    index.delete(["porto"])
    index.repair()
    index.clear()
    index.close()
    assert reached == []


_SCOPES = [
    Scope(tenant=tenant, user=user, session=session)
    for tenant in ("a", 'a", "b')
    for user in ("x", "y")
    for session in (None, "s", "t")
]
_texts = st.lists(
    st.sampled_from(["bees", "rocks", "rye", "train", "東京", "🎉"]), min_size=1, max_size=4
)
_entries = st.lists(
    st.builds(
        lambda id, words, scope, kind: entry(id, " ".join(words), scope, {"kind": kind}),
        st.sampled_from([f"id{n}" for n in range(8)]),
        _texts,
        st.sampled_from(_SCOPES),
        st.sampled_from(["fact", "message"]),
    ),
    max_size=6,
    unique_by=lambda one: one.id,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(kept=_entries, other=_entries)
def test_the_law_of_forgetting(local: HybridIndex, kept: list[Entry], other: list[Entry]) -> None:
    local.delete(local.ids())
    passing = [e for e in other if e.id not in {one.id for one in kept}]

    def state() -> tuple[str, list[tuple[str, float, float | None]]]:
        hits = [hit for scope in _SCOPES for hit in local.search("bees 東京 🎉", scope, 20)]
        rounded = [(h.entry.id, round(h.score, 5), h.bm25) for h in hits]
        return local.digest(), rounded

    local.add(kept)
    before = state()
    local.add(passing)
    assert (local.digest() == before[0]) == (not passing)
    local.delete([e.id for e in passing])
    assert state() == before
    assert local.check().ok


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(everything=_entries, query=_texts, kind=st.sampled_from([None, "fact", "message"]))
def test_no_search_shows_what_its_scope_does_not_cover(
    local: HybridIndex, everything: list[Entry], query: list[str], kind: str | None
) -> None:
    local.delete(local.ids())
    local.add(everything)
    for scope in _SCOPES:
        where = {"kind": kind} if kind else None
        hits = {hit.entry.id for hit in local.search(" ".join(query), scope, 50, where=where)}
        assert hits == {
            e.id for e in everything if scope.covers(e.scope) and kind in (None, e.meta["kind"])
        }
