"""`palimpsest bench fit`: the weights that a search's signals are fused by, and how far they carry.

Fitted on sets that may be used freely; LoCoMo is not among them. A set is judged by weights fitted
on the others, and the ridge is the one that does best by that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from ...memory.search.base import SIGNALS
from ...memory.search.fusion import BIAS, WEIGHTS
from ...memory.search.index import HybridIndex
from .corpora import Corpus, longmemeval, timeqa, xquad
from .fusing import Fit, Judged, fill, fit, judge, quality
from .harness import Row, Table, progress
from .setting import Setting

RIDGES = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3)

BINS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


def fit_weights(setting: Setting) -> Iterator[Table]:
    """Held-out quality by ridge, the weights, and what the probabilities are worth."""
    sets = {name: list(_judged(setting, corpora)) for name, corpora in _sets(setting).items()}
    held = {ridge: _held_out(sets, ridge) for ridge in RIDGES}
    best = max(RIDGES, key=lambda ridge: float(np.mean([r["NDCG@10"] for r in held[ridge]])))
    made = fit(list(sets.values()), best)
    shipped = Fit(np.array([WEIGHTS[name] for name in SIGNALS]), BIAS)
    yield Table(
        title="each set, by weights fitted on the others",
        rows=[{"ridge": str(ridge), **_mean(held[ridge])} for ridge in RIDGES],
        note="; ".join(f"{name}: {len(judged)} questions" for name, judged in sets.items()),
        plot=("NDCG@10",),
    )
    weights: list[Row] = [
        {"signal": name, "fitted": made.named()[name], "shipped": WEIGHTS[name]} for name in SIGNALS
    ]
    yield Table(
        title=f"weights, ridge {best}",
        rows=[*weights, {"signal": "bias", "fitted": made.bias, "shipped": BIAS}],
        note="the shipped ones are those of an earlier run, rounded",
    )
    yield Table(
        title="by set, all in the fit",
        rows=[
            {"set": name, "weights": which, **quality(judged, weights.weights)}
            for name, judged in sets.items()
            for which, weights in (("fitted", made), ("shipped", shipped))
        ],
    )
    yield _calibration(sets, shipped)


def _sets(setting: Setting) -> dict[str, list[Corpus]]:
    data = setting.dataset()
    return {
        "LongMemEval": list(longmemeval(data, setting.rng("longmemeval"))),
        "XQuAD": list(xquad(data, setting.rng("xquad"))),
        "TimeQA": list(timeqa(data, setting.rng("timeqa"))),
    }


def _judged(setting: Setting, corpora: Sequence[Corpus]) -> Iterator[Judged]:
    folder = setting.folder("fit")
    with HybridIndex.alone(folder / "index.sqlite3", setting.embedder) as index:
        for corpus in corpora:
            progress(f"{corpus.name}: {len(corpus.questions)} questions, {len(corpus.said)} texts")
            fill(index, corpus)
            yield from judge(index, [corpus])


def _held_out(sets: dict[str, list[Judged]], ridge: float) -> list[dict[str, float]]:
    found = []
    for name, judged in sets.items():
        others = [other for each, other in sets.items() if each != name]
        found.append(dict(quality(judged, fit(others, ridge).weights)))
    return found


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {metric: float(np.mean([row[metric] for row in rows])) for metric in rows[0]}


def _calibration(sets: dict[str, list[Judged]], shipped: Fit) -> Table:
    """Of the ten best candidates of each question: how many of those that were given about a
    probability are evidence."""
    given, right = [], []
    for judged in sets.values():
        for one in judged:
            p = shipped.probabilities(one)
            best = np.argsort(-p)[:10]
            given.append(p[best])
            right.append(one.right[best])
    p, y = np.concatenate(given), np.concatenate(right)
    rows: list[Row] = []
    error = 0.0
    for low, high in pairwise(BINS):
        here = (p >= low) & (p < high if high < 1 else p <= high)
        if here.any():
            rows.append(
                {
                    "said": f"{low:.2f}–{high:.2f}",
                    "mean": float(p[here].mean()),
                    "evidence": float(y[here].mean()),
                    "entries": int(here.sum()),
                }
            )
            error += here.mean() * abs(float(p[here].mean() - y[here].mean()))
    return Table(
        title="what the probabilities are worth",
        rows=rows,
        note=f"expected calibration error {error:.3f}; Brier score {np.mean((p - y) ** 2):.3f},"
        f" {np.mean((y.mean() - y) ** 2):.3f} for the base rate",
        plot=("mean", "evidence"),
    )
