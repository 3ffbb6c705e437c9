"""Asks a twin what measures and attacks need to know, with a patch or without.

A prompt is read once: its answers are scored, and its reply generated, from the same cache. Gates
decide by the bare message, whatever template stands around it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any

import torch

from ..editors.measuring import Prober
from ..editors.rows import Rows
from ..errors import Cancelled
from ..llm.twin import patched
from .base import Noting
from .measures import exact_memorisation, extraction_strength, mean_nll, min_k, probability

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..editors.base import Patch

BATCH = 16
"""Prompts that are asked at once."""

LONGEST = 256
"""Tokens of an answer that are scored; of a longer one its beginning."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked.

    Args:
        message: what a gate sees; the user's message where the tokenizer has a chat template.
        answers: texts whose tokens are scored as the reply, `LONGEST` at most.
        begun: how the reply begins, given by whoever asks.
        plain: it is a text to be gone on with, although there may be a template.
    """

    message: str
    answers: tuple[str, ...] = ()
    begun: str = ""
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Scored:
    """An answer under teacher forcing, each list over its tokens.

    Args:
        logprobs: ln p of each, in nats.
        standardised: (ln p - μ)/σ, with mean and deviation of ln p over the vocabulary; Min-K %++.
        right: whether it is the most likely one.
    """

    logprobs: tuple[float, ...]
    standardised: tuple[float, ...]
    right: tuple[bool, ...]

    @property
    def nll(self) -> float:
        """Mean nats of a token."""
        return mean_nll(self.logprobs)

    @property
    def probability(self) -> float:
        """p(a|q)^{1/|a|}."""
        return probability(self.logprobs)

    @property
    def strength(self) -> float:
        """Extraction strength."""
        return extraction_strength(self.right)

    @property
    def memorised(self) -> float:
        """Share of tokens that are the most likely ones."""
        return exact_memorisation(self.right)

    @property
    def min_k_plus_plus(self) -> float:
        """Min-K %++ with k = 20."""
        return min_k(self.standardised)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one question: its answers scored, and what the model says by itself."""

    answers: tuple[Scored, ...]
    text: str


@dataclass(frozen=True, slots=True)
class _Read:
    """A batch of prompts, read. `last` [N, V]: logits that predict the first token of a reply."""

    mask: Tensor
    length: Tensor
    last: Tensor
    cache: Any


class Examiner:
    """See the module.

    Args:
        model: a twin, used by nobody else at the same time.
        cancel: set from another thread, it ends the work.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        cancel: Event | None = None,
    ) -> None:
        self._model, self._prober = model, Prober(model, tokenizer)
        self._tokenizer, self._cancel = tokenizer, cancel or Event()

    @torch.no_grad()
    def ask(self, asks: Sequence[Ask], patch: Patch | None = None, tokens: int = 0) -> list[Reply]:
        """A reply to each, in order.

        Args:
            tokens: how many the model may say by itself, greedily; with 0 texts are empty.

        Raises:
            Cancelled: the event was set.
        """
        prompts = [self._prompt(ask, patch) for ask in asks]
        order = sorted(range(len(asks)), key=lambda at: len(prompts[at]))
        replies: dict[int, Reply] = {}
        for begin in range(0, len(order), BATCH):
            part = order[begin : begin + BATCH]
            opened = patch.open([asks[at].message for at in part]).deltas if patch else {}
            with patched(self._model, opened):
                read = self._read([prompts[at] for at in part])
                scored = self._scored(read, [self._answers(asks[at]) for at in part])
                texts = self._said(read, tokens)
            replies |= {
                at: Reply(tuple(answers), text)
                for at, answers, text in zip(part, scored, texts, strict=True)
            }
        return [replies[at] for at in range(len(asks))]

    @torch.no_grad()
    def logits(self, messages: Sequence[str], patch: Patch | None = None) -> Tensor:
        """[N, V]: what predicts the first token of the reply to each message."""
        found = []
        for begin in range(0, len(messages), BATCH):
            part = messages[begin : begin + BATCH]
            deltas = patch.open(part).deltas if patch else {}
            with patched(self._model, deltas):
                read = self._read([self._prompt(Ask(each), patch) for each in part])
            found.append(read.last.clone())
        return torch.cat(found)

    def _chat(self, ask: Ask) -> bool:
        return bool(self._tokenizer.chat_template) and not ask.plain

    def _prompt(self, ask: Ask, patch: Patch | None) -> list[int]:
        chat, ids = self._chat(ask), self._prober.ids
        note = patch.note([ask.message]) if isinstance(patch, Noting) else None
        message = f"{note}\n\n{ask.message}" if note else ask.message
        asked = self._prober.asked(message) if chat else ids(message.rstrip())
        begun = ask.begun.strip()
        return [*asked, *ids(begun if chat else f" {begun}")] if begun else asked

    def _answers(self, ask: Ask) -> list[list[int]]:
        space = "" if self._chat(ask) and not ask.begun else " "
        return [self._prober.ids(space + answer.strip())[:LONGEST] for answer in ask.answers]

    def _step(self, **given: Any) -> Any:
        if self._cancel.is_set():
            raise Cancelled("the questions were cancelled")
        return self._model(use_cache=True, **given)

    def _read(self, prompts: Sequence[Sequence[int]]) -> _Read:
        batch = Rows.of([(prompt, ()) for prompt in prompts], self._model.device)
        output = self._step(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            logits_to_keep=1,
        )
        return _Read(batch.mask, batch.mask.sum(1), output.logits[:, -1], output.past_key_values)

    def _scored(
        self, read: _Read, answers: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[Scored]]:
        """The first answer of all prompts at once, then the second: so the rows of a batch stay
        those that the patch was opened for."""
        found: list[list[Scored]] = [[] for _ in answers]
        for turn in range(max(map(len, answers))):
            rows = [list(each[turn]) if turn < len(each) else [] for each in answers]
            logits = self._forced(read, rows)
            for at, ids in enumerate(rows):
                if ids:
                    found[at].append(_score(logits[at, : len(ids)], ids))
        return found

    def _forced(self, read: _Read, rows: Sequence[Sequence[int]]) -> Tensor:
        """[N, T, V]: what predicts each token of each row."""
        longest = max(map(len, rows))
        first = read.last[:, None]
        if longest == 1:
            return first
        # The last token predicts nothing that counts, so it is not read.
        ids = torch.zeros(len(rows), longest - 1, dtype=torch.long)
        for at, row in enumerate(rows):
            told = row[:-1]
            ids[at, : len(told)] = torch.tensor(told, dtype=torch.long)
        ids = ids.to(read.mask.device)
        output = self._step(
            input_ids=ids,
            attention_mask=torch.cat([read.mask, torch.ones_like(ids)], dim=1),
            position_ids=read.length[:, None] + torch.arange(longest - 1, device=ids.device),
            past_key_values=copy.deepcopy(read.cache),
        )
        return torch.cat([first, output.logits], dim=1)

    def _said(self, read: _Read, tokens: int) -> list[str]:
        """Greedy replies; ends when all have ended. Uses up the cache."""
        if not tokens:
            return [""] * len(read.last)
        ends = torch.tensor(sorted(self._tokenizer.all_special_ids), device=read.last.device)
        mask, position, cache = read.mask, read.length, read.cache
        said = [read.last.argmax(-1)]
        ended = torch.isin(said[0], ends)
        while len(said) < tokens and not bool(ended.all()):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            output = self._step(
                input_ids=said[-1][:, None],
                attention_mask=mask,
                position_ids=position[:, None],
                past_key_values=cache,
            )
            cache, position = output.past_key_values, position + 1
            said.append(output.logits[:, -1].argmax(-1))
            ended |= torch.isin(said[-1], ends)
        stop = set(ends.tolist())
        return [self._text(row, stop) for row in torch.stack(said, dim=1).tolist()]

    def _text(self, ids: Sequence[int], stop: set[int]) -> str:
        cut = next((at for at, id in enumerate(ids) if id in stop), len(ids))
        return str(self._tokenizer.decode(list(ids[:cut]))).strip()


def _score(logits: Tensor, ids: Sequence[int]) -> Scored:
    """Of one answer; logits [T, V]."""
    logs = logits.float().log_softmax(-1)
    labels = torch.tensor(list(ids), device=logs.device)
    likely = logs.exp()
    # A token of probability 0 adds nothing to a mean, and 0 · -inf is no number.
    finite = logs.clamp(min=-1e4)
    mean = (likely * finite).sum(-1)
    spread = (likely * (finite - mean[:, None]).square()).sum(-1).sqrt()
    chosen = finite.gather(-1, labels[:, None])[:, 0]
    standardised = (chosen - mean) / spread.clamp(min=1e-6)
    right = logs.argmax(-1) == labels
    return Scored(tuple(chosen.tolist()), tuple(standardised.tolist()), tuple(right.tolist()))
