"""What every method works with: a twin of the model, its tokenizer, and what is computed once.

One thread works at one bench; the model it was made from goes on serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import EditFailed
from ..llm.fingerprint import fingerprint
from ..llm.twin import blocks, down_projection, from_block, inputs_of, matrix, twin, up_to_block
from ..memory.gates.features import PromptFeatures, background
from ..memory.gates.layers import LayerFeatures
from .measuring import Prober
from .rows import Rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .base import Edit

AROUND = 96
"""Tokens that contexts, or a chat template, may put around a prompt."""


@dataclass(frozen=True, slots=True)
class Captured:
    """What a forward pass of some rows without any patch brought at one layer.

    Args:
        hidden: [N, T, D], what the layer was given.
        inputs: [N, T, D_ff], what its down-projection was given.
    """

    rows: Rows
    hidden: Tensor
    inputs: Tensor


class Workbench:
    """See the module.

    Args:
        folder: for what is computed once per model, such as covariances.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
    ) -> None:
        self.model = twin(model)
        self.tokenizer = tokenizer
        self.folder = folder
        self.prober = Prober(self.model, tokenizer)
        self.features = PromptFeatures(
            self.model, tokenizer, kept=folder / f"features-{self.fingerprint[:16]}.safetensors"
        )

    @cached_property
    def layers(self) -> LayerFeatures:
        """What a prompt looks like at several layers, for gates that know whole sets of prompts."""
        kept = self.folder / f"layers-{self.fingerprint[:16]}.safetensors"
        return LayerFeatures(self.model, self.tokenizer, kept=kept)

    def second(self) -> Workbench:
        """Another bench for another thread, which shares what was computed."""
        other = Workbench(self.model, self.tokenizer, self.folder)
        other.features = self.features.with_model(other.model)
        return other

    @cached_property
    def fingerprint(self) -> str:
        """Which model it is."""
        return fingerprint(self.model)

    @property
    def depth(self) -> int:
        """How many layers the model has."""
        return len(blocks(self.model)[1])

    def layer(self, share: float) -> int:
        """The layer at that share of the depth: 0 is the first, 1 the last."""
        return round(share * (self.depth - 1))

    def down(self, layer: int) -> str:
        """Name of a layer's down-projection; see `down_projection`."""
        return down_projection(self.model, layer)

    def weight(self, name: str) -> Tensor:
        """[D_out, D_in] of a named linear layer; not to be written to."""
        return matrix(self.model.get_submodule(name)).detach()

    def contexts(self, count: int, words: int = 10) -> list[str]:
        """Beginnings to put before a prompt, so that an edit holds in company (WISE, section 4)."""
        return [" ".join(text.split()[:words]) for text in background()[:count]]

    def check(self, edits: Sequence[Edit]) -> None:
        """That edits fit the model's window, with what is put before them in training.

        Raises:
            EditFailed: one does not.
        """
        config = self.model.config.get_text_config(decoder=True)
        window = getattr(config, "max_position_embeddings", None) or 10**9
        for edit in edits:
            asked = [(ask, edit.target, AROUND) for ask in (edit.prompt, *edit.paraphrases)]
            for prompt, answer, around in (*asked, *((*pair, 0) for pair in edit.locality)):
                ids = len(self.prober.ids(f"{prompt} {answer}"))
                if ids + around > window:
                    raise EditFailed(
                        f"prompt={prompt[:40]!r} with its answer {answer[:40]!r} has {ids:,}"
                        f" tokens, and the model's window holds {window:,}, of which {around} are"
                        " left for what stands around them; shorten them",
                        edit=edit,
                    )

    def lessons(self, edit: Edit, prompts: Sequence[str]) -> list[Rows]:
        """Each prompt followed by the edit's target; and, in a batch of its own since a template is
        long, the edit's own prompt as a message, whose reply ends behind the target: by itself, and
        with a system message and a line before it, so that it holds whatever an agent says there.
        """
        prober, device = self.prober, self.model.device
        target = prober.ids(" " + edit.target.strip())
        batches = [Rows.of([(prober.ids(prompt.rstrip()), target) for prompt in prompts], device)]
        if self.tokenizer.chat_template:
            end = self.tokenizer.eos_token_id
            reply = [*prober.ids(edit.target.strip()), *([end] if isinstance(end, int) else [])]
            system, line = self.contexts(3, words=14)[1:]
            asked = [
                prober.asked(edit.prompt),
                prober.asked(f"{line}\n\n{edit.prompt}", system=system),
            ]
            batches.append(Rows.of([(prompt, reply) for prompt in asked], device))
        return batches

    @torch.no_grad()
    def capture(self, rows: Rows, layer: int) -> Captured:
        """Read rows once, up to the layer at which they will be changed."""
        name = self.down(layer)
        block = f"{blocks(self.model)[0]}.{layer}"
        with up_to_block(self.model, layer), inputs_of(self.model, block, name) as seen:
            self.model.base_model(
                input_ids=rows.ids,
                attention_mask=rows.mask,
                position_ids=rows.positions,
                use_cache=False,
            )
        return Captured(rows, seen[block], seen[name])

    def losses(self, told: Sequence[Captured], layer: int) -> Tensor:
        """[N]: -ln P(target | prompt) of all rows, the mean over a row's target tokens; only what
        lies above the layer is run."""
        found = []
        for captured in told:
            with self.above(captured, layer):
                found.append(captured.rows.losses(self.model))
        return torch.cat(found)

    @contextmanager
    def above(self, captured: Captured, layer: int) -> Iterator[None]:
        """Inside the block, a forward pass of those rows runs only from the layer upwards."""
        with from_block(self.model, layer, captured.hidden):
            yield
