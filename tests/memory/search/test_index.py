"""What is added is found by words, meaning, speaker and time; what is deleted leaves no trace."""

import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from palimpsest.errors import ConfigError, InputError, StoreError
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.record import Scope
from palimpsest.memory.search import lexicon
from palimpsest.memory.search.base import SIGNALS, Entry, Scalar
from palimpsest.memory.search.fusion import either
from palimpsest.memory.search.index import HybridIndex
from palimpsest.memory.search.signals import _times
from palimpsest.memory.vectors import CachedEmbedder, Encoding
from palimpsest.memory.words import asked

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
MARIA = Scope(user="maria")
MONDAY = Scope(user="maria", session="monday")
TUESDAY = Scope(user="maria", session="tuesday")
JOHN = Scope(user="john", session="monday")


def entry(
    id: str,
    text: str,
    scope: Scope = MONDAY,
    meta: Mapping[str, Scalar] | None = None,
    after: timedelta = timedelta(),
) -> Entry:
    return Entry(id=id, text=text, scope=scope, created=NOON + after, meta=meta or {})


FACTS = [
    entry("climb", "I climb rocks", meta={"kind": "fact", "source": "user"}),
    entry("porto", "My sister Ana keeps bees in Porto", TUESDAY, {"kind": "fact"}),
    entry("train", "The train to Lisbon was late", TUESDAY, {"kind": "message"}),
    entry("bread", "We baked bread with rye", meta={"kind": "message", "source": "user"}),
    entry("john", "I climb rocks and keep bees", JOHN, {"kind": "fact"}),
]


def found(index: HybridIndex, query: str, scope: Scope = MARIA, k: int = 3) -> list[str]:
    return [hit.entry.id for hit in index.search(query, scope, k, at=NOON)]


def test_what_was_added_is_found_and_says_why(index: HybridIndex) -> None:
    assert index.add(FACTS) == {fact.id for fact in FACTS}
    best, *others = index.search("Who keeps bees?", MARIA, 3)
    assert best.entry == FACTS[1]
    assert 1 >= best.score > max(hit.score for hit in others) >= 0
    assert best.signals.keys() <= {"bias", *SIGNALS} and best.signals["bm25"] > 0
    assert all("bm25" not in hit.signals for hit in others)
    query, row = HashingEmbedder().embed(["Who keeps bees?", best.entry.text])
    assert best.cosine == pytest.approx(float(query @ row), abs=1e-2)


def test_the_shares_of_a_score_add_up_to_its_log_odds(local: HybridIndex) -> None:
    local.add(FACTS)
    hits = local.search("Who keeps bees in Porto?", MARIA, 9)
    odds = [np.log(hit.score / (1 - hit.score)) for hit in hits]
    assert odds == pytest.approx([sum(hit.signals.values()) for hit in hits], abs=0.01)


def test_nothing_relevant_is_an_answer(local: HybridIndex) -> None:
    local.add(FACTS)
    assert local.search("How do I file my taxes?", MARIA, 3, least=0.1) == []
    assert [hit.entry.id for hit in local.search("bees in Porto", MARIA, 3, least=0.1)] == ["porto"]


def test_a_session_counts_by_its_two_best_entries_and_not_by_how_many_it_has(
    local: HybridIndex,
) -> None:
    rambling = [entry(f"bees{n}", f"Bees, more bees, number {n}", TUESDAY) for n in range(20)]
    local.add([*FACTS[:1], *rambling, entry("ana", "Ana keeps bees in Porto", MONDAY)])
    (first, p), (second, q) = local.sessions("Does Ana keep bees in Porto?", MARIA, 5, at=NOON)
    assert (first, second) == ("monday", "tuesday") and 1 > p > q > 0
    assert either([0.2, 0.5, 0.1, 0.1]) == pytest.approx(1 - 0.8 * 0.5)


def test_common_words_are_left_to_the_score_where_many_entries_say_them(
    local: HybridIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lexicon, "MOST_READ", 5)
    common = [entry(f"c{n}", f"the train number {n} was late") for n in range(30)]
    local.add([*common, entry("rare", "a late pelican"), entry("too", "another pelican, late")])
    query = "Which pelican was late on the train?"
    with local._database.read() as session:
        owner = local._table.rows.owner(session, common[0].owner)
        assert owner is not None
        words = local._table.lexicon
        having = words.having(session, owner.number, asked(query))
        keys = words.match(session, having, owner.number, 50)
    assert len(keys) == 2, "the 30 that say nothing but common words were read, too"
    assert found(local, query)[:2] in (["rare", "too"], ["too", "rare"])


def test_rows_are_looked_up_by_their_keys_and_not_among_all_of_the_owners(
    local: HybridIndex,
) -> None:
    asked_for = local._table.rows._plain.params(owner=1, keys=list(range(300)))
    with local._database.read() as session:
        connection = session.connection()
        text = asked_for.compile(connection, compile_kwargs={"literal_binds": True})
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}").all()
    ways = [str(step[3]) for step in plan if str(step[3]).startswith(("SEARCH", "SCAN"))]
    assert len(ways) == 2 and all("INTEGER PRIMARY KEY" in way for way in ways), ways


def test_an_index_outlives_its_process(reopen) -> None:  # type: ignore[no-untyped-def]
    index = reopen()
    index.add(FACTS)
    digest, hits = index.digest(), index.search("bees in Porto", MARIA, 3)
    again = reopen()
    assert again.digest() == digest
    assert again.search("bees in Porto", MARIA, 3) == hits


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


def test_an_unchanged_entry_is_not_embedded_again(tmp_path: Path) -> None:
    asked: list[str] = []

    class Watched(HashingEmbedder):
        def encode(self, texts):  # type: ignore[no-untyped-def]
            asked.extend(texts)
            return super().encode(texts)

    with HybridIndex.alone(tmp_path / "watched.sqlite3", Watched()) as index:
        index.add(FACTS)
        asked.clear()
        index.add(FACTS)
    assert asked == []


def test_an_entry_that_changes_hands_leaves_its_former_owner(index: HybridIndex) -> None:
    index.add(FACTS)
    index.add([entry("porto", FACTS[1].text, JOHN)])
    assert "porto" not in found(index, "bees in Porto", MARIA, 9)
    assert found(index, "bees in Porto", JOHN)[0] == "porto"


def test_deleted_entries_are_gone_and_named(index: HybridIndex) -> None:
    index.add(FACTS)
    assert index.delete(["porto", "nobody", "john"]) == {"porto", "john"}
    assert index.delete(["porto"]) == frozenset()
    assert index.ids() == {"climb", "train", "bread"}
    assert "porto" not in found(index, "bees in Porto", MARIA, 9)
    assert found(index, "bees", JOHN) == []


def test_deleting_empties_the_embedders_cache_of_the_text(tmp_path: Path) -> None:
    cached = CachedEmbedder(HashingEmbedder())
    with HybridIndex.alone(tmp_path / "cached.sqlite3", cached) as index:
        index.add(FACTS[:2])
        cached.embed([fact.text for fact in FACTS[:2]])
        index.delete(["porto"])
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


def test_metadata_and_time_narrow_a_search(index: HybridIndex) -> None:
    day = timedelta(days=1)
    old = entry("old", "I used to climb trees", meta={"kind": "note"}, after=-30 * day)
    index.add([*FACTS, old])

    def kinds(**where: Scalar | list[Scalar]) -> set[str]:
        return {hit.entry.id for hit in index.search("climb bees", MARIA, 9, where=where)}

    assert kinds(kind="fact") == {"climb", "porto"}
    assert kinds(kind=["fact", "message"]) == {"climb", "porto", "train", "bread"}
    assert kinds(kind="message", source="user") == {"bread"}
    assert kinds(kind="summary") == set()
    index.add([entry("climb", "I climb rocks", meta={"source": "user"})])
    assert kinds(kind="fact") == {"porto"}
    before = index.search("climb", MARIA, 9, until=NOON - day)
    assert [hit.entry.id for hit in before] == ["old"]
    assert "old" not in {hit.entry.id for hit in index.search("climb", MARIA, 9, since=NOON)}
    assert index.search("climb", MARIA, 9, since=NOON + day) == []


@pytest.mark.parametrize("key", ["owner", "meta", "kind' OR 1 --", '$."x"', "meta.session"])
def test_only_listed_keys_can_be_filtered_by(local: HybridIndex, key: str) -> None:
    with pytest.raises(ConfigError, match="it may have"):
        local.search("climb", MARIA, 3, where={key: "x"})


def test_a_search_that_makes_no_sense_is_refused(local: HybridIndex) -> None:
    with pytest.raises(ConfigError, match="k=0"):
        local.search("climb", MARIA, 0)
    with pytest.raises(ConfigError, match=r"least=1\.5"):
        local.search("climb", MARIA, 3, least=1.5)
    with pytest.raises(ConfigError, match="must be a value"):
        local.search("climb", MARIA, 3, where={"kind": []})
    with pytest.raises(ConfigError, match="time zone"):
        local.search("climb", MARIA, 3, since=datetime(2026, 1, 1))
    with pytest.raises(InputError, match="empty"):
        local.search("  ", MARIA, 3)


@pytest.mark.parametrize(
    ("collection", "url"), [("a", "http://x"), ("a/b/c", "http://x"), ("good", "ftp://x")]
)
def test_a_malformed_name_or_url_is_refused(tmp_path: Path, collection: str, url: str) -> None:
    options = {"collection": collection, "chroma_url": url}
    with (
        pytest.raises(ConfigError, match="must be"),
        HybridIndex.alone(tmp_path / "x.sqlite3", HashingEmbedder(), **options),
    ):
        pass


def test_equal_scores_come_in_order_of_id(local: HybridIndex) -> None:
    local.add([entry(id, "the very same text", Scope(user="maria")) for id in ("c", "a", "d", "b")])
    assert found(local, "same text", k=9) == ["a", "b", "c", "d"]


def test_a_speakers_name_in_the_question_means_who_says_i(local: HybridIndex) -> None:
    said = [("Ana", "I keep bees in Porto"), ("Rui", "I keep goats"), ("Rui", "Ana, you are late")]
    local.add(
        entry(f"{n}", text, meta={"speaker": who}, after=timedelta(minutes=n))
        for n, (who, text) in enumerate(said)
    )
    hits = local.search("What does Ana keep?", MARIA, 3)
    assert hits[0].entry.id == "0" and hits[0].signals["speaker"] > 0
    assert found(local, "What does Rui keep?")[0] == "1"


def test_a_time_in_the_question_prefers_what_was_said_then(local: HybridIndex) -> None:
    local.add(
        entry(f"{days}", "We went hiking", Scope(user="maria"), after=-timedelta(days=days))
        for days in (2, 14, 40, 300)
    )
    assert found(local, "Where did we go hiking two weeks ago?")[0] == "14"
    assert found(local, "Did we go hiking in November 2025?")[0] == "40"
    assert found(local, "Where did we hike in March?")[0] == "300"


def test_what_stands_next_to_what_is_like_the_question_is_looked_at_too(index: HybridIndex) -> None:
    talk = ["Where does your sister live?", "In Porto."]
    index.add(entry(f"t{n}", text, after=timedelta(seconds=n)) for n, text in enumerate(talk))
    hits = {hit.entry.id: hit for hit in index.search("sister", MONDAY, 9)}
    assert hits["t1"].signals["bm25 window"] > 0
    assert hits["t1"].score > 0


def test_how_an_owner_is_scored_depends_on_nobody_else(local: HybridIndex) -> None:
    local.add(FACTS)
    alone = local.search("Who keeps bees?", MARIA, 9)
    local.add(entry(f"j{n}", f"bees and more bees {n}", JOHN) for n in range(50))
    assert local.search("Who keeps bees?", MARIA, 9) == alone


def test_another_embedder_is_refused(tmp_path: Path) -> None:
    with HybridIndex.alone(tmp_path / "x.sqlite3", HashingEmbedder(16)) as index:
        index.add(FACTS)
    with (
        pytest.raises(StoreError, match=r"hashing:16.*hashing:32.*doctor"),
        HybridIndex.alone(tmp_path / "x.sqlite3", HashingEmbedder(32)),
    ):
        pass


def test_a_cleared_index_is_as_good_as_new(index: HybridIndex) -> None:
    empty = index.digest()
    index.add(FACTS)
    index.clear()
    assert index.digest() == empty
    assert index.count() == 0 and found(index, "climb") == []
    assert index.add(FACTS) == {fact.id for fact in FACTS}
    assert found(index, "bees in Porto")[0] == "porto"


def test_a_saved_index_is_loaded_whole(index: HybridIndex, tmp_path: Path) -> None:
    index.add(FACTS)
    digest, hits = index.digest(), index.search("bees in Porto", MARIA, 9)
    index.save(tmp_path / "saved")
    index.delete(["climb"])
    index.add([entry("later", "something else")])
    index.load(tmp_path / "saved")
    assert index.digest() == digest
    assert index.search("bees in Porto", MARIA, 9) == hits


def test_what_another_embedder_saved_is_embedded_anew(local: HybridIndex, tmp_path: Path) -> None:
    local.add(FACTS)
    local.save(tmp_path / "saved")
    with HybridIndex.alone(tmp_path / "other.sqlite3", HashingEmbedder(64)) as other:
        other.load(tmp_path / "saved")
        assert found(other, "bees in Porto")[0] == "porto"
        assert other.ids() == local.ids()


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


def test_an_index_in_a_file_opens_no_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[object] = []
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, lambda self, *to: reached.append(to))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *to, **_: reached.append(to))
    with HybridIndex.alone(tmp_path / "quiet.sqlite3", HashingEmbedder()) as index:
        index.add(FACTS)
        assert found(index, "bees")[0] == "porto"
        index.save(tmp_path / "saved")
        index.load(tmp_path / "saved")
        index.delete(["porto"])
        index.purge()
        index.clear()
    assert reached == []


def bytes_of(encoding: Encoding) -> list[bytes]:
    """What would tell a vector from chance, wherever it is left."""
    half = encoding.vector.astype(np.float16).tobytes()
    return [half[:64], encoding.vector.tobytes()[:64]]


def test_a_purge_leaves_nothing_of_a_deleted_entry_in_the_files(tmp_path: Path) -> None:
    secret = "Wilhelmina keeps 47 axolotls under the staircase"
    with HybridIndex.alone(tmp_path / "x" / "i.sqlite3", HashingEmbedder()) as index:
        index.add(entry(f"n{n}", f"nothing about number {n}") for n in range(200))
        index.add([entry("secret", secret)])
        needles = [secret.encode(), *bytes_of(HashingEmbedder().encode([secret])[0])]
        everything = [path.read_bytes() for path in (tmp_path / "x").iterdir()]
        assert all(any(needle in each for each in everything) for needle in needles[:2])
        index.delete(["secret"])
        index.purge()
        everything = [path.read_bytes() for path in (tmp_path / "x").iterdir()]
        assert not any(needle in each for each in everything for needle in needles)


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
        lambda id, words, scope, kind, day: entry(
            id, " ".join(words), scope, {"kind": kind}, timedelta(days=day)
        ),
        st.sampled_from([f"id{n}" for n in range(8)]),
        _texts,
        st.sampled_from(_SCOPES),
        st.sampled_from(["fact", "message"]),
        st.integers(0, 3),
    ),
    max_size=6,
    unique_by=lambda one: one.id,
)
_shared = [HealthCheck.function_scoped_fixture]


@settings(max_examples=25, deadline=None, suppress_health_check=_shared)
@given(kept=_entries, other=_entries)
def test_the_law_of_forgetting(local: HybridIndex, kept: list[Entry], other: list[Entry]) -> None:
    local.delete(local.ids())
    passing = [e for e in other if e.id not in {one.id for one in kept}]

    def state() -> tuple[str, list[object]]:
        hits = [hit for scope in _SCOPES for hit in local.search("bees 東京 🎉", scope, 20)]
        return local.digest(), [(h.entry.id, round(h.score, 9), h.signals) for h in hits]

    local.add(kept)
    before = state()
    local.add(passing)
    assert (local.digest() == before[0]) == (not passing)
    local.delete([e.id for e in passing])
    assert state() == before


@settings(max_examples=40, deadline=None, suppress_health_check=_shared)
@given(
    everything=_entries,
    query=_texts,
    kind=st.sampled_from([None, "fact", "message"]),
    since=st.none() | st.integers(0, 3),
    until=st.none() | st.integers(0, 3),
)
def test_no_search_shows_what_its_scope_and_filters_do_not_cover(
    local: HybridIndex,
    everything: list[Entry],
    query: list[str],
    kind: str | None,
    since: int | None,
    until: int | None,
) -> None:
    local.delete(local.ids())
    local.add(everything)
    where = {"kind": kind} if kind else None
    first = None if since is None else NOON + timedelta(days=since)
    last = None if until is None else NOON + timedelta(days=until)
    for scope in _SCOPES:
        hits = local.search(" ".join(query), scope, 50, where=where, since=first, until=last)
        assert {hit.entry.id for hit in hits} == {
            e.id
            for e in everything
            if scope.covers(e.scope)
            and kind in (None, e.meta["kind"])
            and (first is None or e.created >= first)
            and (last is None or e.created < last)
        }


def test_what_is_quoted_word_for_word_is_told_from_what_has_the_same_words(
    local: HybridIndex,
) -> None:
    local.add(
        [
            entry("quoted", "The boat that the old keeper built sank off Faro in the spring"),
            entry("mixed", "In the spring the old boat off Faro sank, built that the keeper"),
        ]
    )
    query = "the old keeper built sank off Faro"
    shares = {hit.entry.id: hit.signals for hit in local.search(query, MARIA, 2)}
    table = local.signals(query, MARIA)
    at = SIGNALS.index("quote")
    found = dict(zip(table.ids, table.values[:, at], strict=True))
    assert found == {"quoted": 1, "mixed": 0}
    assert shares["quoted"]["quote"] > 3 and "quote" not in shares["mixed"]


@given(
    texts=st.lists(st.lists(st.integers(0, 5), max_size=8), min_size=1, max_size=4),
    asked=st.lists(st.integers(0, 5), unique=True, max_size=4),
)
def test_counting_stems_all_at_once_is_counting_them_one_by_one(
    texts: list[list[int]], asked: list[int]
) -> None:
    said = np.array([stem for text in texts for stem in text], np.uint64)
    text_of = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    counted = _times(said, text_of, len(texts), np.array(asked, np.uint64))
    assert counted.tolist() == [[text.count(stem) for text in texts] for stem in asked]
