"""How a model answers, with a patch or without: what receipts and benches are made of.

Teacher forcing gives the target's tokens and looks whether each is the most likely one; that is how
the field scores edits. What the model says by itself is another matter, and told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..llm.places import Delta
from ..llm.twin import patched
from .base import Answer, Patch
from .rows import Row, Rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 16
"""Prompts that are answered at once."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with the answer it is scored against.

    Args:
        chat: asked as a message, by the chat template, and not as text to be gone on with.
    """

    prompt: str
    target: str
    chat: bool = False


class Prober:
    """Asks a twin questions."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model, self._tokenizer = model, tokenizer

    def row(self, question: Question) -> Row:
        """Ids of the prompt and of the target, which one space joins in plain text."""
        if question.chat:
            return self.asked(question.prompt), self.ids(question.target.strip())
        return self.ids(question.prompt.rstrip()), self.ids(" " + question.target.strip())

    def ids(self, text: str) -> list[int]:
        """Ids of a text alone, without special tokens."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def asked(self, message: str, *, system: str | None = None) -> list[int]:
        """Ids of a chat with one message, up to where the reply begins; by default under the
        template's own system message."""
        talk = [{"role": "system", "content": system}] if system else []
        text = self._tokenizer.apply_chat_template(
            [*talk, {"role": "user", "content": message}],
            tokenize=False,
            add_generation_prompt=True,
        )
        return self.ids(str(text))

    @torch.no_grad()
    def answers(self, questions: Sequence[Question], patch: Patch | None = None) -> list[Answer]:
        """An answer for each question."""
        found: list[Answer] = []
        for part in _parts(questions):
            rows = [self.row(question) for question in part]
            deltas = patch.open([question.prompt for question in part]).deltas if patch else {}
            forced = self._forced(rows, deltas)
            texts = self._said(rows, deltas)
            found += [
                Answer(prompt=question.prompt, logprob=logprob, accuracy=accuracy, text=text)
                for question, (logprob, accuracy), text in zip(part, forced, texts, strict=True)
            ]
        return found

    @torch.no_grad()
    def choices(
        self, questions: Sequence[Question], patch: Patch | None = None
    ) -> list[tuple[int, ...]]:
        """The most likely id at each place of each target, the right ones given before it."""
        found: list[tuple[int, ...]] = []
        for part in _parts(questions):
            rows = Rows.of([self.row(question) for question in part], self._model.device)
            deltas = patch.open([question.prompt for question in part]).deltas if patch else {}
            with patched(self._model, deltas):
                likely = rows.logits(self._model).argmax(-1)
            counted = rows.labels[1]
            found += [tuple(ids[on].tolist()) for ids, on in zip(likely, counted, strict=True)]
        return found

    def _forced(
        self, rows: Sequence[Row], deltas: Mapping[str, Delta]
    ) -> list[tuple[float, float]]:
        """ln P(target | prompt), and the share of its tokens that are the most likely ones."""
        batch = Rows.of(rows, self._model.device)
        labels, counted = batch.labels
        with patched(self._model, deltas):
            logits = batch.logits(self._model).float()
        logprobs = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
        right = (logits.argmax(-1) == labels) & counted
        share = right.sum(1) / counted.sum(1)
        return list(zip((logprobs * counted).sum(1).tolist(), share.tolist(), strict=True))

    def _said(self, rows: Sequence[Row], deltas: Mapping[str, Delta]) -> list[str]:
        """What it says by itself, as many tokens as each target has."""
        batch = Rows.of([(prompt, ()) for prompt, _ in rows], self._model.device)
        ids, mask = batch.ids, batch.mask
        ends = self._ends
        said = []
        cache = None
        position = batch.positions
        with patched(self._model, deltas):
            for _ in range(max(len(target) for _, target in rows)):
                output = self._model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=position,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                cache = output.past_key_values
                ids = output.logits[:, -1].argmax(-1, keepdim=True)
                said.append(ids)
                mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
                position = position[:, -1:] + 1
        replies = torch.cat(said, dim=1).tolist()
        return [
            self._text(reply[: len(target)], ends)
            for reply, (_, target) in zip(replies, rows, strict=True)
        ]

    def _text(self, ids: Sequence[int], ends: frozenset[int]) -> str:
        cut = next((at for at, id in enumerate(ids) if id in ends), len(ids))
        return str(self._tokenizer.decode(list(ids[:cut]))).strip()

    @property
    def _ends(self) -> frozenset[int]:
        return frozenset(self._tokenizer.all_special_ids)


def _parts(questions: Sequence[Question]) -> list[Sequence[Question]]:
    return [questions[at : at + BATCH] for at in range(0, len(questions), BATCH)]
