"""Turn summaries: slow work, done between turns.

SCM, arXiv 2304.13343, section 2.1: one sentence for each side of an exchange. Knows nothing of
where items or summaries are kept.
"""

from __future__ import annotations

from threading import Event

from langchain_core.messages import HumanMessage

from ...llm.base import LLM, GenerationConfig
from ..record import Record
from . import prompts
from .documents import truncate
from .items import Item, exchange
from .quoting import beyond, quoted

_SHORTEST = 32
"""Tokens below which an item cannot be halved and still say something."""


class Summariser:
    """Writes the summary of an item.

    Args:
        above: tokens of the filled prompt above which an item is worth it.
        longest: most tokens of a summary.
    """

    def __init__(self, llm: LLM, *, above: int, longest: int) -> None:
        self._llm = llm
        self._above = above
        self._longest = longest

    def wanted(self, item: Item) -> bool:
        """Whether the item is long enough."""
        tokens = self._llm.count_tokens(item.raw)
        return (
            tokens >= _SHORTEST
            and self._llm.count_prompt_tokens(self._messages(item, item.raw)) > self._above
        )

    def summarise(self, item: Item, cancel: Event) -> Record | None:
        """A record of kind "summary", shorter than the item; None if cancelled.

        What the model writes is used only if it is shorter. If it is not, the summary is an excerpt
        and `meta["made"]` says "opening", so that the same item is not tried over and over.
        """
        size = self._llm.count_tokens(item.raw)
        limit = min(self._longest, size // 2)
        written = self._write(item, limit, cancel)
        if written is None:
            return None
        text, made = _tidy(item, written, self._excerpt(item.head.text, limit // 4)), "model"
        if not written.strip() or self._llm.count_tokens(text) >= size:
            text, made = self._opening(item, limit), "opening"
        return Record(
            text=text,
            scope=item.head.scope,
            kind="summary",
            role="assistant",
            source="assistant",
            trust=min(item.trust, 0.5),
            parents=tuple(part.id for part in item.parts),
            meta={"made": made},
        )

    def _write(self, item: Item, limit: int, cancel: Event) -> str | None:
        empty = self._llm.count_prompt_tokens(self._messages(item, ""))
        room = max(self._llm.context_window - empty - limit - _SHORTEST, 1)
        text = truncate(item.raw, room, self._llm.count_tokens)
        messages = self._messages(item, text)
        written = []
        for token in self._llm.stream(
            messages, (), GenerationConfig(max_tokens=limit), cancel=cancel
        ):
            if token.finish == "cancelled" or cancel.is_set():
                return None
            written.append(token.text)
        return beyond("".join(written), messages, text)

    def _messages(self, item: Item, text: str) -> list[HumanMessage]:
        prompt = prompts.SUMMARISE_TEXT if item.reply is None else prompts.SUMMARISE_EXCHANGE
        return [HumanMessage(prompt.format(text=quoted(text)))]

    def _opening(self, item: Item, limit: int) -> str:
        if item.reply is None:
            return self._excerpt(item.head.text, limit)
        half = max(limit // 2 - 4, 1)
        return exchange(self._excerpt(item.head.text, half), self._excerpt(item.reply.text, half))

    def _excerpt(self, text: str, limit: int) -> str:
        return truncate(" ".join(text.split()), max(limit, 1), self._llm.count_tokens)


def _tidy(item: Item, written: str, heard: str) -> str:
    """The summary in the form of an exchange; a model that wrote no paragraph for the user's side
    has that side stand as the beginning of what was said, `heard`."""
    if item.reply is None:
        return " ".join(written.split())
    paragraphs = [" ".join(p.split()) for p in written.split("\n\n") if p.strip()]
    plain = [p.removeprefix("User:").removeprefix("Assistant:").strip() for p in paragraphs]
    if len(plain) < 2:
        plain = [heard, *plain]
    return exchange(plain[0], " ".join(plain[1:]))
