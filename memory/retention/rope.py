"""A model's rotary embedding, taken over: which frequencies, which channels, which pairing.

The model's own rotary module is replaced by an identity while a cache is attached, so that keys
arrive raw and one attention function owns all positions. Knows nothing of what a cache keeps.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from torch import Tensor, nn

from ...errors import CapabilityError
from ...kernels.base import Pairing
from ...kernels.rotary import rotate, table

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Kinds of scaling whose frequencies change as a text grows: keys that were kept would no longer
fit those that come."""

Angles = tuple[Tensor, Tensor]
"""cos and sin, float32 [B or 1, 1, T, R / 2], of the R channels that are rotated."""


@dataclass(frozen=True, slots=True)
class Rope:
    """RoFormer's rotary embedding (arXiv 2104.09864, section 3.2.2), as one model has it.

    Args:
        frequencies: float32 [R / 2]; the first R channels of a head are rotated, the others not.
        trained: positions below this are rounded as the model rounds them in training, so that
            logits are the model's own to the last bit; from there on angles are float64's.
        scaling: factor on cos and sin (YaRN's attention factor); 1 for most.
        pairing: which two channels turn together.
    """

    frequencies: Tensor
    trained: int = 0
    scaling: float = 1.0
    pairing: Pairing = "half"

    @classmethod
    def of(cls, model: PreTrainedModel) -> Rope:
        """The rotary embedding of `model`.

        Raises:
            CapabilityError: it has none, its frequencies depend on the length, or its layers use
                several; or its layers attend in a way that a cache of ours does not know.
        """
        name = type(model).__name__
        config = model.config.get_text_config(decoder=True)
        kind = _scaling(config)
        if kind in LENGTH_DEPENDENT:
            raise CapabilityError(
                f"{name} scales its rotary embedding by rope_type={kind!r}, whose frequencies"
                " depend on the text's length; load it with default, linear, llama3 or yarn scaling"
            )
        kinds = getattr(config, "layer_types", None)
        strange = sorted(set(kinds or ()) - {"full_attention"})
        if kinds is None and getattr(config, "sliding_window", None) is not None:
            strange = [f"sliding_window={config.sliding_window}"]
        if strange:
            raise CapabilityError(
                f"{name} has layers of kind {strange}; a retention cache decides what every layer"
                " sees, and takes models whose layers all have full attention"
            )
        modules = rotary_modules(model)
        if len(modules) != 1:
            found = "no rotary embedding" if not modules else f"{len(modules)} of them"
            raise CapabilityError(
                f"{name} has {found}; a retention cache needs a model with one rotary embedding,"
                " as Llama, Qwen, Mistral or Phi (learned positions cannot be given anew)"
            )
        (module,) = modules.values()
        rope = cls(
            cast(Tensor, module.inv_freq).detach().float().cpu(),
            trained=int(config.max_position_embeddings),
            scaling=float(cast(Any, getattr(module, "attention_scaling", 1.0))),
        )
        return replace(rope, pairing=_pairing(model, module, rope))

    @property
    def width(self) -> int:
        """Channels that are rotated."""
        return 2 * len(self.frequencies)

    def angles(self, positions: Tensor) -> Angles:
        """Of integer positions [B or 1, T], on the CPU or where they lie."""
        shape = (len(positions), 1, positions.shape[1], -1)
        at = positions.flatten()
        cos, sin = self._rounded(at)
        if bool((at >= self.trained).any()):
            exact = table(self.frequencies, at, scaling=self.scaling)
            beyond = (at >= self.trained)[:, None]
            cos, sin = torch.where(beyond, exact[0], cos), torch.where(beyond, exact[1], sin)
        return cos.view(shape), sin.view(shape)

    def _rounded(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As models do it: float32 throughout, which is off by 0.0005 rad at 8,192."""
        angles = positions.float()[:, None] * self.frequencies.to(positions.device)
        return angles.cos() * self.scaling, angles.sin() * self.scaling

    def turn(self, x: Tensor, angles: Angles) -> Tensor:
        """x [B, H, T, D] rotated, in float32 and back to its dtype."""
        cos, sin = angles
        if self.width == x.shape[-1]:
            return rotate(x.float(), cos, sin, self.pairing).to(x.dtype)
        turned = rotate(x[..., : self.width].float(), cos, sin, self.pairing).to(x.dtype)
        return torch.cat([turned, x[..., self.width :]], dim=-1)


class Identity(nn.Module):
    """A rotary module that turns by nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """cos = 1 and sin = 0, [B, T, R] as the model's own."""
        ones = x.new_ones(*x.shape[:2], self.width)
        return ones, torch.zeros_like(ones)


def rotary_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules that make a model's angles, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "inv_freq", None), Tensor)
    }


def attentions(model: PreTrainedModel) -> list[Any]:
    """A model's attention modules, which know which layer they are of."""
    return [m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "is_causal")]


@contextmanager
def unrotated(model: PreTrainedModel, width: int) -> Iterator[None]:
    """`model` without rotary embedding inside the block."""
    places = []
    for name, module in rotary_modules(model).items():
        owner, _, attribute = name.rpartition(".")
        places.append((model.get_submodule(owner), attribute, module))
    try:
        for parent, attribute, _ in places:
            setattr(parent, attribute, Identity(width))
        yield
    finally:
        for parent, attribute, module in places:
            setattr(parent, attribute, module)


def _scaling(config: Any) -> str | None:
    parameters = getattr(config, "rope_parameters", None) or {}
    kind = parameters.get("rope_type") if isinstance(parameters, dict) else None
    return None if kind is None else str(kind)


def _pairing(model: PreTrainedModel, module: nn.Module, rope: Rope) -> Pairing:
    """Found out by letting the model's own code rotate something.

    Raises:
        CapabilityError: it rotates in no way known here.
    """
    heads = attentions(model)
    apply = None
    for each in heads[:1]:
        apply = getattr(sys.modules[type(each).__module__], "apply_rotary_pos_emb", None)
    if apply is not None:
        width = int(getattr(heads[0], "head_dim", rope.width))
        given = torch.randn(1, 1, 3, width, generator=torch.Generator().manual_seed(0))
        at = torch.tensor([[1, 5, 11]])
        given, at = given.to(model.device), at.to(model.device)
        with torch.no_grad():
            for pairing in get_args(Pairing):
                tried = replace(rope, pairing=pairing)
                if _same(apply, module, given, at, tried):
                    return cast(Pairing, pairing)
    raise CapabilityError(
        f"{type(model).__name__} rotates queries and keys in a way that is not known here; a"
        " retention cache takes models with Llama's or GPT-J's rotary embedding"
    )


def _same(apply: Any, module: nn.Module, given: Tensor, at: Tensor, rope: Rope) -> bool:
    """Whether the model's code and `rope` do the same; partial embeddings are given their part,
    or all, whichever way the model does it."""
    cos, sin = module(given, at)
    expected = rope.turn(given, rope.angles(at))
    for part in (given, given[..., : rope.width]):
        try:
            turned, _ = apply(part, part, cos, sin)
        except RuntimeError:  # it wants the other width
            continue
        if torch.allclose(turned, expected[..., : part.shape[-1]], atol=1e-4):
            return True
    return False
