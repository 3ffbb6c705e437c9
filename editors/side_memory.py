"""The side memories of WISE as a patch: kept apart or merged, and routed to by a gate.

A side memory is the difference W' - W of one matrix [D_out, D_in]: the sum of its edits' changes,
as a pair of thin matrices or as the values under the memory's mask.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..llm.places import Delta
from ..memory.gates.base import Entry, Gate, Verdict, route
from ..memory.gates.keys import Key
from ..memory.record import RecordId
from .base import Edit, Learnt, Opened
from .merging import MERGES
from .rows import Rows

if TYPE_CHECKING:
    from .wise import Wise
    from .workbench import Workbench


class Difference(Protocol):
    """W' - W, as it acts on inputs."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """[..., D_in] -> [..., D_out]."""

    def dense(self) -> Tensor:
        """[D_out, D_in]."""


@dataclass(frozen=True, slots=True)
class Thin:
    """A difference of low rank: down [R, D_in], up [D_out, R]."""

    down: Tensor
    up: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """[..., D_in] -> [..., D_out]."""
        return inputs.to(self.down.dtype) @ self.down.T @ self.up.T

    def dense(self) -> Tensor:
        """[D_out, D_in]."""
        return self.up @ self.down


@dataclass(frozen=True, slots=True)
class Dense:
    """A difference as a whole matrix [D_out, D_in]."""

    weight: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """[..., D_in] -> [..., D_out]."""
        return linear(inputs.to(self.weight.dtype), self.weight)

    def dense(self) -> Tensor:
        """[D_out, D_in]."""
        return self.weight


def entry(edit: Edit, id: RecordId | None = None) -> Entry:
    """What a gate is to recognise of an edit; one without an id is held by no gate."""
    return Entry(
        id=id or RecordId(""),
        inside=(edit.prompt, *edit.paraphrases),
        outside=tuple(prompt for prompt, _ in edit.locality),
        subject=edit.subject,
    )


def mask_of(method: Wise, edit: Edit, shape: Sequence[int]) -> Tensor:
    """[D_out, D_in], True where the edit's side memory may differ from the base: drawn anew for
    each memory, so that some entries are shared (theorem 2.1)."""
    seed = int.from_bytes(hashlib.sha256(method.lane(edit).encode()).digest()[:7])
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=draw) < method.mask


def difference(method: Wise, learnt: Sequence[Learnt], like: Tensor) -> Difference | None:
    """The side memory that edits of one lane come to, None for no edits; of the shape and on the
    device of the matrix `like`."""
    if not learnt:
        return None
    tensors = [each.change.tensors for each in learnt]
    if method.rank:
        down = torch.cat([each["down"] for each in tensors])
        up = torch.cat([each["up"] for each in tensors], dim=1)
        return Thin(down.to(like.device), up.to(like.device))
    free = mask_of(method, learnt[0].edit, like.shape)
    values = torch.stack([each["values"] for each in tensors]).sum(0)
    return Dense(torch.zeros(like.shape).masked_scatter(free, values).to(like.device))


@dataclass(frozen=True, slots=True)
class Memory:
    """A side memory, and the edits in it."""

    edits: tuple[Learnt, ...]
    difference: Difference
    least: float
    """The smallest routing activation of its edits (epsilon)."""


class SideMemories:
    """See the module. What it holds follows from the changes alone."""

    adds = False

    def __init__(self, method: Wise, bench: Workbench, learnt: Sequence[Learnt]) -> None:
        self._bench = bench
        self._layer = method.at(bench)
        self._name = bench.down(self._layer)
        self.layers = frozenset({self._name}) if learnt else frozenset()
        self._memories = _memories(method, bench.weight(self._name), learnt)
        self._at = {
            each.id: at for at, memory in enumerate(self._memories) for each in memory.edits
        }
        self._entries: list[Entry]
        self._gate: Gate
        if method.gate == "keys":
            self._entries = [entry(each.edit, each.id) for each in learnt]
            keys = method.keys(bench)
            keys.fit(
                self._entries,
                [
                    Key(
                        **{
                            part: each.change.tensors[part]
                            for part in ("inside", "outside", "said")
                        }
                    )
                    for each in learnt
                ],
            )
            self._gate = keys
        else:
            self._entries = [
                entry(memory.edits[0].edit, memory.edits[0].id) for memory in self._memories
            ]
            self._gate = ActivationGate(bench, self._layer, self._memories, method.act_ratio)

    @property
    def gate(self) -> Gate:
        """What routes."""
        return self._gate

    def open(self, prompts: Sequence[str]) -> Opened:
        """Route each prompt to a side memory, or to none."""
        verdicts = tuple(route(self._gate, self._entries, prompts))
        rows: dict[int, list[int]] = {}
        for row, verdict in enumerate(verdicts):
            if verdict is not None:
                rows.setdefault(self._at[verdict.entry], []).append(row)
        if not rows:
            return Opened(deltas={}, verdicts=verdicts)
        chosen = [(each, self._memories[at].difference) for at, each in rows.items()]
        return Opened(deltas={self._name: _by_row(chosen, len(prompts))}, verdicts=verdicts)

    def explain(self, prompt: str) -> Mapping[str, Any]:
        """The edits, or side memories, that come nearest."""
        return {
            "layer": self._name,
            "side_memories": len(self._memories),
            "nearest": [
                {
                    "edit": str(verdict.entry),
                    "score": round(verdict.score, 4),
                    "threshold": round(verdict.threshold, 4),
                    "open": verdict.open,
                    "vetoed": verdict.vetoed,
                }
                for verdict in self._gate.explain(prompt)
            ],
        }

    def merged(self) -> None:
        """A checkpoint has no place for a gate."""
        return


class ActivationGate:
    """Routes by the activation D of each side memory, as the paper does (equation 6)."""

    def __init__(
        self, bench: Workbench, layer: int, memories: Sequence[Memory], ratio: float
    ) -> None:
        self._bench, self._layer = bench, layer
        self._memories, self._ratio = tuple(memories), ratio

    def fit(self, entries: Sequence[Entry]) -> None:
        """Nothing is to be computed: what it looks at was learnt with the edits."""

    @property
    def thresholds(self) -> Tensor:
        """[E]: the share `act_ratio` of the smallest activation of a memory's own edits."""
        return torch.tensor([self._ratio * memory.least for memory in self._memories])

    def score(self, prompts: Sequence[str]) -> Tensor:
        """[N, E]: routing activation of each prompt at each side memory."""
        ids = [self._bench.prober.ids(prompt) for prompt in prompts]
        rows = Rows.of([(each, ()) for each in ids], self._bench.model.device)
        inputs = self._bench.capture(rows, self._layer).inputs
        counted = rows.told
        found = [
            (memory.difference(inputs).norm(dim=-1) * counted).sum(1) / counted.sum(1)
            for memory in self._memories
        ]
        return torch.stack(found, dim=1).cpu()

    def explain(self, prompt: str, k: int = 3) -> list[Verdict]:
        """The side memories that come nearest, each by its first edit."""
        if not self._memories:
            return []
        scores, thresholds = self.score([prompt])[0].tolist(), self.thresholds.tolist()
        found = [
            Verdict(entry=memory.edits[0].id, score=score, threshold=threshold)
            for memory, score, threshold in zip(self._memories, scores, thresholds, strict=True)
        ]
        return sorted(found, key=lambda verdict: -verdict.margin)[:k]


def _memories(method: Wise, like: Tensor, learnt: Sequence[Learnt]) -> list[Memory]:
    """One for each lane; or all lanes merged into one."""
    lanes: dict[str, list[Learnt]] = {}
    for each in learnt:
        lanes.setdefault(method.lane(each.edit), []).append(each)
    memories = []
    for edits in lanes.values():
        made = difference(method, edits, like)
        assert made is not None
        memories.append(Memory(tuple(edits), made, _least(edits)))
    if method.mode == "retrieve" or not memories:
        return memories
    merge = MERGES[method.merge]
    merged = merge(torch.stack([memory.difference.dense() for memory in memories]), method.density)
    return [Memory(tuple(learnt), Dense(merged), _least(learnt))]


def _least(edits: Sequence[Learnt]) -> float:
    return min(each.change.numbers["activation"] for each in edits)


def _by_row(chosen: Sequence[tuple[Sequence[int], Difference]], rows: int) -> Delta:
    """A delta for a batch in which rows have side memories of their own, or none."""
    if rows == 1:
        [(_, difference)] = chosen
        return lambda inputs, output: output + difference(inputs).to(output.dtype)

    def delta(inputs: Tensor, output: Tensor) -> Tensor:
        changed = output.clone()
        for own, difference in chosen:
            changed[own] += difference(inputs[own])
        return changed

    return delta
