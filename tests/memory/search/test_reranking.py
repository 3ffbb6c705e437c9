"""A second look by a model that reads query and text together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from palimpsest.errors import ModelNotFound
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.record import Scope, now
from palimpsest.memory.search.base import Entry
from palimpsest.memory.search.index import HybridIndex
from palimpsest.memory.search.reranking import CrossEncoderReranker
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

MARIA = Scope(user="maria")
TEXTS = {"old": "my hives stood in Oslo", "new": "my hives are in Porto", "cat": "the cat sleeps"}


class Prefers:
    """Finds one word telling, and nothing else."""

    name = "prefers"

    def __init__(self, word: str) -> None:
        self.word = word

    def log_odds(self, query: str, texts: Sequence[str]) -> NDArray[np.float64]:
        return np.array([6.0 if self.word in text else -6.0 for text in texts])


def entries() -> list[Entry]:
    return [Entry(id=id, text=text, scope=MARIA, created=now()) for id, text in TEXTS.items()]


@pytest.mark.parametrize(("word", "first"), [("Porto", "new"), ("Oslo", "old"), ("cat", "cat")])
def test_a_reranker_has_half_a_say(tmp_path: Path, word: str, first: str) -> None:
    file, query = tmp_path / "index.sqlite3", "Where are my hives?"
    with HybridIndex.alone(file, HashingEmbedder()) as index:
        index.add(entries())
        before = {hit.entry.id: hit.score for hit in index.search(query, MARIA, 3)}
    with HybridIndex.alone(file, HashingEmbedder(), reranker=Prefers(word)) as index:
        hits = index.search(query, MARIA, 3)
        assert hits[0].entry.id == first
        for hit in hits:
            p, said = before[hit.entry.id], hit.signals["reranker"]
            assert said == (3.0 if word in hit.entry.text else -3.0)
            odds = math.log(hit.score / (1 - hit.score))
            assert odds == pytest.approx(math.log(p / (1 - p)) / 2 + said)
        assert [hit.entry.id for hit in index.search(query, MARIA, 1)] == [first]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder with random weights."""
    made = tmp_path_factory.mktemp("cross-encoder")
    words = sorted({word for text in TEXTS.values() for word in text.lower().split()})
    (made / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]))
    BertTokenizerFast(vocab=str(made / "vocab.txt")).save_pretrained(made)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(words) + 4, intermediate_size=16, num_labels=1, **sizes)
    BertForSequenceClassification(config).save_pretrained(made)
    return made


def test_a_cross_encoder_says_its_logits(folder: Path) -> None:
    reranker = CrossEncoderReranker(str(folder))
    texts = list(TEXTS.values())
    both = reranker.log_odds("my hives", texts)
    assert both.shape == (3,) and len(set(both.round(6))) > 1
    assert reranker.log_odds("my hives", texts[1:2]) == pytest.approx(both[1:2], abs=1e-5)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"reranker='.*nothing' cannot be opened"):
        CrossEncoderReranker(str(tmp_path / "nothing"))
