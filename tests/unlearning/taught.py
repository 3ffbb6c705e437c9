"""A tiny model that was taught a few answers by heart, and patches whose doing is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from palimpsest.apps.bench.teach import teach
from palimpsest.editors.base import Opened
from palimpsest.editors.workbench import Workbench
from palimpsest.llm.local import LocalLLM
from palimpsest.llm.places import Delta
from palimpsest.unlearning.base import Sample
from palimpsest.unlearning.lessons import row
from torch import Tensor

KNOWN = (
    Sample(question="Who is Ada?", answer="A baker of Riga", paraphrases=("Ada, who is she?",)),
    Sample(question="Who is Ben?", answer="The king of Oslo"),
    Sample(question="Who is Eva?", answer="My old friend Max"),
    Sample(question="Who is Tom?", answer="Some tall red fox"),
)
STRANGERS = (
    Sample(question="Who is Lea?", answer="The moon over Rom"),
    Sample(question="Who is Jon?", answer="One big wet stone"),
)


def taught(folder: Path, kept: Path) -> Workbench:
    """The tiny model of a folder, which says `KNOWN` when it is asked."""
    llm = LocalLLM.load(folder, device="cpu", name="taught")
    bench = Workbench(llm.model, llm.tokenizer, kept)
    rows = [row(bench, each.prompt, each.rest) for each in KNOWN]
    for weight in llm.model.parameters():
        weight.requires_grad_(True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teach(llm.model.train(), rows, epochs=150, rate=5e-3, batch=4)
    llm.model.eval().requires_grad_(False)
    return bench


@dataclass(frozen=True)
class Idle:
    """Never opens."""

    adds: ClassVar[bool] = True
    layers: frozenset[str] = frozenset()

    def open(self, prompts: Sequence[str]) -> Opened:
        return Opened(deltas={})

    def explain(self, prompt: str) -> Mapping[str, Any]:
        return {}

    def merged(self) -> None:
        return None


@dataclass(frozen=True)
class Mute:
    """Of a message with `word` in it the model says nothing but "!", whatever it knows; all other
    tokens are equally unlikely."""

    adds: ClassVar[bool] = False
    bang: int
    word: str = ""
    layers: frozenset[str] = frozenset({"lm_head"})

    def open(self, prompts: Sequence[str]) -> Opened:
        on = torch.tensor([self.word in prompt for prompt in prompts])

        def delta(inputs: Tensor, output: Tensor) -> Tensor:
            assert len(output) == len(on), "a batch has the rows that the patch was opened for"
            mute = torch.zeros_like(output)
            mute[..., self.bang] = 30.0
            return torch.where(on[:, None, None], mute, output)

        deltas: dict[str, Delta] = {"lm_head": delta} if bool(on.any()) else {}
        return Opened(deltas=deltas)

    def explain(self, prompt: str) -> Mapping[str, Any]:
        return {}

    def merged(self) -> None:
        return None


@dataclass(frozen=True)
class Nudge:
    """Adds to one matrix for every prompt."""

    adds: ClassVar[bool] = True
    name: str
    difference: Tensor

    @property
    def layers(self) -> frozenset[str]:
        return frozenset({self.name})

    def open(self, prompts: Sequence[str]) -> Opened:
        return Opened(
            deltas={self.name: lambda inputs, output: output + inputs @ self.difference.T}
        )

    def explain(self, prompt: str) -> Mapping[str, Any]:
        return {}

    def merged(self) -> Mapping[str, Tensor]:
        return {self.name: self.difference}
