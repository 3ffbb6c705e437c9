"""`palimpsest bench ood`: which scorer tells what belongs to a request from what does not?

For requests to unlearn, on TOFU and CLINC150: AUROC, and FPR at 95 % TPR, against prompts that are
near (other authors, other domains) and far; features; the gate as it is calibrated by default; a
stream that drifts; and, with --full, what O3's tuning of the features adds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import log_softmax, normalize

from ...llm.twin import twin
from ...memory.gates.base import Entry
from ...memory.gates.features import padded, rows_of
from ...memory.gates.layers import LayerFeatures
from ...memory.gates.scorers.knn import neighbours
from ...memory.gates.scorers.registry import SCORERS
from ...memory.gates.sets import SetGate
from ...memory.record import new_id
from .edit_lab import Laboratory
from .harness import Row, Table, central, progress
from .metrics import auc, percentile
from .ood_material import Task, tasks
from .ood_stream import stream
from .scm import at_least
from .setting import Setting

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT = "fused"
SPECS = (
    DEFAULT,
    "knn",
    "knn:k=1",
    "mahalanobis",
    "mahalanobis:ledoit_wolf=true",
    "mahalanobis:relative=false",
    "palm",
    "energy",
    "o3",
    "o3:sign=fixed",
    "o3:sign=fixed,shrinkage=0.5",
)
TUNED = (DEFAULT, "knn", "o3", "o3:sign=fixed,shrinkage=0.5")
SHARES = (0.03, 0.13, 0.34, 0.6, 0.86, 1.0)
"""Of the depth, where layers are looked at."""

TOLD = 40
"""Utility prompts that a gate is told of, for comparison."""

BATCH = 32

Scored = Mapping[str, list[float]]
"""Kind of prompt -> a score for each."""


class Remembered:
    """Features, each text's computed once."""

    def __init__(self, features: LayerFeatures) -> None:
        self.features = features
        self._known: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """[N, L, D] of texts."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known |= zip(new, self.features(new), strict=True)
        return torch.stack([self._known[text] for text in texts])

    @property
    def background(self) -> Tensor:
        """[M, L, D]."""
        return self.features.background


def ood(setting: Setting) -> Iterator[Table]:
    """Scorers, features, the gate, a stream, and the tuning."""
    lab = Laboratory(setting)
    features = Remembered(LayerFeatures(twin(lab.llm.model), lab.llm.tokenizer))
    found = tasks(setting.data, full=setting.full)
    rows: list[Row] = []
    for task in found:
        progress(f"{task.name}: scorers")
        rows += [*_scorers(task, features, SPECS), *_baselines(lab, task, features)]
    yield Table(
        title="Scorers",
        rows=rows,
        note="AUROC and FPR at 95 % TPR; near: other authors, other domains; far: world facts, out"
        " of scope; " + "; ".join(f"{task.name}: {len(task.inside)} fitted" for task in found),
        plot=("near AUROC", "far AUROC"),
    )
    yield Table(
        title="Features: which layers, and raw, standardised or whitened",
        rows=list(_layers(lab, found)),
        note="by the mean cosine to the three nearest prompts",
        plot=("near AUROC",),
    )
    gates: list[Row] = []
    for task in found:
        progress(f"{task.name}: the gate")
        gates += _gates(task, features)
    yield Table(
        title="The gate as calibrated by default",
        rows=gates,
        note="opens: share with a weight above 0; closed: exactly 0, so that no bit changes",
        plot=("opens",),
    )
    if setting.data is not None:
        yield from stream(setting.data, features, full=setting.full, seed=setting.seed)
        if setting.full:
            yield _tuning(lab, found[0], features)
    yield Table(title="what holds", rows=_checks(rows, gates))


def _scored(score: Callable[[Sequence[str]], Tensor], task: Task) -> Scored:
    kinds = {**task.same, "near": task.near, "far": task.far}
    return {kind: score(texts).tolist() for kind, texts in kinds.items()}


def _row(name: str, task: Task, scored: Scored) -> dict[str, str | float]:
    """AUROC of each kind that belongs to it, the first one's without a name."""
    row: dict[str, str | float] = {"scorer": f"{task.name}: {name}"}
    for at, kind in enumerate(task.same):
        least = percentile(scored[kind], 5)
        for other in ("near", "far"):
            title = f"{other} AUROC" if not at else f"{kind}, {other}"
            row[title] = auc(scored[kind], scored[other])
            if not at:
                row[f"{other} FPR95"] = fmean(value >= least for value in scored[other])
    return row


def _scorers(
    task: Task, features: Remembered, specs: Sequence[str]
) -> list[dict[str, str | float]]:
    rows = []
    features([*task.inside, *task.near, *task.far])  # computed before anything is timed
    for spec in specs:
        progress(f"{task.name}: {spec}")
        rows.append(_scorer(spec, task, features))
    return rows


def _scorer(spec: str, task: Task, features: Remembered) -> dict[str, str | float]:
    scorer = SCORERS.build(spec)
    began = time.perf_counter()
    state = scorer.fit(features(task.inside), features.background)
    seconds = time.perf_counter() - began
    scored = _scored(lambda texts: scorer.score(state, features(texts)), task)
    size = sum(part.numel() for part in state.values()) * 4 / 2**20
    return _row(spec, task, scored) | {"fit s": seconds, "MiB": size}


def _baselines(lab: Laboratory, task: Task, features: Remembered) -> Iterator[Row]:
    """What needs no scorer: cosine of raw states, and how likely the model finds a prompt."""
    bank = normalize(features.features.raw(task.inside), dim=-1)
    yield _row(
        "baseline: cosine of raw states",
        task,
        _scored(lambda texts: neighbours(bank, features.features.raw(texts), 1).mean((1, 2)), task),
    )
    kinds = {**task.same, "near": task.near, "far": task.far}
    sure = {kind: _sureness(lab, texts[:80]) for kind, texts in kinds.items()}
    for at, name in enumerate(("likelihood of the prompt", "greatest next-token probability")):
        scored = {kind: found[:, at].tolist() for kind, found in sure.items()}
        yield _row(f"baseline: {name}", task, scored)


@torch.no_grad()
def _sureness(lab: Laboratory, texts: Sequence[str]) -> Tensor:
    """[N, 2]: mean log likelihood of a prompt's tokens, and the greatest probability after it."""
    rows = rows_of(lab.llm.tokenizer, texts)
    found = []
    for at in range(0, len(rows), BATCH):
        ids, mask = padded(rows[at : at + BATCH], lab.llm.model.device)
        logits = lab.llm.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        likely = log_softmax(logits.float(), dim=-1)
        told = likely[:, :-1].gather(-1, ids[:, 1:, None])[..., 0] * mask[:, 1:]
        last = likely[torch.arange(len(ids)), mask.sum(1) - 1].amax(-1)
        found.append(torch.stack([told.sum(1) / mask[:, 1:].sum(1).clamp_min(1), last], dim=1))
    return torch.cat(found).cpu()


def _layers(lab: Laboratory, found: Sequence[Task]) -> Iterator[Row]:
    """One layer at a time, all early ones, all; raw, standardised, whitened."""
    depth, model, tokenizer = lab.bench.depth, lab.bench.model, lab.llm.tokenizer
    layers = sorted({round(share * (depth - 1)) for share in SHARES})
    early = [at for at, layer in enumerate(layers) if layer <= depth // 3]
    chosen = {f"layer {layer}": [at] for at, layer in enumerate(layers)}
    chosen |= {"early layers": early, "all of these": list(range(len(layers)))}
    plain = LayerFeatures(model, tokenizer, layers, whitened=False)
    treatments: dict[str, Callable[[Tensor], Tensor]] = {
        "raw": lambda states: states,
        "standardised": plain.of,
        "whitened": LayerFeatures(model, tokenizer, layers).of,
    }
    for task in found:
        kinds = {**task.same, "near": task.near, "far": task.far, "inside": task.inside}
        states = {kind: plain.raw(texts) for kind, texts in kinds.items()}
        for treatment, treated in treatments.items():
            points = {kind: treated(part) for kind, part in states.items()}
            for name, at in chosen.items():
                row = _row(f"{treatment}, {name}", task, _near(points, at))
                yield {"features": row.pop("scorer")} | row


def _near(points: Mapping[str, Tensor], layers: list[int]) -> Scored:
    bank = normalize(points["inside"][:, layers], dim=-1)
    return {
        kind: neighbours(bank, part[:, layers], 3).mean((1, 2)).tolist()
        for kind, part in points.items()
    }


def _gates(task: Task, features: Remembered) -> Iterator[Row]:
    entry = Entry(id=new_id(), inside=task.inside)
    gate = SetGate(features)
    gate.fit([entry])
    known = tuple(text for part in task.utility.values() for text in part)
    told = SetGate(features)
    told.fit([Entry(id=entry.id, inside=task.inside, outside=known[:: len(known) // TOLD or 1])])
    blended = SetGate(features, weighting="mixture")
    blended.fit([entry], gate.states)
    kinds = {"own": task.inside, **task.same, **task.disguised, **task.lookalike, **task.utility}
    kinds["all utility"] = known
    for kind, texts in kinds.items():
        weights = gate.weights(texts)[:, 0]
        yield {
            "prompts": f"{task.name}: {kind}",
            "n": len(texts),
            "opens": float((weights > 0).float().mean()),
            "more than half": float((weights > 0.5).float().mean()),
            "wholly": float((weights == 1).float().mean()),
            "closed": float((weights == 0).float().mean()),
            f"opens, told {TOLD} outside": float((told.weights(texts) > 0).float().mean()),
            "O3's weight": float(blended.weights(texts).mean()),
            "separation": gate.states[0].numbers["separation"],
        }


def _tuning(lab: Laboratory, task: Task, features: Remembered) -> Table:
    """The scorers on features before and after it."""
    from ...memory.gates.scorers.contrastive import Tuning

    variants = {
        "entropy, as coded": Tuning(),
        "entropy, ten times the rate": Tuning(rate=1e-3, epochs=5),
        "infonce alone, ten times the rate": Tuning(
            objective="infonce", rate=1e-3, epochs=10, guess=0.0
        ),
    }
    rows: list[Row] = [
        {"system": f"untuned, {row['scorer']}", **row} for row in _scorers(task, features, TUNED)
    ]
    for name, tuning in variants.items():
        progress(f"tuning: {name}")
        began = time.perf_counter()
        tuned = tuning.tune(lab.llm.model, lab.llm.tokenizer, task.inside)
        seconds = time.perf_counter() - began
        for row in _scorers(task, Remembered(tuned), TUNED):
            rows.append({"system": f"{name}, {row['scorer']}", **row, "tuning s": seconds})
    return Table(
        title="What O3's tuning of the features adds",
        rows=rows,
        note="LoRA of rank 8 on this model; the paper tunes a RoBERTa",
        plot=("near AUROC",),
    )


def _checks(rows: Sequence[Row], gates: Sequence[Row]) -> list[Row]:
    checks: list[Row] = []
    for row in rows:
        name = str(row["scorer"])
        if name.endswith(f": {DEFAULT}"):
            checks.append(at_least(f"{name}: near AUROC", central(row["near AUROC"]), 0.95))
            checks.append(at_least(f"{name}: far AUROC", central(row["far AUROC"]), 0.99))
    for row in gates:
        name = str(row["prompts"])
        if name.endswith("all utility"):
            checks.append(at_least(f"{name}: exactly closed", central(row["closed"]), 0.95))
    return checks
