from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import run
from sys import executable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.errors import ConfigError, ModelError, ModelNotFound
from palimpsest.memory.encoder import MAX_WINDOWS, SentenceTransformerEmbedder
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.vectors import CachedEmbedder, Embedder, Encoding, Vectors, open_embedder

PROSE = "The weather was mild and the train was late, so we read the paper and waited. " * 14
"""About 240 word pieces: nearly one window."""


class Counting:
    """An embedder that notes what it is asked for."""

    name, dimension = "counting", 16

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.asked.append(list(texts))
        return HashingEmbedder(16).embed(texts)

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        raise AssertionError("the cache keeps vectors of whole texts only")


@given(texts=st.lists(st.text(), max_size=5))
def test_every_text_becomes_a_row_of_length_one(texts: list[str]) -> None:
    rows = HashingEmbedder(32).embed(texts)
    assert rows.shape == (len(texts), 32)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_hashing_puts_texts_that_share_words_or_spellings_nearer_than_others() -> None:
    one, same_words, inflected, other = HashingEmbedder().embed(
        ["I climb rocks", "rocks I climb", "climbing a rock", "bees make honey"]
    )
    assert one @ same_words > one @ inflected > one @ other


def test_hashing_gives_the_same_vectors_in_every_process() -> None:
    code = (
        "from palimpsest.memory.hashing import HashingEmbedder;"
        "print(HashingEmbedder(8).embed(['Maria climbs']).tolist())"
    )
    there = run([executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(HashingEmbedder(8).embed(["Maria climbs"]).tolist())


def test_the_cache_asks_for_each_miss_once_and_in_one_call() -> None:
    inner = Counting()
    cached = CachedEmbedder(inner)
    first = cached.embed(["a", "b", "a"])
    assert np.array_equal(first, HashingEmbedder(16).embed(["a", "b", "a"]))
    assert np.array_equal(cached.embed(["b", "c"]), HashingEmbedder(16).embed(["b", "c"]))
    assert inner.asked == [["a", "b"], ["c"]]
    assert cached.embed([]).shape == (0, 16)
    assert len(inner.asked) == 2


def test_the_cache_drops_what_was_used_longest_ago() -> None:
    inner = Counting()
    cached = CachedEmbedder(inner, capacity=2)
    cached.embed(["a", "b"])
    cached.embed(["a"])
    cached.embed(["c"])
    assert len(cached) == 2
    cached.embed(["a", "c"])
    assert inner.asked == [["a", "b"], ["c"]]
    cached.embed(["b"])
    assert inner.asked[-1] == ["b"]


def test_one_call_may_be_larger_than_the_cache() -> None:
    cached = CachedEmbedder(Counting(), capacity=2)
    texts = [str(n) for n in range(9)]
    assert np.array_equal(cached.embed(texts), HashingEmbedder(16).embed(texts))
    assert len(cached) == 2


def test_a_forgotten_text_is_embedded_anew() -> None:
    inner = Counting()
    cached = CachedEmbedder(inner)
    cached.embed(["a", "b"])
    cached.forget(["a", "never seen"])
    assert len(cached) == 1
    cached.embed(["a", "b"])
    assert inner.asked == [["a", "b"], ["a"]]


def test_the_cache_serves_many_threads() -> None:
    cached = CachedEmbedder(HashingEmbedder(16), capacity=7)
    texts = [f"text number {n % 20}" for n in range(400)]
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda text: cached.embed([text])[0], texts))
    assert np.array_equal(np.stack(rows), HashingEmbedder(16).embed(texts))


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dimension=2"):
        HashingEmbedder(2)
    with pytest.raises(ConfigError, match="capacity=0"):
        CachedEmbedder(HashingEmbedder(), capacity=0)
    with pytest.raises(ConfigError, match="batch_size=0"):
        SentenceTransformerEmbedder(tmp_path, batch_size=0)


def test_a_missing_and_a_broken_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="models pull"):
        SentenceTransformerEmbedder(tmp_path / "nothing")
    (tmp_path / "modules.json").write_text("[]")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="does not load"):
        SentenceTransformerEmbedder(tmp_path)


def test_the_embedder_without_a_model_has_a_name() -> None:
    assert open_embedder("hashing").name == HashingEmbedder().name


@pytest.mark.model
def test_the_encoder_finds_a_meaning_without_a_shared_word(embedder: Embedder) -> None:
    query, near, far = embedder.embed(
        ["Which sport does she like?", "Maria goes bouldering", "The invoice is overdue"]
    )
    assert query @ near > query @ far + 0.1


@pytest.mark.model
def test_a_text_has_the_same_vector_alone_and_in_company(embedder: Embedder) -> None:
    texts = ["short", PROSE, "a sentence of some words", "", "🎉 مرحبا [SEP] ##x"]
    plain = embedder.embedder if isinstance(embedder, CachedEmbedder) else embedder
    together = plain.embed(texts)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    for text, row in zip(texts, together, strict=True):
        assert np.allclose(plain.embed([text])[0], row, atol=1e-5)


@pytest.mark.model
def test_what_is_said_beyond_the_first_window_still_counts(embedder: Embedder) -> None:
    fact = "My sister Ana keeps bees in Porto."
    query, late, without = embedder.embed(["Who keeps bees?", 2 * PROSE + 4 * fact, 2 * PROSE])
    assert query @ late > query @ without + 0.05


@pytest.mark.model
def test_a_text_of_megabytes_costs_as_many_windows_as_are_allowed(embedder: Embedder) -> None:
    assert isinstance(embedder, CachedEmbedder)
    encoder = embedder.embedder
    assert isinstance(encoder, SentenceTransformerEmbedder)
    assert len(encoder._windows(["word " * 1_000_000])) == MAX_WINDOWS


@pytest.mark.model
def test_the_encoder_serves_many_threads(embedder: Embedder) -> None:
    plain = embedder.embedder if isinstance(embedder, CachedEmbedder) else embedder
    texts = [f"sentence {n} " * (1 + n % 3) for n in range(8)]
    alone = plain.embed(texts)
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda text: plain.embed([text])[0], texts))
    assert np.allclose(np.stack(rows), alone, atol=1e-5)
