"""UOE: of a mixture of experts, unlearn the one expert that the forget set engages most.

Zhuang et al., ACL 2025, arXiv 2411.18797 ("SEUF"; first called "Unlearning one expert is enough").
Plain unlearning of a mixture makes its router turn to other experts, which are then damaged in
turn. Here one expert is found by attribution, and it alone is trained, by the loss of any other
method, with an anchor that keeps the router at it:

    L = L_unlearn + anchor |g(x) - onehot(target)|^2,  the mean over the tokens of the forget set.

The router of the expert's own layer reads nothing that the expert wrote, so it can only drift where
it is trained itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from ..editors.base import Opened
from ..editors.rules import least, obey, positive
from ..editors.weight_change import kept
from ..errors import CapabilityError
from ..llm.twin import from_block, inputs_of, twin, up_to_block
from .base import Change, Means, Patch, Request, Unlearnt, Work
from .contrast import Contrast, Step, finished
from .lessons import row
from .mixtures import Mixture, attribution, mixtures
from .registry import METHODS
from .student import Lesson, Student, Study

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..editors.workbench import Workbench

LOSSES = ("grad_ascent", "grad_diff", "npo", "simnpo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Uoe:
    """See the module. No hyper-parameter is tuned: no small mixture of experts was at hand.

    Args:
        loss: which method's, with its own weights.
        router: "trained", of the expert's layer, or "frozen", and then the anchor is a constant.
        anchor: weight of the anchor.
        passes, rate, batch: as of `Contrast`. All weights of the expert are trained, so the rate is
            lower than a LoRA's.
    """

    name: ClassVar[str] = "uoe"
    means: ClassVar[Means] = "changes weights"
    asks_for_retain: ClassVar[bool] = True
    loss: Literal["grad_ascent", "grad_diff", "npo", "simnpo"] = "npo"
    router: Literal["trained", "frozen"] = "trained"
    anchor: float = 1.0
    passes: int = 5
    rate: float = 1e-4
    batch: int = 4

    def __post_init__(self) -> None:
        obey(
            self,
            ("loss", self.loss in LOSSES, f"one of {', '.join(LOSSES)}"),
            ("router", self.router in ("trained", "frozen"), "trained or frozen"),
            least(self, "anchor"),
            *(positive(self, name) for name in ("passes", "rate", "batch")),
        )

    def learn(
        self, bench: Workbench, request: Request, before: Sequence[Unlearnt], work: Work
    ) -> Change:
        """Learn one request; see `Method.learn`.

        Raises:
            CapabilityError: the model is no mixture of experts.
        """
        began = time.perf_counter()
        model = twin(bench.model)
        _install(model, differences(model, (each.change for each in before)))
        rows = [row(bench, each.prompt, each.rest) for each in request.samples]
        engaged = attribution(model, rows)
        at, index = divmod(int(engaged.argmax()), engaged.shape[1])
        mixture = mixtures(model)[at]
        student = ExpertStudent(model, mixture, index, router=self.router == "trained")
        student.begin(work.begun[1])
        method = cast(Contrast, METHODS.build(self.loss, batch=self.batch))

        def loss(step: Step) -> Tensor:
            return method.loss(student, step) + self.anchor * student.drift(step.forget)

        with closing(student):
            lessons = method.steps(bench, student, request)
            study = Study(lessons=lessons, loss=loss, passes=self.passes, rate=self.rate)
            curve = study.run(student, work, request.seed)
        numbers = {
            "layer": float(mixture.layer),
            "expert": float(index),
            "engaged": float(engaged.max()),
        }
        seconds = time.perf_counter() - began
        change = Change(tensors=student.tensors(), numbers=numbers, curve=curve, seconds=seconds)
        return finished(change, self.rate)

    def patch(self, bench: Workbench, learnt: Sequence[Unlearnt]) -> Patch:
        """What the experts' changes come to, to be merged."""
        return ExpertPatch(bench.model, learnt)


class ExpertStudent(Student):
    """One expert that is trained, and its router if that is wanted, in a twin of its own.

    Args:
        model: a twin that nobody else uses. Its parameters are replaced, those below it are not
            written to.
        index: of the expert.
    """

    def __init__(
        self, model: PreTrainedModel, mixture: Mixture, index: int, *, router: bool
    ) -> None:
        self.model, self.lowest = model, mixture.layer
        self._mixture, self._index = mixture, index
        self._kept = ExitStack()
        own = mixture.stacks(model)
        self._first = {
            name: model.get_parameter(name)
            for name in [*own, *(mixture.routing(model) if router else ())]
        }
        self._now = {name: nn.Parameter(each.clone()) for name, each in self._first.items()}
        for name in own:
            self._now[name].register_hook(self._only)
        self._put(self._now)

    def begin(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the tensors of an earlier pass; none if it is the first."""
        with torch.no_grad():
            for key, tensor in tensors.items():
                self._part(self._now, key).add_(tensor.to(self.model.device))

    @property
    def parameters(self) -> list[Tensor]:
        """All that is trained; of stacked experts the others' gradients are zero."""
        return list(self._now.values())

    def tensors(self) -> dict[str, Tensor]:
        """Differences: NAME/INDEX of the expert's slice of a parameter, NAME/whole of a router's
        parameter."""
        own = frozenset(self._mixture.stacks(self.model))
        keys = [f"{name}/{self._index if name in own else 'whole'}" for name in self._now]
        return {
            key: kept(self._part(self._now, key) - self._part(self._first, key)) for key in keys
        }

    def routes(self, lesson: Lesson) -> Tensor:
        """[K, E]: g(x) at each token of a batch."""
        with (
            from_block(self.model, self.lowest, lesson.hidden),
            up_to_block(self.model, self.lowest),
            inputs_of(self.model, self._mixture.router) as seen,
        ):
            self.model.base_model(
                input_ids=lesson.rows.ids,
                attention_mask=lesson.rows.mask,
                position_ids=lesson.rows.positions,
                use_cache=False,
            )
        chosen = self._mixture.probabilities(self.model, seen[self._mixture.router])
        return chosen[lesson.rows.mask.flatten().bool()]

    def drift(self, lesson: Lesson) -> Tensor:
        """|g(x) - onehot(target)|^2, the mean over tokens."""
        chosen = self.routes(lesson)
        aim = torch.zeros_like(chosen)
        aim[:, self._index] = 1
        return (chosen - aim).square().sum(-1).mean()

    @contextmanager
    def untaught(self) -> Iterator[None]:
        """Inside the block expert and router are as they were before this request."""
        self._put(self._first)
        try:
            with torch.no_grad():
                yield
        finally:
            self._put(self._now)

    def _put(self, parameters: Mapping[str, Tensor]) -> None:
        for name, parameter in parameters.items():
            _set(self.model, name, parameter)

    def _only(self, gradient: Tensor) -> Tensor:
        own = torch.zeros_like(gradient)
        own[self._index] = gradient[self._index]
        return own

    @staticmethod
    def _part(parameters: Mapping[str, Tensor], key: str) -> Tensor:
        name, _, index = key.rpartition("/")
        whole = parameters[name].detach()
        return whole if index == "whole" else whole[int(index)]


class ExpertPatch:
    """What changes of experts come to. They are slices of stacked parameters, not linear layers, so
    there is nothing to attach them to: a checkpoint is what holds them."""

    def __init__(self, model: PreTrainedModel, learnt: Sequence[Unlearnt]) -> None:
        self._requests = len(learnt)
        self._differences = differences(model, (each.change for each in learnt))
        self.layers = frozenset(self._differences)

    def open(self, prompts: Sequence[str]) -> Opened:
        """Nothing, where there are no requests.

        Raises:
            CapabilityError: there are.
        """
        if self._differences:
            raise CapabilityError(
                "uoe changes slices of stacked experts, which no linear layer holds, so they cannot"
                " be attached for a turn; export a checkpoint with them merged, and open that"
            )
        return Opened(deltas={})

    def explain(self, prompt: str) -> Mapping[str, Any]:
        """Which parameters would differ."""
        return {"gate": "none", "merged": self._requests, "parameters": sorted(self.layers)}

    def merged(self) -> Mapping[str, Tensor]:
        """Differences by parameter, each of the parameter's own shape."""
        return self._differences


def differences(model: nn.Module, changes: Iterable[Change]) -> dict[str, Tensor]:
    """The sum of what was learnt, by full name of a parameter and of its shape."""
    found: dict[str, Tensor] = {}
    for change in changes:
        for key, tensor in change.tensors.items():
            name, _, index = key.rpartition("/")
            if name not in found:
                found[name] = torch.zeros_like(model.get_parameter(name))
            part = found[name] if index == "whole" else found[name][int(index)]
            part.add_(tensor.to(part.device))
    return found


def _install(model: nn.Module, found: Mapping[str, Tensor]) -> None:
    for name, difference in found.items():
        moved = model.get_parameter(name).detach() + difference
        _set(model, name, nn.Parameter(moved, requires_grad=False))


def _set(model: nn.Module, name: str, parameter: Tensor) -> None:
    module, _, part = name.rpartition(".")
    setattr(model.get_submodule(module), part, parameter)
