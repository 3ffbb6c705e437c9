"""SCM's reader of ultra-long documents: blocks, a summary of each, and a tree of merged summaries.

Knows nothing of the ledger: sections are yielded as they are made, and taken back by their keys.
Source: Self-Controlled Memory (arXiv 2304.13343), final code, "ultra-long document summarisation".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from threading import Event
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import ConfigError
from ...llm.base import LLM, GenerationConfig
from ..reading import Made, Progress, Section
from ..record import content_hash
from ..words import words
from .documents import MIN_LIMIT, Block, split, truncate, whole
from .limits import SLACK, TreeConfig
from .quoting import beyond, merge_prompt, section_prompt, theme_prompt

if TYPE_CHECKING:
    import numpy as np
    from langchain_core.messages import BaseMessage
    from numpy.typing import NDArray

    from ..vectors import Embedder

_THEME_CHARACTERS, _THEME_TOKENS = 100, 32
_ENOUGH, _AMPLE, _KEPT = 100, 1800, 1200
"""Where a theme is taken from (SCM, final code): the first utterance if it has 100 characters, or
as many utterances as have 1800 together, cut to 1200."""


@dataclass(frozen=True, slots=True)
class _Draft:
    """A section still to be written: where it stands, the prompt, and what to fall back on."""

    start: int
    end: int
    messages: list[BaseMessage]
    limit: int
    source: str
    depth: int = 0
    index: int = 0
    children: tuple[str, ...] = ()
    root: bool = False


class _Cancelled(Exception):
    """The caller asked to stop."""


class TreeReader:
    """Reads a document of any length within a fixed context.

    Args:
        llm: the model that summarises.
        config: defaults to the default limits, scaled down for a window below 1024 tokens.
        embedder: opens the embedder; called only for `activate`.

    Raises:
        ConfigError: the limits do not fit together, or not into the model's window.
    """

    Config: ClassVar[type[TreeConfig]] = TreeConfig

    def __init__(
        self,
        llm: LLM,
        config: TreeConfig | None = None,
        *,
        embedder: Callable[[], Embedder] | None = None,
    ) -> None:
        self.llm = llm
        self.config = config or TreeConfig.scaled(min(1024, llm.context_window))
        self._embedder = embedder
        if self.config.context > llm.context_window:
            raise ConfigError(
                f"context={self.config.context} must be within the window of model {llm.name!r},"
                f" {llm.context_window}; use TreeConfig.scaled({llm.context_window})"
            )
        if self.config.activate and embedder is None:
            raise ConfigError(f"activate={self.config.activate} needs an embedder; pass embedder=")
        self._room(None)

    def read(
        self,
        text: str | Iterable[str],
        *,
        topic: str | None = None,
        done: Mapping[str, str] | None = None,
        progress: Progress | None = None,
        cancel: Event | None = None,
    ) -> Iterator[Section]:
        """Yield each section as soon as it is made, the summary of everything (`root`) last.

        Every level has at most 1/r as many sections as the one below, rounded up, with r >= 2 the
        longest summaries that a group holds. So a reading ends at depth <= ceil(log_r(blocks)),
        whatever the model says. A section left over at the end of a level joins the next one.

        Args:
            text: the whole text, or its pieces in order. One without text yields nothing.
            topic: the question or theme that all summaries are to serve.
            done: texts by key of the sections of an earlier reading; the model is not asked again
                for these, and they are yielded with `made="before"`.
            progress: called after each section.
            cancel: when set, the reading stops before its next section, without a root.

        Raises:
            ConfigError: the topic leaves too little room.
            InputError: the text has NUL bytes or lone surrogates.
            ModelError: from the model; what was yielded stays good, and `done` goes on from it.
        """
        topic = " ".join(topic.split()) if topic else None
        room = self._room(topic)
        blocks = list(split(text, self.config.block, self.llm.count_tokens))
        expected = len(blocks) + self._merges(len(blocks))
        write = partial(self._write, done or {}, cancel)
        try:
            for made, section in enumerate(self._sections(blocks, topic, room, write), start=1):
                yield section
                if progress:
                    progress(made, made if section.root else expected)
        except _Cancelled:
            return

    def theme(self, text: str) -> str:
        """A topic for `read`, named by the model from the first utterances (lines) of `text`; at
        most 100 characters, and "" where there is no text or the model says nothing."""
        opening, enough = "", _ENOUGH
        for line in text.lstrip()[: 2 * _AMPLE].splitlines():
            opening += line.strip() + "\n"
            if len(opening) > enough:
                break
            enough = _AMPLE
        opening = truncate(opening[:_KEPT], self.config.block, self.llm.count_tokens)
        if not opening:
            return ""
        reply, _ = self._ask(theme_prompt(opening), _THEME_TOKENS, None, opening)
        return reply.partition("\n")[0].strip(" \t\"'.*#")[:_THEME_CHARACTERS]

    def _sections(
        self,
        blocks: Sequence[Block],
        topic: str | None,
        room: int,
        write: Callable[[_Draft], Section],
    ) -> Iterator[Section]:
        level: list[Section] = []
        nearest = _Nearest(self._embedder, self.config.activate)
        for block in blocks:
            background = [*level[-1:], *nearest.to(block.text, level[:-1])]
            draft = self._block(block, background if self.config.with_context else [], topic)
            level.append(write(replace(draft, index=block.index, root=len(blocks) == 1)))
            yield level[-1]
        depth = 0
        while len(level) > 1:
            depth += 1
            groups, level = self._groups(level), []
            for group in groups:
                if len(group) == 1:
                    level += group
                    continue
                draft = self._merge(group, topic, room, root=len(groups) == 1)
                level.append(write(replace(draft, depth=depth, index=len(level))))
                yield level[-1]

    def _block(self, block: Block, background: Sequence[Section], topic: str | None) -> _Draft:
        """The draft of a block's summary, with as much background as the context has room for."""
        limit = self.config.summary
        draft = _Draft(block.start, block.end, [], limit, block.text)
        if block.tokens <= limit:  # says all it has to say already
            return draft
        ask = partial(
            section_prompt, block.text, words=_words(limit, block.text, block.tokens), topic=topic
        )
        shown: list[Section] = []
        for section in background:
            more = sorted([*shown, section], key=lambda s: s.start)
            messages = ask(background=[s.text for s in more])
            if self.llm.count_prompt_tokens(messages) + limit <= self.config.context:
                shown = more
        return replace(draft, messages=ask(background=[s.text for s in shown]))

    def _merge(self, group: list[Section], topic: str | None, room: int, *, root: bool) -> _Draft:
        """The draft that merges a group into min(room - max(tokens, group), cap) tokens (SCM)."""
        source = "\n\n".join(section.text for section in group)
        tokens = self.llm.count_tokens(source)
        cap = self.config.cap * 3 // 2 if root else self.config.cap
        limit = max(1, min(room - max(tokens, self.config.group), cap, tokens - 1))
        messages = merge_prompt(source, words=_words(limit, source, tokens), topic=topic)
        children = tuple(section.key for section in group)
        span = group[0].start, group[-1].end
        return _Draft(*span, messages, limit, source, children=children, root=root)

    def _groups(self, level: Sequence[Section]) -> list[list[Section]]:
        """Consecutive sections, packed greedily into groups of at most `group` tokens."""
        groups: list[list[Section]] = []
        joined = ""
        for section in level:
            joined = f"{joined}\n\n{section.text}"
            if groups and self.llm.count_tokens(joined) <= self.config.group:
                groups[-1].append(section)
            else:
                groups.append([section])
                joined = section.text
        return groups

    def _write(self, done: Mapping[str, str], cancel: Event | None, draft: _Draft) -> Section:
        if cancel and cancel.is_set():
            raise _Cancelled
        inputs: list[Any] = [self.llm.name, self.config.repetition_penalty, draft.limit]
        inputs += [draft.depth, draft.index, draft.start, draft.end, draft.source]
        inputs += [[message.type, message.content] for message in draft.messages]
        key = content_hash(json.dumps(inputs))
        count = self.llm.count_tokens
        text, prompt = draft.source, 0
        made: Made = "raw"
        if key in done:
            text, made = truncate(done[key], draft.limit, count), "before"
        elif draft.messages:
            prompt = self.llm.count_prompt_tokens(draft.messages) + draft.limit
            text, made = self._ask(draft.messages, draft.limit, cancel, draft.source)
        if not text:
            text, made = truncate(draft.source, draft.limit, count), "opening"
        return Section(
            key=key,
            depth=draft.depth,
            index=draft.index,
            start=draft.start,
            end=draft.end,
            text=text,
            tokens=count(text),
            made=made,
            prompt=prompt,
            children=draft.children,
            root=draft.root,
        )

    def _ask(
        self,
        messages: list[BaseMessage],
        limit: int,
        cancel: Event | None,
        source: str,
    ) -> tuple[str, Made]:
        """The model's reply within `limit` tokens, ended with a sentence or at least a word, and
        without repetitions of itself or of the prompt around `source`."""
        config = GenerationConfig(
            max_tokens=limit, repetition_penalty=self.config.repetition_penalty
        )
        tokens = list(self.llm.stream(messages, (), config, cancel=cancel))
        finish = tokens[-1].finish if tokens else "stop"
        if finish == "cancelled":
            raise _Cancelled
        reply = "".join(token.text for token in tokens).strip()
        ended = whole(reply) if finish == "length" else reply
        kept = truncate(beyond(ended, messages, source), limit, self.llm.count_tokens)
        return kept, "model" if kept == reply else "cut"

    def _room(self, topic: str | None) -> int:
        """Tokens that a merge leaves for the summaries and the reply; checks that all fits."""
        config, count = self.config, self.llm.count_prompt_tokens
        background = [""] if config.with_context else []
        ask = section_prompt("", words=config.summary, background=background, topic=topic)
        summaries = config.summary * (1 + len(background))
        block = count(ask) + config.block + summaries + SLACK
        frame = count(merge_prompt("", words=config.cap, topic=topic)) + SLACK
        least = max(block, frame + config.group + MIN_LIMIT)
        if least > config.context:
            raise ConfigError(
                f"context={config.context} must be at least {least} for block={config.block},"
                f" summary={config.summary}, group={config.group} and the words around them"
                " (instructions and topic); raise it, or lower these or shorten the topic"
            )
        return config.context - frame

    def _merges(self, sections: int) -> int:
        """Most merges that so many sections can take."""
        fewest = max(2, self.config.group // (max(self.config.summary, self.config.cap) + 2))
        merges = 0
        while sections > 1:
            sections = ceil(sections / fewest)
            merges += sections
        return merges


class _Nearest:
    """Earlier sections by their likeness to a text; each is embedded once."""

    def __init__(self, embedder: Callable[[], Embedder] | None, k: int) -> None:
        self._embed = embedder().embed if embedder and k else None
        self._k = k
        self._rows: list[NDArray[np.float32]] = []

    def to(self, text: str, sections: Sequence[Section]) -> list[Section]:
        """The `k` sections nearest to `text`, best first; `sections` only ever grows."""
        if self._embed is None or not sections:
            return []
        self._rows.extend(self._embed([s.text for s in sections[len(self._rows) :]]))
        query = self._embed([text])[0]
        scores = [float(row @ query) for row in self._rows]
        best = sorted(range(len(sections)), key=scores.__getitem__, reverse=True)[: self._k]
        return [sections[at] for at in best]


def _words(limit: int, text: str, tokens: int) -> int:
    """A limit in tokens, told in words as long as those of `text`; models count words better."""
    return max(5, limit * len(words(text)) // tokens)
