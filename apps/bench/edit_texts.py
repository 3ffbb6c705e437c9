"""Edits whose targets are sentences and paragraphs: hallucinations made good, and new entities.

SelfCheckGPT in the form of WISE (section 4.2 of the paper), scored by perplexity; and Temporal
(Hewitt et al. 2024), scored on another text about what was learnt. Both are shared alike, so they
are read from the data folder only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

import torch

from ...editors.base import Patch
from ...editors.measuring import Question
from ...editors.rows import Row as Ids
from ...editors.rows import Rows
from ...llm.twin import patched
from .edit_lab import Laboratory, Plan
from .edit_material import Fact, texts, windows
from .edit_measures import Scores, same
from .edit_published import HALLUCINATION, SOURCE, TEMPORAL
from .edit_sequences import digest, remark, scored
from .edit_systems import Applied
from .harness import Cell, Row, Table

CLIP = 100.0
"""Perplexity at which the authors cut single records off (EasyEdit issue 531)."""

SURE = 0.8
BATCH = 4
MOST = 10
"""Texts, unless more are asked for: each takes minutes on a small machine."""


def hallucination(lab: Laboratory, plan: Plan) -> Iterator[Table]:
    """Perplexity of the right sentence, given the passage so far."""
    yield from _texts(lab, plan, "hallucination", "Hallucination (SelfCheckGPT)", HALLUCINATION)


def temporal(lab: Laboratory, plan: Plan) -> Iterator[Table]:
    """Reliability on the paragraph, and how sure the model is of another one."""
    yield from _texts(lab, plan, "temporal", "Temporal", TEMPORAL)


def _texts(
    lab: Laboratory, plan: Plan, name: str, title: str, published: Sequence[Row]
) -> Iterator[Table]:
    every = texts(name, lab.setting.dataset(), plan.most or MOST)
    sizes = sorted({len(every) if size is None else size for size in plan.sizes})
    some = {
        size: windows(name, every, size, min(plan.sample, MOST))
        for size in sizes
        if size <= len(every)
    }
    about = {"model": lab.bench.fingerprint, "set": name, "facts": digest(every)}
    rows: list[Row] = []
    failed: list[str] = []
    resumed = lab.points.resumed
    reader = TextJudge(lab)
    for system in plan.systems:
        for size, found in scored(lab, system, some, reader.score, about, failed):
            rows.append(_row(system, size, found))
    yield Table(
        title=title,
        rows=rows,
        note=f"{len(every)} texts; PPL: of the target given the prompt, mean over records, and with"
        f" single records cut off at {CLIP:g} as the authors did; sure: tokens of another text on"
        f" the same thing with p > {SURE:g}" + remark(lab.points.resumed - resumed, failed),
        published=published,
        source=f"{SOURCE}; hallucination PPL/Loc, temporal Rel/OOD/Loc",
    )


def _row(system: str, size: int, found: Scores) -> Row:
    perplexities = [math.exp(nll) for nll in found.nll]
    row: dict[str, Cell] = {
        "system": system,
        "T": size,
        "n": len(found.nll),
        "PPL": fmean(perplexities),
        f"PPL cut at {CLIP:g}": fmean(min(each, CLIP) for each in perplexities),
        "Rel": fmean(found.rel),
        "Loc": fmean(found.loc),
    }
    if found.sure:
        row["sure of another text"] = fmean(found.sure)
    if found.routed:
        row["routed"] = fmean(found.routed)
    if found.seconds:
        row["s/edit"] = fmean(found.seconds)
    return row


class TextJudge:
    """Scores long targets; nothing is said freely, which would take longer than all else."""

    def __init__(self, lab: Laboratory) -> None:
        self._bench, self._judge = lab.bench, lab.judge

    def score(self, facts: Sequence[Fact], applied: Applied) -> Scores:
        """Read each target, and each other text, after all were edited."""
        prober = self._bench.prober
        prompts = [applied.ask(fact.edit.prompt) for fact in facts]
        own = [
            prober.row(Question(prompt, fact.edit.target))
            for prompt, fact in zip(prompts, facts, strict=True)
        ]
        found = self._read(own, prompts, applied.patch)
        elsewhere = [Question(*fact.elsewhere) for fact in facts]
        after = [Question(applied.ask(each.prompt), each.target) for each in elsewhere]
        chosen = prober.choices(after, applied.patch)
        others = [prober.ids(fact.paraphrase) for fact in facts]
        another = [(ids[:1], ids[1:]) for ids in others if ids]
        read = self._read(another, prompts, applied.patch) if another else []
        opened = applied.patch.open(prompts).verdicts if applied.patch else ()
        return Scores(
            rel=[fmean(right) for _, right in found],
            nll=[-fmean(logprobs) for logprobs, _ in found],
            sure=[fmean(each > math.log(SURE) for each in logprobs) for logprobs, _ in read],
            loc=[
                same(old, new)
                for old, new in zip(self._judge.before(elsewhere), chosen, strict=True)
            ],
            routed=[
                verdict is not None and verdict.entry == id
                for verdict, id in zip(opened, applied.ids, strict=False)
            ],
            seconds=list(applied.seconds),
            nbytes=applied.nbytes,
        )

    @torch.no_grad()
    def _read(
        self, rows: Sequence[Ids], prompts: Sequence[str], patch: Patch | None
    ) -> list[tuple[list[float], list[bool]]]:
        """For each row ln P of each target token, and whether it is the most likely one. The gate
        is shown `prompts`."""
        found = []
        for at in range(0, len(rows), BATCH):
            batch = Rows.of(rows[at : at + BATCH], self._bench.model.device)
            deltas = patch.open(prompts[at : at + BATCH]).deltas if patch else {}
            with patched(self._bench.model, deltas):
                logits = batch.logits(self._bench.model).float()
            labels, counted = batch.labels
            logprobs = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
            right = logits.argmax(-1) == labels
            found += [
                (logprob[on].tolist(), hit[on].tolist())
                for logprob, hit, on in zip(logprobs, right, counted, strict=True)
            ]
        return found
