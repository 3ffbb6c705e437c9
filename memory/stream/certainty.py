"""XL3M: answer from the few segments of a document that make the model most certain.

The document is cut into segments, the question is asked of each by itself, and the best are put
together in their order: a key context that fits the window, for the stock model to answer from.
Knows nothing of the ledger. Source: XL3M (arXiv 2405.17755); the selection rule is ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, ClassVar

from ...errors import ConfigError, InputError
from ...llm.base import LLM, GenerationConfig, Token
from ..reading import Answer, KeyContext, Progress, Segment
from ..record import content_hash
from . import scores
from .documents import MIN_LIMIT, split
from .limits import SLACK
from .quoting import answer_prompt, segment_prompt
from .segments import CertaintyConfig, spans_of, spliced

if TYPE_CHECKING:
    from ..vectors import Embedder

_FINEST = 4 * MIN_LIMIT
"""Tokens of a segment below which narrowing stops."""


class CertaintyReader:
    """Answers questions about a document of any length within the model's own window.

    Args:
        llm: the model that answers, and scores where the score needs one.
        config: defaults to `CertaintyConfig.within` the model's window.
        embedder: opens the embedder; called only for the score "similarity".
        scorer: measures segments instead of `config.score`.

    Raises:
        CapabilityError: the model cannot give the score.
        ConfigError: the budget does not fit the window, or "similarity" has no embedder.
    """

    Config: ClassVar[type[CertaintyConfig]] = CertaintyConfig

    def __init__(
        self,
        llm: LLM,
        config: CertaintyConfig | None = None,
        *,
        embedder: Callable[[], Embedder] | None = None,
        scorer: scores.Scorer | None = None,
    ) -> None:
        self.llm = llm
        self.config = config or CertaintyConfig.within(llm.context_window)
        self._embedder = embedder
        self._scorer = scorer
        if scorer is None and self.config.score == "similarity" and embedder is None:
            raise ConfigError("score='similarity' needs an embedder; pass embedder=")
        self._open_scorer(())
        if need := self._over(""):
            raise ConfigError(
                f"budget={self.config.budget} and segment={self.config.segment} need {need} tokens"
                f" and the window of model {llm.name!r} has {llm.context_window}; use"
                f" CertaintyConfig.within({llm.context_window})"
            )

    def answer(
        self,
        question: str,
        text: str,
        *,
        done: Mapping[str, float] | None = None,
        progress: Progress | None = None,
        cancel: Event | None = None,
    ) -> Answer | None:
        """Select and reply; None if cancelled before the reply began. See `select`."""
        context = self.select(question, text, done=done, progress=progress, cancel=cancel)
        if context is None:
            return None
        reply = "".join(token.text for token in self.stream(question, context, cancel=cancel))
        return Answer(reply, context)

    def stream(
        self, question: str, context: KeyContext, *, cancel: Event | None = None
    ) -> Iterator[Token]:
        """The stock model's reply to the question, given the key context and nothing else."""
        config = GenerationConfig(max_tokens=self.config.reply)
        return self.llm.stream(answer_prompt(context.text, question), (), config, cancel=cancel)

    def select(
        self,
        question: str,
        text: str,
        *,
        done: Mapping[str, float] | None = None,
        progress: Progress | None = None,
        cancel: Event | None = None,
    ) -> KeyContext | None:
        """The key context for a question; None if cancelled.

        The best segments are taken as long as they fit the budget. With a threshold, all that reach
        it are; if these are too many, they become the document and are cut into segments half as
        long, until they fit or segments are 64 tokens short, when again the best are taken.

        Args:
            question: what is asked; it must not be blank.
            text: the whole document; without text, the key context is empty.
            done: scores by key from an earlier, unfinished selection.
            progress: called after each segment, for each pass anew.
            cancel: when set, no further segment is scored.

        Raises:
            InputError: the question is blank or too long, or the text is no valid Unicode.
            ModelError: from the model.
        """
        self._check(question)
        least, size, scanned = self.config.threshold, self.config.segment, 0
        spans = [(0, len(text))]
        while True:
            segments = self._cut(question, text, spans, size)
            if least is None and self._fits(text, segments):
                return self._context(text, segments, scanned)
            scored = list(self._scored(question, segments, done or {}, progress, cancel))
            if len(scored) < len(segments):
                return None
            scanned += len(scored)
            kept = [s for s in scored if least is None or s.score is None or s.score >= least]
            if least is None or size // 2 < _FINEST or self._fits(text, kept):
                return self._context(text, self._best(text, kept), scanned)
            spans, size = spans_of(kept), size // 2

    def scan(
        self,
        question: str,
        text: str,
        *,
        done: Mapping[str, float] | None = None,
        progress: Progress | None = None,
        cancel: Event | None = None,
    ) -> Iterator[Segment]:
        """Yield every segment with its score as soon as it is known: one pass, nothing selected.

        A job that keeps `segment.key` and `segment.score` can pass them on as `done`.
        """
        self._check(question)
        segments = self._cut(question, text, [(0, len(text))], self.config.segment)
        return self._scored(question, segments, done or {}, progress, cancel)

    def _open_scorer(self, segments: Sequence[Segment]) -> scores.Scorer:
        config, llm = self.config, self.llm
        if self._scorer is not None:
            return self._scorer
        if self._embedder is not None and config.score == "similarity":
            return scores.similarity(self._embedder())
        return {
            "likelihood": lambda: scores.likelihood(llm),
            "entropy": lambda: scores.entropy(llm, config.answer_prefix),
            "confidence": lambda: scores.confidence(llm, config.answer_tokens),
            "lexical": lambda: scores.lexical([s.text for s in segments]),
        }[config.score]()

    def _cut(
        self, question: str, text: str, spans: Sequence[tuple[int, int]], size: int
    ) -> list[Segment]:
        """Segments of at most `size` tokens of these spans of the text."""
        config = self.config
        measure = [self.llm.name, config.score, config.answer_prefix, config.answer_tokens]
        overlap = size * config.overlap // config.segment
        return [
            Segment(
                content_hash(json.dumps([*measure, question, block.text])),
                start + block.start,
                start + block.end,
                block.text,
                block.tokens,
            )
            for start, end in spans
            for block in split(text[start:end], size, self.llm.count_tokens, overlap=overlap)
        ]

    def _scored(
        self,
        question: str,
        segments: Sequence[Segment],
        done: Mapping[str, float],
        progress: Progress | None,
        cancel: Event | None,
    ) -> Iterator[Segment]:
        score = self._open_scorer(segments)
        for count, segment in enumerate(segments, start=1):
            if cancel and cancel.is_set():
                return
            known = done.get(segment.key)
            yield replace(segment, score=score(segment.text, question) if known is None else known)
            if progress:
                progress(count, len(segments))

    def _fits(self, text: str, segments: Sequence[Segment]) -> bool:
        if sum(s.tokens for s in segments) > 2 * self.config.budget:  # overlaps are under half
            return False
        return self.llm.count_tokens(spliced(text, segments)) <= self.config.budget

    def _context(self, text: str, segments: Sequence[Segment], scanned: int) -> KeyContext:
        joined = spliced(text, segments)
        return KeyContext(joined, self.llm.count_tokens(joined), tuple(segments), scanned)

    def _best(self, text: str, segments: Sequence[Segment]) -> list[Segment]:
        """The best segments, as many as fit the budget together, in document order."""
        kept: list[Segment] = []
        for segment in sorted(segments, key=lambda s: (-(s.score or 0.0), s.start)):
            more = sorted([*kept, segment], key=lambda s: s.start)
            if not self._fits(text, more):
                break
            kept = more
        return kept

    def _check(self, question: str) -> None:
        if not question.strip():
            raise InputError("question is empty; ask something of the document")
        if need := self._over(question):
            raise InputError(
                f"question has {self.llm.count_tokens(question)} tokens, which with a budget of"
                f" {self.config.budget} needs {need} of the window's {self.llm.context_window};"
                " shorten the question or lower the budget"
            )

    def _over(self, question: str) -> int:
        """Tokens of the longest prompt and reply if they exceed the window, else 0."""
        config, count = self.config, self.llm.count_prompt_tokens
        asked = self.llm.count_tokens(question)
        need = SLACK + max(
            count(answer_prompt("", question)) + max(config.budget, config.segment) + config.reply,
            count(segment_prompt("")) + config.segment + asked,
        )
        return need if need > self.llm.context_window else 0
