"""The memory controller: whether memory is activated, and in what form each item enters the prompt.

SCM, arXiv 2304.13343, sections 2.2 to 2.4, with the loop of its released code, which we made end.
Knows nothing of stores: it is given ranked candidates and a budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from langchain_core.messages import HumanMessage

from ...llm.base import LLM
from ...llm.places import Note
from ..pieces import NOTHING, Piece
from . import prompts
from .documents import truncate
from .quoting import quoted
from .ranking import Candidate

Gate = Literal["always", "relevance", "llm"]
Judging = Literal["score", "llm"]
Form = Literal["raw", "summary", "dropped"]

_MARGIN = 16
"""Tokens left free in the window of a judge's prompt: the answer, and what merges at the seams."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A candidate and the form it got.

    Args:
        raw, summary: the forms it can take; an item that was never long has no summary.
        reason: "fits", "judged", "shrunk", "least similar", "cut", or "gate": it stayed shut.
    """

    candidate: Candidate
    raw: Piece
    summary: Piece | None
    form: Form = "raw"
    reason: str = "fits"

    @property
    def piece(self) -> Piece:
        """What enters the prompt."""
        if self.form == "summary" and self.summary is not None:
            return self.summary
        return self.raw if self.form == "raw" else NOTHING

    def note(self) -> Note:
        """What the prompt gets of it."""
        item = self.candidate.item
        shortened = self.form == "summary" or item.head.kind == "summary"
        behind = (*item.parts, item.summary) if self.form == "summary" else item.parts
        return Note(
            text=self.piece.text,
            records=tuple(record.id for record in behind if record),
            score=self.candidate.score,
            tokens=self.piece.tokens,
            form="summary" if shortened else "raw",
            source=item.head.source,
            when=item.head.created,
        )

    def explain(self) -> dict[str, Any]:
        """Ids and numbers."""
        shape = {"form": self.form, "reason": self.reason, "tokens": self.piece.tokens}
        return self.candidate.explain() | shape


Judge = Callable[[Placed], Form]


def reorganise(
    ranked: Sequence[Placed], room: int, judge: Judge, cut: Callable[[str, int], Piece]
) -> tuple[list[Placed], int]:
    """Make items fit by dropping and shortening them, the least similar first.

    The first round judges all but the most similar; the second takes summaries, from the least
    similar on, until all fit. The released code repeats that for ever if they do not; here a third
    drops the least similar until the rest fit, and the last one left is cut.

    Args:
        ranked: all raw, most similar first.
        room: tokens, >= 0.
        judge: the form an item needs for the message; asked only when there is too much.
        cut: the start of a text within so many tokens; empty if nothing fits.

    Returns:
        All of `ranked`, most similar first, those kept within `room` together; and the rounds.
    """
    placed = list(ranked)[::-1]

    def over() -> bool:
        return sum(p.piece.tokens for p in placed) > room

    if not over():
        return placed[::-1], 0
    for i, item in enumerate(placed[:-1]):
        form = judge(item)
        if form != item.form:
            placed[i] = replace(item, form=form, reason="judged")
    if not over():
        return placed[::-1], 1
    for i, item in enumerate(placed):
        if item.form == "raw" and item.summary is not None and over():
            placed[i] = replace(item, form="summary", reason="shrunk")
    if not over():
        return placed[::-1], 2
    for i, item in enumerate(placed[:-1]):
        if item.form != "dropped" and over():
            placed[i] = replace(item, form="dropped", reason="least similar")
    if over():
        placed[-1] = _shortened(placed[-1], room, cut)
    return placed[::-1], 3


def concatenate(
    ranked: Sequence[Placed], room: int, cut: Callable[[str, int], Piece]
) -> tuple[list[Placed], int]:
    """The paper's ablation without a controller: raw texts, most similar first, while they fit;
    the first is cut if it does not fit by itself. Arguments and result as `reorganise`."""
    placed: list[Placed] = []
    for item in ranked:
        used = sum(p.piece.tokens for p in placed)
        if used + item.raw.tokens <= room:
            placed.append(item)
        elif not placed:
            placed.append(_shortened(item, room, cut))
        else:
            rest = ranked[len(placed) :]
            placed += [replace(p, form="dropped", reason="least similar") for p in rest]
            break
    return placed, 0


def _shortened(item: Placed, room: int, cut: Callable[[str, int], Piece]) -> Placed:
    piece = cut(item.piece.text, room)
    if not piece.text:
        return replace(item, form="dropped", reason="cut")
    if item.form == "summary":
        return replace(item, summary=piece, reason="cut")
    return replace(item, raw=piece, reason="cut")


def score_judge(least: float) -> Judge:
    """Answers the paper's two questions from probabilities alone.

    An item that hardly bears on the message is dropped. Where the summary bears on it nearly as
    much as the item itself, what was asked for is in the summary.

    Args:
        least: probability below which nothing is relevant.
    """

    def judge(item: Placed) -> Form:
        scores = item.candidate.scores
        if item.candidate.relevance < least:
            return "dropped"
        whole = max((score for key, score in scores.items() if key != "summary"), default=0.0)
        enough = item.summary is not None and scores.get("summary", 0.0) >= 0.9 * whole
        return "summary" if enough else "raw"

    return judge


class Asker:
    """Asks a model yes-or-no questions by the probabilities of the two answers.

    The score is `ln P(Yes) - ln P(No)`, less what the same prompt gives with nothing filled in: a
    small model that says yes to everything then says nothing by it (Zhao et al. 2021, "Calibrate
    Before Use"). Undecided counts as yes, so that no memory is lost to a tie.
    """

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._prior: dict[str, float] = {}

    def gate(self, message: str) -> float:
        """Whether a message needs what was said before; yes if >= 0."""
        return self._score(prompts.GATE, message=message)

    def holds(self, text: str, message: str) -> float:
        """Whether a message can be answered from a text; yes if >= 0."""
        return self._score(prompts.JUDGE, text=text, message=message)

    def judge(self, message: str) -> Judge:
        """The paper's two questions: is it in the item at all, and if so, in its summary?"""

        def judge(item: Placed) -> Form:
            if self.holds(item.raw.text, message) < 0:
                return "dropped"
            if item.summary is not None and self.holds(item.summary.text, message) >= 0:
                return "summary"
            return "raw"

        return judge

    def _score(self, prompt: str, **texts: str) -> float:
        blank = dict.fromkeys(texts, "")
        if prompt not in self._prior:
            self._prior[prompt] = self._leaning(_filled(prompt, blank))
        window = self._llm.context_window - _MARGIN
        free = window - self._llm.count_prompt_tokens([HumanMessage(_filled(prompt, blank))])
        share = max(free // len(texts), 1)
        count = self._llm.count_tokens
        cut = {name: truncate(text, share, count) for name, text in texts.items()}
        score = self._leaning(_filled(prompt, cut)) - self._prior[prompt]
        return 0.0 if math.isnan(score) else score

    def _leaning(self, prompt: str) -> float:
        yes, no = self._llm.logprobs([HumanMessage(prompt)], ["Yes", "No"])
        return yes - no


def _filled(prompt: str, texts: Mapping[str, str]) -> str:
    return prompt.format(**{name: quoted(text) for name, text in texts.items()})
