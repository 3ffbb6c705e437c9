"""`palimpsest bench recall`: how well and how fast the turn that answers a question is found.

Our index beside what it is made of, called directly. No language model takes part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...memory.record import Scope
from .dialogue import Dialogue, needle_dialogue
from .harness import Table, progress
from .long_talk import on_locomo
from .rankers import Ranker, bm25, chance, chroma, cosine, hybrid, score
from .setting import Setting

CUTOFFS = (1, 5, 10)
PLOT = tuple(f"recall@{k}" for k in CUTOFFS)


def recall(setting: Setting) -> Iterator[Table]:
    """Recall, NDCG and time per question, on our own dialogue and, given data, on LoCoMo."""
    yield from needles(setting, needle_dialogue(setting.rng("needles")))
    if setting.data is not None:
        yield from on_locomo(setting)


def needles(setting: Setting, dialogue: Dialogue) -> Iterator[Table]:
    """Facts among small talk, each asked for in two other wordings."""
    texts = dialogue.texts()
    progress(f"{len(dialogue.probes)} questions on {len(texts)} turns")
    yield Table(
        title="finding a fact among small talk",
        rows=[
            {"system": name, **score(rank, dialogue.probes, CUTOFFS)}
            for name, rank in systems(setting, texts).items()
        ],
        note=f"{len(texts)} turns, {len(dialogue.probes)} questions; of our own making",
        plot=PLOT,
    )


def systems(setting: Setting, texts: Mapping[str, str]) -> dict[str, Ranker]:
    """Ours first, then what it is made of, then chance."""
    ids, vectors = list(texts), setting.encode(list(texts.values()))
    kept = setting.resources
    return {
        "hybrid index (ours)": hybrid(
            texts, setting.embedder, setting.folder("hybrid"), Scope(session="bench"), kept
        ),
        "BM25 (FTS5 directly)": bm25(texts, kept),
        "MiniLM + matrix product": cosine(ids, vectors, setting.encode),
        "MiniLM + Chroma directly": chroma(
            ids, vectors, setting.encode, setting.folder("chroma"), kept
        ),
        "chance": chance(texts, setting.rng("chance")),
    }
