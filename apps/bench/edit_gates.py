"""How well gates tell prompts apart, and what the threshold of the official code does to bare
prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

from ...editors.base import Opened, Patch
from ...editors.measuring import Question
from ...editors.side_memory import SideMemories, entry
from ...memory.gates.base import Gate
from ...memory.record import new_id
from .edit_lab import Laboratory, Plan
from .edit_material import Fact, Window, facts, same_subject
from .edit_systems import edited
from .harness import Row, Table, progress
from .metrics import Spread, auc, percentile

ALONE = "wise:gate=activation,beta=5,rank=0,rate=0.003"
"""One side memory for each edit, behind the gate of the paper."""

SHARED = "wise:shards=1,gate=activation,beta=5,rank=0,rate=0.003"
"""One for all, as the official code has it for fewer edits than fill a shard."""

VETOED = -2.0
"""Stands for the margin of a prompt that lacks the subject of every entry: below any cosine's."""

FEW = 10
"""Edits that the gate of activations is tried on: they have to be learnt."""

BINS = 10
KINDS = ("own", "paraphrase", "elsewhere", "same subject")


def gates(lab: Laboratory, plan: Plan) -> Iterator[Table]:
    """For each gate how often it opens, how well it sorts, and its margins as a histogram."""
    every = _facts(lab, (plan.most or 200) if plan.full else 20)
    asked = _prompts(every)
    found = {
        "keys": _margins(_keys(lab, every, subjects=True), asked),
        "keys, without subjects": _margins(_keys(lab, every, subjects=False), asked),
    }
    note = f"{len(every)} facts"
    if plan.full:
        some = every[:FEW]
        progress(f"the gate of activations, {len(some)} edits")
        found["activation"] = _margins(_activations(lab, some), _prompts(some))
        note += f", for activation {len(some)}, each in a side memory of its own"
    note += (
        "; margin: score - threshold, of the entry that is nearest by it; same subject: asks for"
    )
    note += " something else"
    yield Table(
        title="Gates: how often they open",
        rows=[
            {
                "gate": name,
                "prompts": kind,
                "n": len(values),
                "opened": fmean(value > 0 for value in values),
                "margin": Spread.of(values),
            }
            for name, margins in found.items()
            for kind, values in margins.items()
        ],
        note=note,
    )
    yield Table(
        title="Gates: how well they sort",
        rows=[row for name, margins in found.items() for row in _sorting(name, margins)],
        note="own prompts and paraphrases against others; FPR at 95 % TPR whatever the threshold",
        plot=("AUROC", "FPR at 95 % TPR"),
    )
    for name, margins in found.items():
        yield Table(title=f"Margins under {name}", rows=_histogram(margins), plot=(*margins,))


def _facts(lab: Laboratory, most: int) -> list[Fact]:
    data = lab.setting.data
    return facts("sample", None, most) if data is None else same_subject(data, most)


def _prompts(every: Sequence[Fact]) -> dict[str, list[str]]:
    return {
        "own": [fact.edit.prompt for fact in every],
        "paraphrase": [fact.paraphrase for fact in every],
        "elsewhere": [fact.elsewhere[0] for fact in every],
        "same subject": [prompt for fact in every for prompt in fact.near],
    }


def _keys(lab: Laboratory, every: Sequence[Fact], *, subjects: bool) -> Gate:
    """The gate that `wise` has by default; it needs no side memory."""
    from ...editors.wise import Wise

    gate = Wise().keys(lab.bench)
    entries = [entry(fact.edit, new_id()) for fact in every]
    if not subjects:
        entries = [type(each)(id=each.id, inside=each.inside) for each in entries]
    gate.fit(entries)
    return gate


def _activations(lab: Laboratory, every: Sequence[Fact]) -> Gate:
    patch = edited(lab.editor(ALONE), Window("gates", every)).patch
    assert isinstance(patch, SideMemories)
    return patch.gate


def _margins(gate: Gate, asked: dict[str, list[str]]) -> dict[str, list[float]]:
    """Of each prompt, over the entry that is nearest."""
    found = {}
    for kind, prompts in asked.items():
        best = (gate.score(prompts) - gate.thresholds).amax(1)
        found[kind] = best.nan_to_num(neginf=VETOED).tolist()
    return found


def _sorting(name: str, margins: dict[str, list[float]]) -> Iterator[Row]:
    inside = [*margins["own"], *margins["paraphrase"]]
    least = percentile(inside, 5)
    for kind in KINDS[2:]:
        outside = margins[kind]
        yield {
            "gate": f"{name}: {kind}",
            "AUROC": auc(inside, outside),
            "FPR at 95 % TPR": fmean(value >= least for value in outside),
            "FPR": fmean(value > 0 for value in outside),
            "TPR": fmean(value > 0 for value in inside),
        }


def _histogram(margins: dict[str, list[float]]) -> list[Row]:
    """Shares by bins of equal width."""
    values = [value for each in margins.values() for value in each]
    low, high = min(values), max(values)
    width = (high - low) / BINS or 1.0
    rows: list[Row] = []
    for at in range(BINS):
        start = low + at * width
        last = at == BINS - 1
        row: dict[str, str | float] = {"margin": f"{start:.2f} to {start + width:.2f}"}
        for kind, each in margins.items():
            inside = [start <= value and (last or value < start + width) for value in each]
            row[kind] = fmean(inside)
        rows.append(row)
    return rows


@dataclass(frozen=True, slots=True)
class Shown:
    """A patch whose gate sees each prompt with its answer behind it, as the official evaluation
    has it."""

    adds: ClassVar[bool] = False
    patch: Patch
    answers: dict[str, str]

    @property
    def layers(self) -> frozenset[str]:
        """As the patch's own."""
        return self.patch.layers

    def open(self, prompts: Sequence[str]) -> Opened:
        """Decide from prompt and answer."""
        return self.patch.open([f"{prompt} {self.answers[prompt]}" for prompt in prompts])

    def explain(self, prompt: str) -> dict[str, object]:
        """As the patch's own, of both together."""
        return dict(self.patch.explain(f"{prompt} {self.answers[prompt]}"))

    def merged(self) -> None:
        """There is a gate."""
        return


def protocols(lab: Laboratory, plan: Plan) -> Iterator[Table]:
    """The official code's threshold and route beside ours, at T = 10, with the paper's gate."""
    name = plan.sets[0]
    every = facts(name, lab.setting.data, min(10, plan.most or 10))
    rows: list[Row] = []
    for title, options in (
        ("official: on prompt + answer, act_ratio .88", "epsilon=answer,act_ratio=0.88"),
        ("ours: on the prompt, act_ratio .75", "epsilon=prompt,act_ratio=0.75"),
    ):
        progress(title)
        applied = edited(lab.editor(f"{SHARED},{options}"), Window("protocols", every))
        assert applied.patch is not None
        rows.append({"threshold": title, **_fires(lab, every, applied.patch)})
    yield Table(
        title=f"Which prompts fire, {len(every)} edits in one side memory",
        rows=rows,
        note="shares of prompts for which the gate opens: bare, as a user asks, and with the gold"
        " answer behind them, as the official evaluation routes; Rel by teacher forcing under"
        " either route",
        plot=("own, bare", "own, with answer", "paraphrase, bare", "elsewhere, bare"),
    )


def _fires(lab: Laboratory, every: Sequence[Fact], patch: Patch) -> Row:
    own = [Question(fact.edit.prompt, fact.edit.target) for fact in every]
    others = [Question(fact.paraphrase, fact.edit.target) for fact in every]
    elsewhere = [Question(*fact.elsewhere) for fact in every]
    answers = {each.prompt: each.target for each in (*own, *others, *elsewhere)}
    shown = Shown(patch, answers)

    def fires(patch: Patch, questions: Sequence[Question]) -> float:
        verdicts = patch.open([question.prompt for question in questions]).verdicts
        return fmean(verdict is not None for verdict in verdicts)

    def rel(patch: Patch) -> float:
        return fmean(answer.accuracy for answer in lab.bench.prober.answers(own, patch))

    kinds = {"own": own, "paraphrase": others, "elsewhere": elsewhere}
    return {
        **{f"{kind}, bare": fires(patch, some) for kind, some in kinds.items()},
        **{f"{kind}, with answer": fires(shown, some) for kind, some in kinds.items()},
        "Rel, bare": rel(patch),
        "Rel, with answer": rel(shown),
    }
