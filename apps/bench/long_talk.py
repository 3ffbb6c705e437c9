"""LoCoMo: which utterances, of months of talk, are the evidence for a question.

Ours with its defaults, with weights fitted on the other conversations, and what it is made of,
called directly. The shipped weights have never seen LoCoMo; see `fit`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from ...memory.record import Scope
from ...memory.search.fusion import either
from ...memory.search.index import HybridIndex
from .corpora import Corpus, Question, locomo
from .fusing import Fit, Judged, fill, fit, judge
from .harness import Row, Table, progress
from .metrics import Estimate, all_at, ndcg_at, percentile, recall_at
from .rankers import Ranker, bm25, chance, chroma, cosine, reciprocal_ranks
from .setting import Setting

QUICK_CONVERSATIONS, QUICK_QUESTIONS = 3, 40
"""Conversations, and questions on each, of a quick run; a full one takes all."""

OURS, CROSS_FITTED = "palimpsest", "palimpsest, weights cross-fitted"
BASELINES = "BM25 (FTS5)", "MiniLM + matrix product", "MiniLM + Chroma", "BM25 + MiniLM, RRF"
RIDGE = 0.01
KINDS = {"1": "multi-hop", "2": "when", "3": "open domain", "4": "single-hop"}
"""LoCoMo's categories."""

METRICS: Mapping[str, Callable[[Sequence[str], frozenset[str]], float]] = {
    "recall@1": lambda found, gold: recall_at(1, found, gold),
    "recall@5": lambda found, gold: recall_at(5, found, gold),
    "recall@10": lambda found, gold: recall_at(10, found, gold),
    "NDCG@10": lambda found, gold: ndcg_at(10, found, gold),
    "all@10": lambda found, gold: all_at(10, found, gold),
}


@dataclass
class Answers:
    """What one system found, question by question: (kind, evidence, ids)."""

    found: list[tuple[str, frozenset[str], Sequence[str]]] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)

    def values(self, metric: str, kind: str | None = None) -> list[float]:
        """The metric of every question, or of those of one kind."""
        how = METRICS[metric]
        return [how(ids, gold) for each, gold, ids in self.found if kind in (None, each)]


def on_locomo(setting: Setting) -> Iterator[Table]:
    """Turn level, multi-hop apart, and session level."""
    conversations = list(islice(locomo(setting.dataset()), _most(setting)))
    turns: dict[str, Answers] = {}
    sessions: dict[str, Answers] = {}
    judged: list[Judged] = []
    folder = setting.folder("locomo")
    with HybridIndex.alone(folder / "index.sqlite3", setting.embedder) as index:
        for corpus in conversations:
            asked = _asked(setting, corpus)
            progress(f"LoCoMo {corpus.name}: {len(asked)} questions, {len(corpus.said)} utterances")
            fill(index, corpus)
            part = Corpus(corpus.name, corpus.said, tuple(asked))
            judged += judge(index, [part])
            for name, rank in _systems(setting, corpus, index).items():
                _run(rank, part, turns.setdefault(name, Answers()))
            for name, rank in _session_systems(setting, corpus, index).items():
                _run(rank, _by_session(part), sessions.setdefault(name, Answers()))
    turns[CROSS_FITTED], sessions[CROSS_FITTED] = _cross_fitted(judged, conversations)
    order = [OURS, CROSS_FITTED, *BASELINES, "chance"]
    note = f"{sum(len(c.said) for c in conversations)} utterances, {len(judged)} questions"
    yield Table(
        title="LoCoMo, evidence utterances, categories 1-4",
        rows=[_row(setting, name, turns[name]) for name in order],
        note=f"{note}; [95 % interval]; ours: defaults, weights that have not seen LoCoMo",
        plot=("recall@10", "NDCG@10", "all@10"),
    )
    yield Table(
        title="by kind of question: all evidence within 10",
        rows=[_by_kind(setting, name, turns[name]) for name in order],
        plot=tuple(KINDS.values()),
    )
    yield Table(
        title="LoCoMo, sessions that hold evidence",
        rows=[_session_row(setting, name, sessions[name]) for name in _ours_first(sessions)],
        note=f"of about {_mean_sessions(conversations):.0f} sessions of a conversation",
        plot=("all@5",),
    )


def _most(setting: Setting) -> int | None:
    return None if setting.full else QUICK_CONVERSATIONS


def _asked(setting: Setting, corpus: Corpus) -> list[Question]:
    questions = list(corpus.questions)
    if setting.full or len(questions) <= QUICK_QUESTIONS:
        return questions
    return setting.rng(corpus.name).sample(questions, QUICK_QUESTIONS)


def _systems(setting: Setting, corpus: Corpus, index: HybridIndex) -> dict[str, Ranker]:
    texts = {each.id: each.line for each in corpus.said}
    ids, vectors = list(texts), setting.encode(list(texts.values()))
    words, meaning = bm25(texts, setting.resources), cosine(ids, vectors, setting.encode)
    folder = setting.folder("chroma")
    rankers = (
        words,
        meaning,
        chroma(ids, vectors, setting.encode, folder, setting.resources),
        reciprocal_ranks(words, meaning),
    )
    scope, at, skip = Scope(user=corpus.name), corpus.said[-1].when, len(corpus.name) + 1

    def ours(question: str, k: int) -> list[str]:
        return [hit.entry.id[skip:] for hit in index.search(question, scope, k, at=at)]

    return {
        OURS: ours,
        **dict(zip(BASELINES, rankers, strict=True)),
        "chance": chance(texts, setting.rng("chance")),
    }


def _session_systems(setting: Setting, corpus: Corpus, index: HybridIndex) -> dict[str, Ranker]:
    lines: dict[str, list[str]] = {}
    for each in corpus.said:
        lines.setdefault(each.session, []).append(each.line)
    whole = {session: "\n".join(said) for session, said in lines.items()}
    ids, vectors = list(whole), setting.encode(list(whole.values()))
    scope, at = Scope(user=corpus.name), corpus.said[-1].when

    def ours(question: str, k: int) -> list[str]:
        return [session for session, _ in index.sessions(question, scope, k, at=at)]

    return {
        OURS: ours,
        "BM25 over whole sessions": bm25(whole, setting.resources),
        "MiniLM over whole sessions": cosine(ids, vectors, setting.encode),
        "chance": chance(whole, setting.rng("chance")),
    }


def _by_session(corpus: Corpus) -> Corpus:
    """The same questions, with the sessions of the evidence as evidence."""
    of = corpus.sessions
    questions = [
        Question(q.text, frozenset(of[id] for id in q.evidence), q.asked, q.kind)
        for q in corpus.questions
    ]
    return Corpus(corpus.name, corpus.said, tuple(questions))


def _run(rank: Ranker, corpus: Corpus, into: Answers) -> None:
    for question in corpus.questions:
        started = time.perf_counter()
        ids = rank(question.text, 10)
        into.ms.append((time.perf_counter() - started) * 1000)
        into.found.append((question.kind, question.evidence, ids))


def _cross_fitted(judged: Sequence[Judged], corpora: Sequence[Corpus]) -> tuple[Answers, Answers]:
    """The same candidates, and their sessions, ranked by weights fitted on all other
    conversations."""
    turns, sessions = Answers(), Answers()
    for corpus in corpora:
        learnt = fit([[one for one in judged if one.corpus != corpus.name]], RIDGE)
        for one in judged:
            if one.corpus == corpus.name:
                turns.found.append((one.kind, one.evidence, one.ranked(learnt.weights)[:10]))
                gold = frozenset(corpus.sessions[id] for id in one.evidence)
                sessions.found.append((one.kind, gold, _sessions(one, learnt, corpus.sessions)))
    return turns, sessions


def _sessions(one: Judged, learnt: Fit, session: Mapping[str, str]) -> list[str]:
    """As `HybridIndex.sessions` ranks them."""
    best: dict[str, list[float]] = {}
    for id, p in zip(one.ids, learnt.probabilities(one), strict=True):
        best.setdefault(session[id], []).append(float(p))
    return sorted(best, key=lambda name: (-either(best[name]), name))[:10]


def _row(setting: Setting, name: str, answers: Answers) -> Row:
    rng = setting.rng("bootstrap")
    metrics = {metric: Estimate.of(answers.values(metric), rng) for metric in METRICS}
    times = {"ms p50": percentile(answers.ms, 50)} if answers.ms else {}
    return {"system": name, **metrics, **times}


def _by_kind(setting: Setting, name: str, answers: Answers) -> Row:
    rng = setting.rng("bootstrap")
    values = {kind: answers.values("all@10", kind) for kind in KINDS}
    return {"system": name} | {
        KINDS[kind]: Estimate.of(found, rng) for kind, found in values.items() if found
    }


def _session_row(setting: Setting, name: str, answers: Answers) -> Row:
    rng = setting.rng("bootstrap")
    row: dict[str, str | Estimate] = {"system": name}
    for k in (1, 5):
        recall = [recall_at(k, ids, gold) for _, gold, ids in answers.found]
        row[f"recall@{k}"] = Estimate.of(recall, rng)
    row["all@5"] = Estimate.of([all_at(5, ids, gold) for _, gold, ids in answers.found], rng)
    return row


def _ours_first(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: not name.startswith(OURS))


def _mean_sessions(conversations: Sequence[Corpus]) -> float:
    return sum(len(set(c.sessions.values())) for c in conversations) / len(conversations)
