"""Adapters behind gates: how much of each is loaded is decided once, from the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...editors.base import Opened
from ...llm.places import Delta
from ...memory.gates.base import Verdict

if TYPE_CHECKING:
    from ...editors.workbench import Workbench
    from ...memory.gates.sets import SetGate
    from ..base import Unlearnt


class GatedAdapters:
    """h = W x + sum_t w_t(x) B_t A_t x, over the requests that a prompt opens.

    What is not loaded costs nothing: the adapters of the open requests lie side by side in one pair
    of matrices for each layer. Weights that come to more than 1 are scaled to 1, as each adapter
    was learnt alone.

    Args:
        shared: the requests went on with one adapter, the last; it is loaded as far as the most
            certain of them says.
    """

    adds = True

    def __init__(
        self, bench: Workbench, learnt: Sequence[Unlearnt], gate: SetGate, *, shared: bool
    ) -> None:
        self._bench, self._learnt, self._gate, self._shared = bench, learnt, gate, shared
        # They may have been learnt under other options, and so for other layers.
        self.layers = frozenset(
            name.removesuffix("/down")
            for each in (learnt[-1:] if shared else learnt)
            for name in each.change.tensors
            if name.endswith("/down")
        )

    def open(self, prompts: Sequence[str]) -> Opened:
        """Decide for each prompt how much of each adapter is loaded."""
        weights = self._gate.weights(prompts)  # [N, E]
        best = weights.argmax(1).tolist()
        verdicts = tuple(
            self._verdict(prompt, at) if float(row[at]) > 0 else None
            for prompt, row, at in zip(prompts, weights, best, strict=True)
        )
        loaded = _composed(weights, shared=self._shared)
        used = [at for at in range(loaded.shape[1]) if bool(loaded[:, at].any())]
        if not used:
            return Opened(deltas={}, verdicts=verdicts)
        deltas = {}
        for name in sorted(self.layers):
            having = [at for at in used if f"{name}/down" in self._learnt[at].change.tensors]
            if having:
                deltas[name] = self._delta(name, having, loaded[:, having])
        return Opened(deltas=deltas, verdicts=verdicts)

    def _delta(self, name: str, used: Sequence[int], loaded: Tensor) -> Delta:
        device = self._bench.weight(name).device
        parts = [self._learnt[at].change.tensors for at in used]
        down = torch.cat([part[f"{name}/down"] for part in parts]).to(device)
        up = torch.cat([part[f"{name}/up"] for part in parts], 1).to(device)
        ranks = torch.tensor([len(part[f"{name}/down"]) for part in parts])
        each = loaded.repeat_interleave(ranks, 1)[:, None].to(device)  # [N, 1, sum R]
        if len(each) == 1:  # one prompt: its weights are part of the matrix
            up = up * each[0]

        def delta(inputs: Tensor, output: Tensor) -> Tensor:
            kind = inputs.dtype
            hidden = inputs @ down.T.to(kind)
            if len(loaded) > 1:
                hidden = hidden * each.to(kind)
            return output + (hidden @ up.T.to(kind)).to(output.dtype)

        return delta

    def _verdict(self, prompt: str, at: int) -> Verdict:
        id = self._learnt[at].id
        return next(each for each in self._gate.explain(prompt, k=10**9) if each.entry == id)

    def explain(self, prompt: str) -> Mapping[str, Any]:
        """For the requests that come nearest: how much of each is loaded, score and threshold. The
        score is None where the prompt names others than the request does."""
        weights = _composed(self._gate.weights([prompt]), shared=False)[0].tolist()
        share = {each.id: weight for each, weight in zip(self._learnt, weights, strict=True)}
        return {
            "adapters": [
                {
                    "request": str(verdict.entry),
                    "loaded": round(share[verdict.entry], 4),
                    "score": round(verdict.score, 4) if isfinite(verdict.score) else None,
                    "threshold": round(verdict.threshold, 4),
                }
                for verdict in self._gate.explain(prompt)
            ]
        }

    def merged(self) -> None:
        """None: a checkpoint holds no gate."""
        return


def _composed(weights: Tensor, *, shared: bool) -> Tensor:
    """From how sure each gate is to how much of each adapter is loaded, [N, E]."""
    if not shared:
        return weights / weights.sum(1, keepdim=True).clamp(min=1)
    last = torch.zeros_like(weights)
    if weights.shape[1]:
        last[:, -1] = weights.max(1).values
    return last
