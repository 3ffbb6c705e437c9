"""`palimpsest bench recall`: how well and how fast the turn that answers a question is found.

Our index beside what it is made of, called directly. No language model takes part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from ...memory.record import Scope
from .dialogue import Dialogue, Probe, locomo, needle_dialogue
from .harness import Cell, Table, progress
from .rankers import Ranker, bm25, chance, chroma, cosine, hybrid, score
from .setting import Setting

CUTOFFS = (1, 5, 10)
QUICK_CONVERSATIONS, QUICK_QUESTIONS = 3, 40
"""LoCoMo conversations, and questions on each, of a quick run; a full one takes all."""

PLOT = tuple(f"recall@{k}" for k in CUTOFFS)


def recall(setting: Setting) -> Iterator[Table]:
    """Recall, NDCG and time per question, on our own dialogue and, given data, on LoCoMo."""
    yield from needles(setting, needle_dialogue(setting.rng("needles")))
    if setting.data is not None:
        yield on_locomo(setting)


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


def on_locomo(setting: Setting) -> Table:
    """LoCoMo, turn level: the utterances that the data set names as evidence, found in the
    conversation they belong to. Means over all questions."""
    totals: dict[str, list[tuple[int, Mapping[str, float]]]] = {}
    turns = 0
    conversations = locomo(setting.dataset())
    for name, texts, probes in islice(conversations, None if setting.full else QUICK_CONVERSATIONS):
        asked = _sample(setting, name, probes)
        turns += len(texts)
        progress(f"LoCoMo {name}: {len(asked)} questions on {len(texts)} utterances")
        for system, rank in systems(setting, texts).items():
            totals.setdefault(system, []).append((len(asked), score(rank, asked, CUTOFFS)))
    return Table(
        title="LoCoMo, evidence utterances",
        rows=[{"system": name, **_weighted(parts)} for name, parts in totals.items()],
        note=f"{turns} utterances, {sum(n for n, _ in totals['chance'])} questions with stated"
        " evidence (categories 1-4); ms: question-weighted means over conversations",
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


def _sample(setting: Setting, name: str, probes: list[Probe]) -> list[Probe]:
    if setting.full or len(probes) <= QUICK_QUESTIONS:
        return probes
    return setting.rng(name).sample(probes, QUICK_QUESTIONS)


def _weighted(parts: list[tuple[int, Mapping[str, float]]]) -> dict[str, Cell]:
    asked = sum(n for n, _ in parts)
    return {
        metric: sum(n * scores[metric] for n, scores in parts) / asked for metric in parts[0][1]
    }
