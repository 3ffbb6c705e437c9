"""A second body for a model: modules of its own over the same weights.

What is hooked, skipped or captured in a twin is not seen by the model that replies are generated
with, so one can be edited while the other serves. No weight is copied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import CapabilityError
from .attach import hook
from .places import Delta

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """Modules of its own, without hooks, over the weights and buffers of `model`; frozen."""
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(weight.detach(), requires_grad=False)
        for weight in model.parameters()
    }
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    second = copy.deepcopy(model, memo)
    for module in second.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return second.eval()


def blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The decoder's layers and their name: the one list as long as the model is deep.

    Raises:
        CapabilityError: there is none.
    """
    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise CapabilityError(
        f"{type(model).__name__} has no list of {depth} layers, so none of them can be patched;"
        " use a decoder-only model of transformers"
    )


def width_in(layer: nn.Module) -> int:
    """Features that a linear layer takes."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return int(weight.shape[0] if isinstance(layer, Conv1D) else weight.shape[1])


def width_out(layer: nn.Module) -> int:
    """Features that a linear layer gives."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return int(weight.shape[1] if isinstance(layer, Conv1D) else weight.shape[0])


def matrix(layer: nn.Module) -> Tensor:
    """The weight [D_out, D_in] of a linear layer, however the layer keeps it."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight.T if isinstance(layer, Conv1D) else weight


def down_projection(model: PreTrainedModel, layer: int) -> str:
    """Name of the matrix that ends the feed-forward part of a layer: of those that lead back to the
    model's width, the one that takes most.

    Raises:
        CapabilityError: there is no such layer, or no such matrix in it (a mixture of experts).
    """
    name, found = blocks(model)
    if not 0 <= layer < len(found):
        raise CapabilityError(f"layer={layer} must lie within 0..{len(found) - 1} for this model")
    width = model.config.get_text_config(decoder=True).hidden_size
    linear = {
        part: module
        for part, module in found[layer].named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and width_out(module) == width
        and width_in(module) > width
    }
    if not linear:
        raise CapabilityError(
            f"layer {layer} of {type(model).__name__} has no single down-projection, as a mixture"
            " of experts has not; use a model with one feed-forward part per layer"
        )
    widest = max(linear, key=lambda part: width_in(linear[part]))
    return f"{name}.{layer}.{widest}"


@contextmanager
def patched(model: nn.Module, deltas: Mapping[str, Delta]) -> Iterator[None]:
    """Deltas on named linear layers of a twin, inside the block."""
    with ExitStack() as undo:
        for name, delta in deltas.items():
            undo.callback(model.get_submodule(name).register_forward_hook(hook(delta)).remove)
        yield


@contextmanager
def inputs_of(model: nn.Module, *names: str) -> Iterator[dict[str, Tensor]]:
    """What the named modules of a twin were given last, by name, as forward passes inside the block
    fill it in."""
    seen: dict[str, Tensor] = {}

    def catch(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[name] = args[0] if args else kwargs["hidden_states"]

        return look

    with ExitStack() as undo:
        for name in names:
            module = model.get_submodule(name)
            undo.callback(module.register_forward_pre_hook(catch(name), with_kwargs=True).remove)
        yield seen


class _Given(nn.Module):
    """Stands for a layer whose output is known, or for one before it."""

    def __init__(self, output: Tensor | None) -> None:
        super().__init__()
        self.output = output

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states if self.output is None else self.output


@contextmanager
def from_block(model: PreTrainedModel, first: int, hidden: Tensor) -> Iterator[None]:
    """Inside the block, a twin's forward pass begins at layer `first`, which is given `hidden`
    [B, T, D]; the layers below it cost nothing. Embedding, norm and head are the model's own."""
    if first == 0:
        yield
        return
    _, layers = blocks(model)
    kept = list(layers[:first])
    try:
        for index in range(first):
            layers[index] = _Given(hidden if index == first - 1 else None)
        yield
    finally:
        for index, layer in enumerate(kept):
            layers[index] = layer


@contextmanager
def up_to_block(model: PreTrainedModel, last: int) -> Iterator[None]:
    """Inside the block, a twin's forward pass ends after layer `last`."""
    _, layers = blocks(model)
    kept = list(layers[last + 1 :])
    try:
        for index in range(last + 1, last + 1 + len(kept)):
            layers[index] = _Given(None)
        yield
    finally:
        for index, layer in enumerate(kept, start=last + 1):
            layers[index] = layer
