"""Quizzes put to a model whose cache may not hold them: as tokens, read turn by turn, and answered.

A model of this size cannot pick a letter, so an answer is the option whose tokens, said after the
cue, have the highest mean log-probability (a cloze). Options are read on forks of the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import torch

from ...memory.retention import RetentionCache, open_policy, read, score
from ...memory.retention.base import RetentionPolicy
from .quizzes import Quiz, Turn

if TYPE_CHECKING:
    from torch import Tensor

    from ...llm.local import LocalLLM

Key = TypeVar("Key")


class Script:
    """A quiz in a model's chat template, tokenised turn by turn.

    Attributes:
        turns: int64 [1, T] each.
        question: int64 [1, T], from the question to the end of the cue.
        alone: the same as if nothing had been said before it.
        options: int64 [1, T] each.
        facts: by name, the positions of the tokens that hold it.
    """

    def __init__(self, llm: LocalLLM, quiz: Quiz) -> None:
        self.quiz = quiz
        self._tokenizer = llm.tokenizer
        pieces = chat_pieces(llm, quiz.turns)
        self.turns = [self._ids(text) for text in pieces]
        self.question = self._ids(asking(llm, quiz.turns, quiz.question) + quiz.cue)
        self.alone = self._ids(asking(llm, (), quiz.question) + quiz.cue)
        self.options = [self._ids(text) for text in quiz.options]
        starts = [sum(turn.shape[1] for turn in self.turns[:n]) for n in range(len(pieces))]
        self.facts = {
            name: [starts[at] + n for n in self._places(pieces[at], words)]
            for name, (at, words) in quiz.facts.items()
        }

    @cached_property
    def length(self) -> int:
        """Tokens of the conversation, question included."""
        return sum(turn.shape[1] for turn in self.turns) + self.question.shape[1]

    def _ids(self, text: str) -> Tensor:
        return torch.tensor([self._tokenizer(text, add_special_tokens=False)["input_ids"]])

    def _places(self, text: str, words: str) -> list[int]:
        """The tokens of a text that the words lie in."""
        start = text.index(words)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = encoded["offset_mapping"]
        return [n for n, (a, b) in enumerate(spans) if a < start + len(words) and b > start]


def chat_pieces(llm: LocalLLM, turns: Sequence[Turn]) -> list[str]:
    """The text that each turn adds to the chat."""
    texts = [""] + [_templated(llm, turns[: n + 1]) for n in range(len(turns))]
    return [after[len(before) :] for before, after in pairwise(texts)]


def asking(llm: LocalLLM, turns: Sequence[Turn], question: str) -> str:
    """The text that a question adds, to where the reply begins."""
    before = _templated(llm, turns) if turns else ""
    return _templated(llm, turns, question)[len(before) :]


def _templated(llm: LocalLLM, turns: Sequence[Turn], question: str | None = None) -> str:
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    if question is not None:
        messages.append({"role": "user", "content": question})
    text = llm.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=question is not None
    )
    return str(text)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a quiz under a policy.

    Args:
        logprobs: mean ln P of each option's tokens.
        kept: by fact, the share of its tokens that were still there when it was asked for.
    """

    logprobs: tuple[float, ...]
    kept: dict[str, float]


def answered(
    llm: LocalLLM, script: Script, policies: Mapping[Key, RetentionPolicy]
) -> dict[Key, Answer]:
    """A quiz under each policy. What they would all keep is read once: each goes on from a fork of
    it, at the last turn before its first eviction. A policy whose scores are others reads alone."""
    shared = RetentionCache(llm.model, open_policy("sirllm", budget=script.length + 256))
    sharing = {name: p for name, p in policies.items() if p.scores in (None, "surprisal")}
    caches = {
        name: (RetentionCache(llm.model, policy), 0)
        for name, policy in policies.items()
        if name not in sharing
    }
    for number, turn in enumerate(script.turns):
        for name, policy in list(sharing.items()):
            if policy.budget is not None and shared.seen + turn.shape[1] > policy.budget:
                caches[name] = (shared.fork(policy=policy), number)
                del sharing[name]
        if not sharing:
            break
        read_turn(llm, shared, turn)
    caches |= {
        name: (shared.fork(policy=policy), len(script.turns)) for name, policy in sharing.items()
    }
    return {name: _answer(llm, script, *caches[name]) for name in policies}


def read_turn(llm: LocalLLM, cache: RetentionCache, turn: Tensor) -> Tensor:
    """A turn begins and is read; logits [1, V] after it."""
    cache.begin_turn()
    logits = read(llm.model, cache, turn)
    assert logits is not None  # nobody cancels it
    return logits


def _answer(llm: LocalLLM, script: Script, cache: RetentionCache, at: int) -> Answer:
    for turn in script.turns[at:]:
        read_turn(llm, cache, turn)
    there = set(cache.tokens.position[0].tolist())
    kept = {name: sum(n in there for n in at) / len(at) for name, at in script.facts.items()}
    return Answer(_options(llm, cache, script.question, script.options), kept)


def prior(llm: LocalLLM, script: Script) -> tuple[float, ...]:
    """Mean ln P of each option where nothing was said before the question."""
    cache = RetentionCache(llm.model, open_policy("full"))
    return _options(llm, cache, script.alone, script.options)


def _options(
    llm: LocalLLM, cache: RetentionCache, question: Tensor, options: Sequence[Tensor]
) -> tuple[float, ...]:
    """Mean ln P of each option after a question."""
    cache.begin_turn()
    read(llm.model, cache, question[:, :-1])
    cue = question[:, -1:]
    return tuple(
        -float(score(llm.model, cache.fork(), torch.cat([cue, option], dim=1)).mean())
        for option in options
    )
