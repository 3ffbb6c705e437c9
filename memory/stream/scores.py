"""Ways to tell whether a question is about a segment of a document. Higher is more relevant.

Knows nothing of documents or budgets. What a score means differs from one to the next; only those
of one scorer can be compared. Source: XL3M (arXiv 2405.17755) for the entropy of the answer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import lru_cache
from typing import TYPE_CHECKING

from ...errors import CapabilityError
from ...llm.base import LLM, GenerationConfig, SupportsEntropy
from ..words import asked, stems
from .quoting import answer_prompt, segment_prompt

if TYPE_CHECKING:
    from ..vectors import Embedder

Scorer = Callable[[str, str], float]
"""score(segment, question) -> float"""


def likelihood(llm: LLM) -> Scorer:
    """ln P(question | "write a question that this segment answers"), less that without a segment.

    In nats. For a small model this finds the segment far more often than the entropy of its answer.

    Raises:
        CapabilityError: the model has no log-probabilities.
    """
    if "logprobs" not in llm.capabilities:
        raise CapabilityError(_missing(llm, "log-probabilities"))
    return _beyond_prior(lambda segment, asked: llm.logprobs(segment_prompt(segment), [asked])[0])


def entropy(llm: LLM, prefix: str = "") -> Scorer:
    """H(no segment) - H(segment), in nats, of the token that follows `prefix` in the answer: XL3M.

    Without a prefix, such as "The pass key is", a chat model is often sure of its first word and of
    nothing else.

    Raises:
        CapabilityError: the model does not tell its entropy.
    """
    if not isinstance(llm, SupportsEntropy):
        raise CapabilityError(_missing(llm, "entropies"))
    uncertain = llm.entropy
    return _beyond_prior(lambda segment, asked: -uncertain(answer_prompt(segment, asked), prefix))


def confidence(llm: LLM, tokens: int = 4) -> Scorer:
    """Mean ln P of the first tokens of the greedy answer, less that without a segment; nats.

    Raises:
        CapabilityError: when scoring, if the model streams tokens without log-probabilities.
    """

    def mean(segment: str, question: str) -> float:
        reply = llm.stream(
            answer_prompt(segment, question), (), GenerationConfig(max_tokens=tokens)
        )
        known = [token.logprob for token in reply if token.logprob is not None]
        if not known:
            raise CapabilityError(_missing(llm, "log-probabilities of what it generates"))
        return sum(known) / len(known)

    return _beyond_prior(mean)


def lexical(segments: Sequence[str]) -> Scorer:
    """BM25 among these segments (SQLite FTS5): the baseline that needs no model."""
    said = (" ".join(f"{stem:x}" for stem in stems(segment)) for segment in segments)
    rows = list(enumerate(said))

    @lru_cache(maxsize=1)
    def found(question: str) -> dict[str, float]:
        query = " OR ".join(f'"{stem:x}"' for stem in asked(question))
        if not query:
            return {}
        with closing(sqlite3.connect(":memory:")) as index:
            index.execute("CREATE VIRTUAL TABLE lexicon USING fts5 (stems)")
            index.executemany("INSERT INTO lexicon (rowid, stems) VALUES (?, ?)", rows)
            scores = "SELECT rowid, -bm25(lexicon) FROM lexicon WHERE stems MATCH ?"
            return {segments[at]: score for at, score in index.execute(scores, (query,))}

    return lambda segment, question: found(question).get(segment, 0.0)


def similarity(embedder: Embedder) -> Scorer:
    """Cosine of the embeddings of segment and question."""
    query = lru_cache(maxsize=1)(lambda question: embedder.embed([question])[0])
    return lambda segment, question: float(embedder.embed([segment])[0] @ query(question))


def _beyond_prior(score: Scorer) -> Scorer:
    """`score` less that of no segment: what the segment adds. The ranking stays; 0 gets a meaning,
    and scores of different questions can be compared."""
    prior = lru_cache(maxsize=1)(lambda question: score("", question))
    return lambda segment, question: score(segment, question) - prior(question)


def _missing(llm: LLM, what: str) -> str:
    return (
        f"model {llm.name!r} gives no {what}; run it in this process, or choose another score"
        " ('lexical' needs no model)"
    )
