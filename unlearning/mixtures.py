"""Mixtures of experts: where routers and experts are, and which expert a text engages.

In transformers the experts of a layer are stacked: each of their parameters has one slice for each
expert, [E, ...], beside a router whose weight is [E, D].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..editors.rows import Row, Rows
from ..errors import CapabilityError
from ..llm.twin import blocks, inputs_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 8


@dataclass(frozen=True, slots=True)
class Mixture:
    """Of one layer.

    Args:
        layer: which.
        router, experts: names of the modules.
        count: E, how many experts there are.
    """

    layer: int
    router: str
    experts: str
    count: int

    def stacks(self, model: nn.Module) -> list[str]:
        """Full names of the experts' parameters, [E, ...] each."""
        found = model.get_submodule(self.experts).named_parameters(recurse=False)
        return [f"{self.experts}.{name}" for name, each in found if len(each) == self.count]

    def routing(self, model: nn.Module) -> list[str]:
        """Full names of the router's parameters."""
        found = model.get_submodule(self.router).named_parameters(recurse=False)
        return [f"{self.router}.{name}" for name, _ in found]

    def probabilities(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """[K, E]: g(x) = softmax(W_r x) of what the router was given, [..., D]."""
        router = model.get_submodule(self.router)
        weight, bias = router.weight, getattr(router, "bias", None)
        assert isinstance(weight, Tensor)
        logits = linear(inputs.flatten(0, -2), weight, bias)
        return logits.float().softmax(-1)


def mixtures(model: PreTrainedModel) -> list[Mixture]:
    """One for each layer that has one.

    Raises:
        CapabilityError: there is none whose experts are stacked beside a router.
    """
    stack, layers = blocks(model)
    found = [
        Mixture(index, f"{stack}.{index}.{router}", f"{stack}.{index}.{experts}", count)
        for index, block in enumerate(layers)
        for router, experts, count in _mixtures(block)
    ]
    if not found:
        raise CapabilityError(
            f"{type(model).__name__} has no mixture of experts that are stacked beside a router, so"
            " no expert can be singled out; use another unlearner, such as npo"
        )
    return found


def _mixtures(block: nn.Module) -> Iterator[tuple[str, str, int]]:
    for name, module in block.named_modules():
        for part, child in module.named_children():
            counts = {len(each) for each in child.parameters(recurse=False) if each.ndim == 3}
            for beside, other in module.named_children():
                weight = getattr(other, "weight", None)
                if other is not child and isinstance(weight, Tensor) and len(weight) in counts:
                    prefix = f"{name}." if name else ""
                    yield f"{prefix}{beside}", f"{prefix}{part}", len(weight)


@torch.no_grad()
def attribution(model: PreTrainedModel, rows: Sequence[Row]) -> Tensor:
    """[M, E]: mean probability with which the router of each mixture chooses each expert, over all
    tokens of the rows (Zhuang et al., ACL 2025, section 4). Each row of it sums to 1.

    Raises:
        CapabilityError: the model is no mixture of experts.
    """
    found = mixtures(model)
    totals = torch.zeros(len(found), max(each.count for each in found))
    tokens = 0
    for at in range(0, len(rows), BATCH):
        batch = Rows.of(rows[at : at + BATCH], model.device)
        with inputs_of(model, *(each.router for each in found)) as seen:
            model.base_model(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                position_ids=batch.positions,
                use_cache=False,
            )
        read = batch.mask.flatten().bool()
        tokens += int(read.sum())
        for row, mixture in enumerate(found):
            chosen = mixture.probabilities(model, seen[mixture.router])[read]
            totals[row, : mixture.count] += chosen.sum(0).cpu()
    return totals / tokens
