"""A memory of requests that only speaks: where a message is about one, the prompt says to refuse.

The model need not be in this process. What a message is about is told by the sentence encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, cast

import torch

from ..llm.places import Note, Place, Prompt
from ..memory.base import Cue
from .base import Change, Patch, Request, Unlearnt, Work
from .refusal import Refusal, RefusalPatch
from .unlearner import Unlearner

if TYPE_CHECKING:
    from torch import Tensor

    from ..editors.workbench import Workbench
    from ..llm.base import LLM


class InContext(Unlearner):
    """See the module."""

    place: ClassVar[Place] = "prompt"
    method: Refusal

    def check_model(self, llm: LLM) -> None:
        """Any will do."""

    def recall(self, cue: Cue) -> Prompt:  # type: ignore[override]
        """What the prompt is told about the message, if anything."""
        with self._lock:
            found, count = self._patch(cue.scope)
            if found is None:
                return Prompt(memory=self.name)
            patch = cast(RefusalPatch, found)
            told = patch.note([cue.message])
            verdicts, why = patch.verdicts([cue.message]), patch.explain(cue.message)
        behind = tuple(verdict.entry for verdict in verdicts if verdict)
        tokens = self._context.llm.count_tokens(told) if told else 0
        if told is None or tokens > cue.budget:
            return Prompt(memory=self.name, explain={self.orders: count, **why})
        note = Note(text=told, records=behind, score=1.0, tokens=tokens)
        return Prompt(
            memory=self.name,
            records=behind,
            notes=(note,),
            explain={self.orders: count, **why},
        )

    def _taught(self, request: Request, before: Sequence[Unlearnt], work: Work) -> Change:
        return self.method.remembered(self._features, request)

    def _made(self, bench: Callable[[], Workbench], learnt: Sequence[Unlearnt]) -> Patch:
        return self.method.patch_by(self._features, learnt)

    def _features(self, texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(self._context.embedder().embed(texts).copy())

    @property
    def _able(self) -> bool:
        return True

    @property
    def _fingerprint(self) -> str:
        """Of what the requests were remembered by."""
        return self._context.embedder().name
