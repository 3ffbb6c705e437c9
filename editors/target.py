"""What ROME, MEMIT and AlphaEdit look for first: the vector that makes a model say the target.

A vector d [D] is added to the output of a down-projection at the last token of the subject, and
found by Adam (ROME, equation 4; MEMIT, equation 16):

    mean of -ln P(target | context + prompt)
        + kl KL(P_0 || P_d at "SUBJECT is a") + decay |d|^2 / |v|^2

with |d| <= clamp |v|. In a layer that adds the down-projection's output to the residual stream, as
Llama, Qwen, GPT-2 and most others do, adding d to that output and to the layer's state is the same.
v is the state or the output that d is measured by.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from ..errors import EditFailed
from ..llm.places import Delta
from ..llm.twin import blocks, inputs_of, patched, up_to_block
from .base import Edit, Progress
from .descent import descend
from .rows import Rows
from .rules import Rule, least, positive

if TYPE_CHECKING:
    from .workbench import Workbench


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Hyper-parameters of the search, and of the covariances.

    Args:
        contexts: beginnings of other texts before the prompt.
        steps, rate, until: Adam's, and the loss at which it ends.
        clamp: most that the vector's length may be, in lengths of v; 0: no limit.
        decay, kl: weights; see the module.
        text, samples: what covariances are computed on; see `covariances`.
    """

    contexts: int = 2
    steps: int = 20
    rate: float = 1.0
    until: float = 0.1
    clamp: float = 4.0
    decay: float = 0.001
    kl: float = 0.0625
    text: str = ""
    samples: int = 20_000

    def rules(self) -> tuple[Rule, ...]:
        """Those of these hyper-parameters."""
        return (
            ("contexts", 0 <= self.contexts <= 400, "within 0..400"),
            *(positive(self, name) for name in ("steps", "rate", "samples")),
            *(least(self, name) for name in ("until", "clamp", "decay", "kl")),
        )


@dataclass(frozen=True, slots=True)
class Told:
    """The prompts of an edit as rows: its own, other ways to ask, in contexts, and last
    "SUBJECT is a", which has no target.

    Args:
        at: [N], where the subject ends in each row.
    """

    rows: Rows
    at: Tensor

    @classmethod
    def of(cls, bench: Workbench, edit: Edit, contexts: int) -> Told:
        """The rows of an edit; other ways to ask that do not name the subject are left out.

        Raises:
            EditFailed: the edit names no subject.
        """
        if edit.subject is None:
            raise EditFailed(
                f"an edit with target={edit.target[:40]!r} names no subject, and this method writes"
                " at the subject's last token; name the subject, or use a method that needs none",
                edit=edit,
            )
        prober = bench.prober
        target = prober.ids(" " + edit.target.strip())
        asked = [edit.prompt.rstrip()]
        asked += [p.rstrip() for p in edit.paraphrases if _ends(p, edit.subject)]
        asked += [
            f"{context} {edit.prompt.rstrip()}" for context in bench.contexts(contexts, words=4)
        ]
        essence = f"{edit.subject} is a"
        whole = [(prober.ids(text), target) for text in asked]
        rows = Rows.of([*whole, (prober.ids(essence), ())], bench.model.device)
        offset = (1 - rows.mask).sum(1).tolist()
        at = [
            start + ends_at(bench, text, edit.subject)
            for start, text in zip(offset, [*asked, essence], strict=True)
        ]
        return cls(rows, torch.tensor(at, device=bench.model.device))

    def pick(self, states: Tensor) -> Tensor:
        """[N, T, D] -> [N, D] where the subject ends."""
        return states[torch.arange(len(self.at), device=states.device), self.at]

    def shifting(self, vector: Tensor) -> Delta:
        """Adds a vector [D] there."""

        def delta(inputs: Tensor, output: Tensor) -> Tensor:
            moved = output.clone()
            moved[torch.arange(len(self.at), device=output.device), self.at] += vector
            return moved

        return delta


def _ends(text: str, subject: str) -> int:
    """Where the subject ends in a text, by its last occurrence; 0 if it does not occur."""
    found = list(re.finditer(re.escape(subject), text, re.IGNORECASE))
    return found[-1].end() if found else 0


def ends_at(bench: Workbench, text: str, subject: str) -> int:
    """Index of the subject's last token in a text that names it. The first token of a text has the
    same state in every text and tells nothing, so the next one stands for it.

    Raises:
        EditFailed: it does not name it.
    """
    encoded = bench.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    end = _ends(text, subject)
    if not end:
        raise EditFailed(
            f"subject={subject!r} is not found in a prompt as it is written; spell it as the prompt"
            " does"
        )
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    index = max(at for at, (start, _) in enumerate(offsets) if start < end)
    return min(max(index, 1), len(offsets) - 1)


@torch.no_grad()
def read(
    bench: Workbench, told: Sequence[Told], layers: Sequence[int]
) -> tuple[dict[int, list[Tensor]], list[Tensor]]:
    """What the down-projections of `layers` are given where the subject ends, [N, D_ff] by layer
    for each of `told`; and the state [D] above the last of them, at the edit's own prompt."""
    model, last = bench.model, layers[-1]
    names = {layer: bench.down(layer) for layer in layers}
    keys: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    states = []
    above = f"{blocks(model)[0]}.{last + 1}"
    with up_to_block(model, last), inputs_of(model, *names.values(), above) as seen:
        for each in told:
            rows = each.rows
            model(
                input_ids=rows.ids,
                attention_mask=rows.mask,
                position_ids=rows.positions,
                use_cache=False,
                logits_to_keep=1,
            )
            for layer, name in names.items():
                keys[layer].append(each.pick(seen[name])[:-1])
            states.append(each.pick(seen[above])[0])
    return keys, states


def search(
    method: Search,
    bench: Workbench,
    told: Told,
    layer: int,
    around: Literal["output", "state"],
    progress: Progress,
    cancel: Event,
) -> tuple[Tensor, tuple[float, ...]]:
    """The vector [D] for a layer's down-projection, and the loss at each step."""
    model, name, rows = bench.model, bench.down(layer), told.rows
    captured = bench.capture(rows, layer)
    with torch.no_grad():
        value = told.pick(captured.inputs)[0] @ bench.weight(name).T
        if around == "state":
            value = read(bench, [told], [layer])[1][0]
        with bench.above(captured, layer):
            plain = _logits(model, rows)[-1, -1].log_softmax(-1)
    vector = torch.zeros_like(value).requires_grad_()
    labels, counted = rows.labels

    def loss() -> Tensor:
        with bench.above(captured, layer), patched(model, {name: told.shifting(vector)}):
            logits = _logits(model, rows)
        each = cross_entropy(logits[:, :-1].transpose(1, 2), labels, reduction="none")
        said = (each * counted)[:-1].sum(1) / counted[:-1].sum(1)
        drift = kl_div(logits[-1, -1].log_softmax(-1), plain, reduction="sum", log_target=True)
        size = vector.pow(2).sum() / value.pow(2).sum()
        return said.mean() + method.kl * drift + method.decay * size

    def clamped() -> None:
        most = method.clamp * value.norm()
        if method.clamp and vector.norm() > most:
            vector.mul_(most / vector.norm())

    curve = descend(
        [vector],
        loss,
        steps=method.steps,
        rate=method.rate,
        until=method.until,
        progress=progress,
        cancel=cancel,
        project=clamped,
    )
    return vector.detach(), curve


def _logits(model: Any, rows: Rows) -> Tensor:
    """[N, K, V] from where the first target is predicted."""
    logits: Tensor = model(
        input_ids=rows.ids,
        attention_mask=rows.mask,
        position_ids=rows.positions,
        use_cache=False,
        logits_to_keep=rows.behind,
    ).logits
    return logits.float()
