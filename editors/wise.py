"""WISE: edits in side memories of one feed-forward matrix, and a gate that routes to them.

Wang et al., NeurIPS 2024, arXiv 2405.14768. A side memory is a copy W' of a down-projection W; here
it is kept as the difference W' - W. For inputs `a` [B, T, D_ff] of that matrix the routing
activation is D(x) = mean over a prompt's tokens of |a (W' - W)^T|_2 (equation 3), and a prompt for
which the gate opens is answered by W' (equation 6).

Where the official code departs from the paper we follow the paper, except:

- D is averaged over the prompt's tokens without padding and without the first, and both the
  threshold and the route are decided on the prompt alone. `epsilon="answer"` sets the threshold on
  prompt and answer together, as the code does.
- `act_ratio` scales the threshold, as in the code.
- Adam instead of SGD, no weight decay, no clamp unless `clamp` is set; the loss is the mean over
  target tokens of a row, then over rows.
- Replay is within a side memory. Across them it would tie memories together, and undoing an edit
  could then not be exact.

Two things are ours: by default each edit has a side memory of its own, of low rank, so that it can
be undone by leaving it out; and `gate="keys"`, which tells prompts apart far better than D does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import Cancelled, ConfigError, EditFailed
from ..llm.twin import patched
from ..memory.gates.features import background
from ..memory.gates.keys import KeyGate
from .base import Change, Edit, Learnt, Patch, Progress
from .merging import MERGES
from .rows import Rows
from .side_memory import SideMemories, difference, entry, mask_of

if TYPE_CHECKING:
    from .workbench import Workbench


OUTSIDE = 16
"""Texts, beside those that the user named, on which a side memory is held still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wise:
    """Hyper-parameters, tuned for small models.

    Args:
        depth: where the edited matrix lies, as a share of the model's depth.
        shards: side memories that edits are spread over; 0: one for each edit.
        mode: "retrieve": the gate picks one side memory; "merge": all are merged into one.
        merge, density: how; see `merging`.
        rank: of a change; 0: unrestricted, under the shard's random mask.
        mask: share of entries that a shard may change (rho), for rank 0.
        steps, rate, until: Adam's, and the answer's loss at which it ends.
        contexts: beginnings of other texts before the prompt in training.
        gate: "keys", or "activation" as in the paper.
        threshold, strict: of the gate of keys; see `KeyGate`.
        alpha, beta, gamma: margins of the routing loss (equation 5); beta=0 leaves it out.
        act_ratio, epsilon: of the gate of activations.
        replay: edits of the same shard, learnt before, whose routing activation is held up.
        clamp: most that an entry may change; 0: no limit.
    """

    name: ClassVar[str] = "wise"
    depth: float = 0.86
    shards: int = 0
    mode: Literal["retrieve", "merge"] = "retrieve"
    merge: str = "ties"
    density: float = 0.53
    rank: int = 4
    mask: float = 0.2
    steps: int = 40
    rate: float = 0.08
    until: float = 0.05
    contexts: int = 3
    gate: Literal["keys", "activation"] = "keys"
    threshold: float = 0.3
    strict: float = 0.6
    alpha: float = 1.0
    beta: float = 0.0
    gamma: float = 3.0
    act_ratio: float = 0.75
    epsilon: Literal["prompt", "answer"] = "prompt"
    replay: int = 0
    clamp: float = 0.0
    batch: ClassVar[int] = 1
    mergeable: ClassVar[bool] = False
    applied: ClassVar[frozenset[str]] = frozenset(
        {"mode", "merge", "density", "gate", "threshold", "strict", "act_ratio"}
    )

    def __post_init__(self) -> None:
        rules = (
            ("depth", 0 <= self.depth <= 1, "within [0, 1]"),
            ("shards", self.shards >= 0, "at least 0"),
            ("mode", self.mode in ("retrieve", "merge"), "retrieve or merge"),
            ("merge", self.merge in MERGES, f"one of {sorted(MERGES)}"),
            ("density", 0 < self.density <= 1, "within (0, 1]"),
            ("rank", self.rank >= 0, "at least 0"),
            ("mask", 0 < self.mask <= 1, "within (0, 1]"),
            ("steps", self.steps >= 1, "at least 1"),
            ("rate", 0 < self.rate <= 10, "within (0, 10]"),
            ("gate", self.gate in ("keys", "activation"), "keys or activation"),
            ("epsilon", self.epsilon in ("prompt", "answer"), "prompt or answer"),
            ("contexts", 0 <= self.contexts <= 400, "within 0..400"),
            ("replay", self.replay >= 0, "at least 0"),
            ("beta", self.gate == "keys" or self.beta > 0, "above 0 with gate=activation"),
            ("shards", self.mode == "retrieve" or self.shards > 0, "above 0 with mode=merge"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise ConfigError(f"wise: {name}={getattr(self, name)!r} must be {rule}")

    def lane(self, edit: Edit) -> str:
        """The side memory that an edit is in: its own, or one by its content, so that which edits
        share one does not depend on what else was edited."""
        return f"{edit.seed % self.shards if self.shards else edit.seed}"

    def learn(
        self,
        bench: Workbench,
        edits: Sequence[Edit],
        before: Sequence[Learnt],
        progress: Progress,
        cancel: Event,
    ) -> list[Change]:
        """Learn one edit; see `Method.learn`."""
        [edit] = edits
        return [_Lesson(self, bench, edit, before).run(progress, cancel)]

    def patch(self, bench: Workbench, learnt: Sequence[Learnt]) -> Patch:
        """The side memories behind their gate."""
        return SideMemories(self, bench, learnt)

    def at(self, bench: Workbench) -> int:
        """The layer it edits."""
        return bench.layer(self.depth)

    def keys(self, bench: Workbench) -> KeyGate:
        """The gate of keys, holding nothing yet."""
        return KeyGate(bench.features, threshold=self.threshold, strict=self.strict)


class _Lesson:
    """Learning one edit: what is computed once, and the steps."""

    def __init__(
        self, method: Wise, bench: Workbench, edit: Edit, before: Sequence[Learnt]
    ) -> None:
        self.method, self.bench, self.edit, self.before = method, bench, edit, before
        self.layer = method.at(bench)
        self.name = bench.down(self.layer)
        self.began = time.perf_counter()
        contexts = bench.contexts(method.contexts)
        asked = (edit.prompt, *edit.paraphrases)
        prompts = [*asked, *(f"{context} {edit.prompt}" for context in contexts)]
        self.told = [bench.capture(rows, self.layer) for rows in bench.lessons(edit, prompts)]
        self.irrelevant = [self._inputs(prompt) for prompt in self._elsewhere()]
        replayed = before[-method.replay :] if method.replay else ()
        self.earlier = [self._inputs(each.edit.prompt) for each in replayed]

    def _elsewhere(self) -> list[str]:
        if not self.method.beta:
            return []
        return [*(prompt for prompt, _ in self.edit.locality), *background()[-OUTSIDE:]]

    def _inputs(self, prompt: str) -> Tensor:
        """[T, D_ff] at a prompt's tokens but the first."""
        rows = Rows.of([(self.bench.prober.ids(prompt), ())], self.bench.model.device)
        captured = self.bench.capture(rows, self.layer)
        return captured.inputs[0][rows.told[0].bool()]

    def run(self, progress: Progress, cancel: Event) -> Change:
        """The steps, and what is kept."""
        method = self.method
        parts, change = self._unlearnt()
        base = difference(method, self.before, self.bench.weight(self.name))

        def delta(inputs: Tensor) -> Tensor:
            new = change(inputs)
            return new if base is None else new + base(inputs)

        optimiser = torch.optim.Adam(list(parts.values()), lr=method.rate)
        curve: list[float] = []
        with (
            torch.enable_grad(),
            patched(self.bench.model, {self.name: lambda a, out: out + delta(a)}),
        ):
            for step in range(method.steps):
                if cancel.is_set():
                    raise Cancelled("the edit was cancelled; nothing of it was kept")
                progress(step, method.steps)
                answer = self.bench.losses(self.told, self.layer).mean()
                routing = self._routing(delta) if method.beta else answer.new_zeros(())
                curve.append(float(answer.detach() + routing.detach()))
                self._check(curve[-1], step)
                if answer < method.until and routing < method.until:
                    break
                optimiser.zero_grad()
                (answer + routing).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                if method.clamp:
                    for part in parts.values():
                        part.data.clamp_(-method.clamp, method.clamp)
        progress(method.steps, method.steps)
        return self._kept(parts, delta, curve)

    def _check(self, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise EditFailed(
                f"the loss became {value} at step {step + 1} with rate={self.method.rate};"
                " choose a lower rate, or smaller margins"
            )

    def _unlearnt(self) -> tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]:
        """The parameters of a change that changes nothing yet, and what it does to inputs."""
        width, wide = self.bench.weight(self.name).shape
        if self.method.rank:
            down = self._directions().clone().requires_grad_()
            up = torch.zeros(width, len(down), device=down.device, requires_grad=True)
            return {"down": down, "up": up}, lambda a: a @ down.T @ up.T
        free = mask_of(self.method, self.edit, (width, wide)).to(self.bench.model.device)
        values = torch.zeros(int(free.sum()), device=free.device, requires_grad=True)

        def change(inputs: Tensor) -> Tensor:
            weight = torch.zeros(width, wide, device=free.device).masked_scatter(free, values)
            return inputs @ weight.T

        return {"values": values}, change

    def _directions(self) -> Tensor:
        """[R, D_ff]: where the inputs lie at the tokens that are to say the target; a change begins
        along those, which takes a third of the steps that random directions take."""
        inputs = []
        for captured in self.told:
            says = torch.roll(captured.rows.target, -1, dims=1)
            says[:, -1] = False
            inputs.append(captured.inputs[says])
        basis: Tensor = torch.linalg.svd(torch.cat(inputs), full_matrices=False).Vh
        return basis[: self.method.rank]

    def _routing(self, delta: Callable[[Tensor], Tensor]) -> Tensor:
        """Equation 5, on prompts only; `replay` holds up what was learnt before."""
        method = self.method
        plain = self.told[0]
        counted = plain.rows.told
        lengths = delta(plain.inputs).norm(dim=-1)
        inside = (lengths * counted).sum(1) / counted.sum(1)
        outside = torch.stack([delta(a).norm(dim=-1).mean() for a in self.irrelevant])
        loss = _hinge(outside - method.alpha) + _hinge(method.beta - inside)
        loss = loss + _hinge(method.gamma - (inside.min() - outside))
        if self.earlier:
            held = torch.stack([delta(a).norm(dim=-1).mean() for a in self.earlier])
            loss = loss + _hinge(method.beta - held)
        return loss

    @torch.no_grad()
    def _kept(
        self, parts: dict[str, Tensor], delta: Callable[[Tensor], Tensor], curve: Sequence[float]
    ) -> Change:
        plain, method = self.told[0], self.method
        counted = plain.rows.told
        if method.epsilon == "answer":
            counted = counted + plain.rows.target
        lengths = delta(plain.inputs).norm(dim=-1)
        inside = ((lengths * counted).sum(1) / counted.sum(1))[0]
        tensors = {name: part.detach().cpu().contiguous() for name, part in parts.items()}
        self._check(float(sum(part.sum() for part in tensors.values())), len(curve))
        numbers = {"activation": float(inside)}
        key = method.keys(self.bench).key(entry(self.edit))
        tensors |= {"inside": key.inside, "outside": key.outside, "said": key.said}
        return Change(
            tensors=tensors,
            numbers=numbers,
            curve=tuple(curve),
            seconds=time.perf_counter() - self.began,
        )


def _hinge(excess: Tensor) -> Tensor:
    """Mean of what is positive, 0 if nothing is."""
    over = excess.clamp(min=0)
    mean: Tensor = over.sum() / (over > 0).sum().clamp(min=1)
    return mean
