"""A model driven by a plain function: the double that our tests use and users may use in theirs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from threading import Event
from typing import TYPE_CHECKING

from ..errors import CapabilityError, ContextOverflow
from .base import Capability, GenerationConfig, Token
from .places import Contribution, Place, check_place

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langchain_core.tools import BaseTool

_WORD = re.compile(r"\s*\S+|\s+")


class ScriptedLLM:
    """Replies with `script(messages)`, one word a token.

    Args:
        script: from the whole prompt to the reply.
        score: from (prompt, continuation) to a log-probability; without it there are none.
        context_window: in words.

    `prompts` keeps every prompt it was given, in order.
    """

    places: frozenset[Place] = frozenset({"prompt"})

    def __init__(
        self,
        script: Callable[[Sequence[BaseMessage]], str],
        *,
        score: Callable[[Sequence[BaseMessage], str], float] | None = None,
        context_window: int = 8192,
        name: str = "scripted",
    ) -> None:
        self.name = name
        self.context_window = context_window
        self.capabilities: frozenset[Capability] = frozenset({"logprobs"} if score else ())
        self.prompts: list[list[BaseMessage]] = []
        self._script = script
        self._score = score

    def count_tokens(self, text: str) -> int:
        """Words of `text`."""
        return len(_WORD.findall(text))

    def count_prompt_tokens(
        self, messages: Sequence[BaseMessage], tools: Sequence[BaseTool] = ()
    ) -> int:
        """Words of all messages, and four for each message's frame."""
        return sum(self.count_tokens(str(m.content)) + 4 for m in messages)

    def stream(
        self,
        messages: Sequence[BaseMessage],
        contributions: Sequence[Contribution] = (),
        config: GenerationConfig = GenerationConfig(),
        *,
        tools: Sequence[BaseTool] = (),
        cancel: Event | None = None,
    ) -> Iterator[Token]:
        """Yield the script's reply word by word, cut by `max_tokens` and by stop strings."""
        for contribution in contributions:
            check_place(contribution.memory, contribution.place, self.name, self.places)
        used = self.count_prompt_tokens(messages)
        if used >= self.context_window:
            raise ContextOverflow(
                f"the prompt has {used} tokens and the window {self.context_window}; shorten it"
            )
        self.prompts.append(list(messages))
        reply = self._script(messages)
        for stop in config.stop:
            reply = reply.split(stop)[0]
        words = _WORD.findall(reply)
        for index, word in enumerate(words[: config.max_tokens]):
            if cancel is not None and cancel.is_set():
                yield Token("", finish="cancelled")
                return
            yield Token(word, id=index)
        yield Token("", finish="length" if len(words) > config.max_tokens else "stop")

    def logprobs(
        self, messages: Sequence[BaseMessage], continuations: Sequence[str]
    ) -> list[float]:
        """`score` of each continuation."""
        if self._score is None:
            raise CapabilityError(
                "ScriptedLLM has no log-probabilities; pass score= to give it some"
            )
        return [self._score(messages, text) for text in continuations]
