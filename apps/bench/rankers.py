"""Ways of finding the turn that answers a question: libraries called directly, and chance.

A ranker is a function of a question and k. Knows nothing of agents; ours is wrapped as one where it
is measured.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from ...memory.words import COMMON
from .metrics import ndcg_at, percentile, recall_at

if TYPE_CHECKING:
    from ...memory.record import Scope
    from ...memory.vectors import Embedder, Vectors
    from .dialogue import Probe
    from .setting import Encode

Ranker = Callable[[str, int], Sequence[str]]
"""(question, k) -> ids of at most k turns, best first."""


def bm25(texts: Mapping[str, str], resources: ExitStack) -> Ranker:
    """SQLite's FTS5 called directly: Okapi BM25 over English stems, any word of the question."""
    db = sqlite3.connect(":memory:")
    resources.callback(db.close)
    db.execute("CREATE VIRTUAL TABLE t USING fts5(id UNINDEXED, body, tokenize='porter unicode61')")
    db.executemany("INSERT INTO t VALUES (?, ?)", texts.items())

    def rank(question: str, k: int) -> list[str]:
        words = bm25_query(question)
        if not words:
            return []
        found = db.execute("SELECT id FROM t WHERE t MATCH ? ORDER BY rank LIMIT ?", (words, k))
        return [id for (id,) in found]

    return rank


def bm25_query(question: str) -> str:
    """Any telling word of the question, as FTS5 takes it: with the others it finds less (on LoCoMo
    recall@10 .55 instead of .60), and takes longer."""
    said = re.findall(r"\w+", question)
    telling = [word for word in said if word.lower() not in COMMON] or said
    return " OR ".join(f'"{word}"' for word in telling)


def cosine(ids: Sequence[str], vectors: Vectors, encode: Encode) -> Ranker:
    """The encoder and one matrix product; `vectors` [N, D] are those of the turns."""

    def rank(question: str, k: int) -> list[str]:
        scores = vectors @ encode([question])[0]
        return [ids[at] for at in (-scores).argsort(kind="stable")[:k]]

    return rank


def chroma_collection(folder: Path, resources: ExitStack) -> Any:
    """A Chroma collection on disk, opened directly, with Chroma's own defaults but for cosine."""
    import chromadb

    quiet = chromadb.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(folder), settings=quiet)
    resources.callback(client.close)
    return client.create_collection(
        "bench", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
    )


def chroma(
    ids: Sequence[str], vectors: Vectors, encode: Encode, folder: Path, resources: ExitStack
) -> Ranker:
    """The encoder and Chroma on disk, called directly; `vectors` as in `cosine`."""
    collection = chroma_collection(folder, resources)
    for start in range(0, len(ids), 1000):
        part = slice(start, start + 1000)
        collection.add(ids=list(ids[part]), embeddings=vectors[part])

    def rank(question: str, k: int) -> list[str]:
        found = collection.query(query_embeddings=encode([question]), n_results=min(k, len(ids)))
        return list(found["ids"][0])

    return rank


def hybrid(
    texts: Mapping[str, str], embedder: Embedder, folder: Path, scope: Scope, resources: ExitStack
) -> Ranker:
    """The index under our stores, with its defaults."""
    from ...memory.record import now
    from ...memory.search.base import Entry
    from ...memory.search.index import HybridIndex

    index = resources.enter_context(HybridIndex.alone(folder / "index.sqlite3", embedder))
    index.add(Entry(id=id, text=text, scope=scope, created=now()) for id, text in texts.items())
    return lambda question, k: [hit.entry.id for hit in index.search(question, scope, k)]


def reciprocal_ranks(*rankers: Ranker, depth: int = 100) -> Ranker:
    """Reciprocal rank fusion, the usual way to join words and meaning (Cormack et al. 2009)."""

    def rank(question: str, k: int) -> list[str]:
        scores: dict[str, float] = {}
        for ranker in rankers:
            for place, id in enumerate(ranker(question, depth), 1):
                scores[id] = scores.get(id, 0.0) + 1 / (60 + place)
        return sorted(scores, key=lambda id: (-scores[id], id))[:k]

    return rank


def chance(texts: Mapping[str, str], rng: Random) -> Ranker:
    """Any k turns."""
    ids = list(texts)
    return lambda question, k: rng.sample(ids, min(k, len(ids)))


def score(rank: Ranker, probes: Sequence[Probe], cutoffs: Sequence[int]) -> dict[str, float]:
    """Mean recall@k for each cutoff, NDCG@10, and milliseconds per question, over all probes."""
    depth = max(*cutoffs, 10)
    found, ms = [], []
    for probe in probes:
        started = time.perf_counter()
        found.append(rank(probe.question, depth))
        ms.append((time.perf_counter() - started) * 1000)
    ranked = list(zip(found, (probe.evidence for probe in probes), strict=True))
    recalls = {
        f"recall@{k}": sum(recall_at(k, ids, gold) for ids, gold in ranked) / len(ranked)
        for k in cutoffs
    }
    ndcg = sum(ndcg_at(10, ids, gold) for ids, gold in ranked) / len(ranked)
    return recalls | {
        "NDCG@10": ndcg,
        "ms p50": percentile(ms, 50),
        "ms p95": percentile(ms, 95),
    }
