"""GRACE: a codebook beside one layer; a prompt near a key has the layer's output replaced.

Hartvigsen et al., NeurIPS 2023, arXiv 2211.11031. A key is what a down-projection is given at a
prompt's last token, [D_ff]; its value [D_out] replaces that layer's output where a prompt comes
within the key's radius. Radii follow from the order of edits: near a key with another target both
are cut to half the distance, near one with the same target the older grows to reach the newer.

Departures from the paper and the official code:

- A label is the target's text (the code compares mean token ids, under which targets collide).
- The value acts at every position, in training and in answers, since a patch is given texts and not
  positions; the query is the prompt's own last token, decided once per request.
- Every edit has a value of its own, also where an older key with the same target covers it; so what
  is learnt of it depends on nothing else, and undoing it is leaving it out.
- The first radius is in units of the key's length, and the value starts at the layer's own output.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..llm.twin import inputs_of, patched, up_to_block
from ..memory.gates.base import Verdict
from ..memory.record import RecordId
from .base import Change, Edit, Learnt, Opened, Patch, Progress
from .descent import descend
from .rows import Rows
from .rules import least, obey, positive, share
from .weight_change import kept

if TYPE_CHECKING:
    from .workbench import Workbench


@dataclass(frozen=True, slots=True, kw_only=True)
class Grace:
    """Hyper-parameters, tuned for small models.

    Args:
        depth: where the layer lies, as a share of the model's depth.
        radius: first radius of a key, in lengths of the key.
        steps, rate, until: Adam's, and the loss at which it ends.
    """

    name: ClassVar[str] = "grace"
    mergeable: ClassVar[bool] = False
    batch: ClassVar[int] = 1
    applied: ClassVar[frozenset[str]] = frozenset({"radius"})
    depth: float = 0.86
    radius: float = 0.3
    steps: int = 50
    rate: float = 1.0
    until: float = 0.05

    def __post_init__(self) -> None:
        obey(
            self,
            share(self, "depth"),
            *(positive(self, name) for name in ("radius", "steps", "rate")),
            least(self, "until"),
        )

    def lane(self, edit: Edit) -> str:
        """One for each: a value depends on its own edit alone."""
        return f"{edit.seed}"

    def learn(
        self,
        bench: Workbench,
        edits: Sequence[Edit],
        before: Sequence[Learnt],
        progress: Progress,
        cancel: Event,
    ) -> list[Change]:
        """Learn one edit; see `Method.learn`."""
        began = time.perf_counter()
        [edit] = edits
        layer = bench.layer(self.depth)
        name = bench.down(layer)
        asked = (edit.prompt, *edit.paraphrases)
        keys = queries(bench, layer, asked)
        value = (bench.weight(name) @ keys[0].to(bench.model.device)).requires_grad_()
        told = [bench.capture(rows, layer) for rows in bench.lessons(edit, asked)]
        with patched(bench.model, {name: lambda inputs, output: value.expand_as(output)}):
            curve = descend(
                [value],
                lambda: bench.losses(told, layer).mean(),
                steps=self.steps,
                rate=self.rate,
                until=self.until,
                progress=progress,
                cancel=cancel,
            )
        return [
            Change(
                tensors={"keys": kept(keys), "value": kept(value)},
                curve=curve,
                seconds=time.perf_counter() - began,
            )
        ]

    def patch(self, bench: Workbench, learnt: Sequence[Learnt]) -> Patch:
        """The codebook of all edits."""
        return Codebook(self, bench, learnt)


@torch.no_grad()
def queries(bench: Workbench, layer: int, prompts: Sequence[str]) -> Tensor:
    """[N, D_ff] on the CPU: what a layer's down-projection is given at each prompt's last token."""
    ids = [bench.prober.ids(prompt.rstrip()) for prompt in prompts]
    rows = Rows.of([(each, ()) for each in ids], bench.model.device)
    name = bench.down(layer)
    with up_to_block(bench.model, layer), inputs_of(bench.model, name) as seen:
        bench.model(
            input_ids=rows.ids,
            attention_mask=rows.mask,
            position_ids=rows.positions,
            use_cache=False,
            logits_to_keep=1,
        )
    return seen[name][:, -1].float().cpu()


@dataclass(frozen=True, slots=True)
class Slot:
    """A key of the codebook."""

    id: RecordId
    label: str
    key: Tensor
    radius: float
    value: Tensor


class Codebook:
    """See the module. What it holds follows from the changes alone, in the order of the edits."""

    adds = False

    def __init__(self, method: Grace, bench: Workbench, learnt: Sequence[Learnt]) -> None:
        self._bench = bench
        self._layer = bench.layer(method.depth)
        self._name = bench.down(self._layer)
        self.layers = frozenset({self._name}) if learnt else frozenset()
        self._slots: list[Slot] = []
        for each in learnt:
            value = each.change.tensors["value"].to(bench.model.device)
            for key in each.change.tensors["keys"]:
                first = method.radius * float(key.norm())
                slot = Slot(each.id, each.edit.target.strip(), key, first, value)
                self._add(slot)
        self._keys = torch.stack([slot.key for slot in self._slots]) if learnt else None
        self._radii = torch.tensor([slot.radius for slot in self._slots])

    def _add(self, new: Slot) -> None:
        """Algorithm 1 of the paper."""
        if self._slots:
            apart = (torch.stack([slot.key for slot in self._slots]) - new.key).norm(dim=1)
            at = int(apart.argmin())
            near, distance = self._slots[at], float(apart[at])
            if distance <= new.radius + near.radius and near.id != new.id:
                if near.label == new.label:
                    self._slots[at] = replace(near, radius=max(near.radius, distance))
                else:
                    half = distance / 2
                    self._slots[at] = replace(near, radius=min(near.radius, half - 1e-5))
                    new = replace(new, radius=max(min(new.radius, half), 1e-3 * new.radius))
        self._slots.append(new)

    def _verdicts(self, prompts: Sequence[str]) -> list[list[Verdict]]:
        """For each prompt all keys, the nearest first."""
        if self._keys is None:
            return [[] for _ in prompts]
        apart = torch.cdist(
            queries(self._bench, self._layer, prompts),
            self._keys,
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        return [
            [
                Verdict(
                    entry=self._slots[at].id,
                    score=-float(row[at]),
                    threshold=-self._slots[at].radius,
                )
                for at in row.argsort().tolist()
            ]
            for row in apart
        ]

    def open(self, prompts: Sequence[str]) -> Opened:
        """Look each prompt up."""
        verdicts = tuple(
            next((each for each in found if each.margin >= 0), None)
            for found in self._verdicts(prompts)
        )
        values = {slot.id: slot.value for slot in self._slots}
        chosen = {
            row: values[verdict.entry]
            for row, verdict in enumerate(verdicts)
            if verdict is not None
        }
        if not chosen:
            return Opened(deltas={}, verdicts=verdicts)

        def delta(inputs: Tensor, output: Tensor) -> Tensor:
            replaced = output.clone()
            for row, value in chosen.items():
                replaced[row] = value.to(output.dtype)
            return replaced

        return Opened(deltas={self._name: delta}, verdicts=verdicts)

    def explain(self, prompt: str, k: int = 3) -> Mapping[str, Any]:
        """The keys that come nearest; a score is a distance, below zero."""
        return {
            "layer": self._name,
            "keys": len(self._slots),
            "nearest": [
                {
                    "edit": str(verdict.entry),
                    "score": round(verdict.score, 4),
                    "threshold": round(verdict.threshold, 4),
                    "open": verdict.margin >= 0,
                }
                for verdict in self._verdicts([prompt])[0][:k]
            ],
        }

    def merged(self) -> None:
        """A checkpoint has no place for a codebook."""
        return
