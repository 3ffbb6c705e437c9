"""Segments of a document, chosen ones put together, and the limits of choosing.

Knows nothing of models, nor of how a segment gets its score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ...errors import ConfigError
from ..reading import Segment
from .documents import MIN_LIMIT

Score = Literal["likelihood", "entropy", "confidence", "lexical", "similarity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CertaintyConfig:
    """How to select. The defaults suit a model of 135M with a window of 8192 tokens.

    Args:
        segment: most tokens of a segment.
        overlap: tokens that a segment may share with the one before, so that evidence stays whole.
        budget: most tokens of the key context.
        score: what the certainty of a segment is measured by; see `scores.py`.
        answer_prefix: how the answer would begin; for `entropy`.
        answer_tokens: tokens of the answer that are looked at; for `confidence`.
        threshold: least score of a segment that is kept; None keeps the best, whatever they score.
        reply: most tokens of an answer.
    """

    segment: int = 512
    overlap: int = 64
    budget: int = 2048
    score: Score = "likelihood"
    answer_prefix: str = ""
    answer_tokens: int = 4
    threshold: float | None = None
    reply: int = 128

    def __post_init__(self) -> None:
        rules = (
            ("segment", self.segment >= MIN_LIMIT, f"at least {MIN_LIMIT} tokens"),
            ("overlap", 0 <= self.overlap < self.segment / 2, "from 0 to less than half a segment"),
            ("budget", self.budget >= self.segment, f"at least one {self.segment=}"),
            ("score", self.score in get_args(Score), f"one of {get_args(Score)}"),
            ("answer_tokens", self.answer_tokens >= 1, "at least 1"),
            ("reply", self.reply >= 1, "at least 1"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be {rule}")

    @classmethod
    def within(cls, window: int) -> CertaintyConfig:
        """The defaults, or less where the window asks for it."""
        segment = min(512, window // 4)
        return cls(
            segment=segment,
            overlap=segment // 8,
            budget=min(2048, window // 2),
            reply=min(128, window // 8),
        )


def spans_of(segments: Sequence[Segment]) -> list[tuple[int, int]]:
    """The stretches of the document that segments cover, in order, overlaps joined."""
    spans: list[tuple[int, int]] = []
    for segment in sorted(segments, key=lambda s: s.start):
        if spans and segment.start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], segment.end))
        else:
            spans.append((segment.start, segment.end))
    return spans


def spliced(text: str, segments: Sequence[Segment]) -> str:
    """Segments of `text` in document order; what they share stands once."""
    return "\n\n".join(text[start:end] for start, end in spans_of(segments))
