"""Order recall: pairs are as the paper says, and a memory that keeps the order is told apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from palimpsest.apps.bench import sort
from palimpsest.apps.bench.dialogue import chronicle
from palimpsest.apps.bench.setting import Setting
from palimpsest.llm.scripted import ScriptedLLM
from palimpsest.memory.hashing import HashingEmbedder

CHAPTER = Path(__file__).parents[1] / "data" / "time_machine_chapter_1.txt"


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    monkeypatch.setattr(sort, "QUICK_EXCERPTS", (1_000,))
    monkeypatch.setattr(sort, "PAIRS", 40)
    with closing(Setting(seed=0, full=False, data=None, scratch=tmp_path)) as made:
        embedder = HashingEmbedder()
        models = {
            "embedder": embedder,
            "encode": embedder.embed,
            "llm": ScriptedLLM(lambda messages: "."),
        }
        made.__dict__.update(models)
        yield made


def test_pairs_begin_sentences_do_not_overlap_and_fill_every_distance() -> None:
    words = CHAPTER.read_text().split()
    pairs = list(sort._pairs(words, 20, Random(1), 80))
    assert pairs == list(sort._pairs(words, 20, Random(1), 80)) and len(pairs) == 80
    starts, text = set(sort._starts(words)), " ".join(words)
    place = {" ".join(words[at : at + 20]): at for at in starts}
    edges = [20, *(int(edge * len(words)) for edge in sort.EDGES)]
    counts = [0] * len(sort.EDGES)
    for pair in pairs:
        first, second = place[pair.first], place[pair.second]
        assert text.count(pair.first) == text.count(pair.second) == 1
        assert second - first == pair.distance > 20
        counts[sum(pair.distance > edge for edge in edges[1:])] += 1
    assert counts == [20] * 4


def test_titles_end_no_sentence() -> None:
    said = "Then Mr. Smith rose; he bowed. Mrs. Hill did not"
    assert sort._starts(said.split(" ")) == [0, 4, 6]


def test_a_store_that_keeps_the_order_is_told_from_one_that_does_not(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sort, "_excerpt", lambda setting, rng, length: CHAPTER.read_text().split())
    _, overall, _ = sort.sort(setting)
    accuracy = {str(row["system"]): row["accuracy"] for row in overall.rows}
    ours, shuffled = accuracy["palimpsest"], accuracy["palimpsest, order shuffled"]
    assert isinstance(ours, float) and ours > 0.9
    assert isinstance(shuffled, float) and shuffled < 0.75


def test_the_bar_for_books_is_not_asked_of_a_made_up_chronicle(setting: Setting) -> None:
    *_, held = sort.sort(setting)
    assert held.rows[0]["check"] == "accuracy above that of BM25"
    assert len(chronicle(Random(0), sections=190).split()) > max(sort.EXCERPTS)
