"""The limits of reading a long document as a tree.

Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ConfigError
from .documents import MIN_LIMIT

SLACK = 16
"""Tokens kept free in a prompt: texts side by side may have some more than each alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeConfig:
    """Limits of a reading, all in tokens of the model. The defaults suit a model of 135M.

    Args:
        context: most that a prompt and its reply may have together, at most the model's window.
        block: text summarised at a time.
        summary: a block's summary.
        group: summaries merged at a time.
        cap: a merged summary; the last one, of everything, may have half as much again.
        with_context: show the summary before to the model, as SCM does; without it this is
            RecursiveSum. A model of 135M copies what it is shown, so it is for larger ones.
        activate: how many earlier summaries to show as well, those nearest to the block by
            embedding, as far as `context` allows.
        repetition_penalty: small models repeat themselves without one; from 1.1 on they misspell
            the names in the text, which count as said already.
    """

    context: int = 1024
    block: int = 512
    summary: int = 96
    group: int = 600
    cap: int = 160
    with_context: bool = False
    activate: int = 0
    repetition_penalty: float = 1.05

    def __post_init__(self) -> None:
        widest = max(self.summary, self.cap)
        rules = (
            ("summary", self.summary >= MIN_LIMIT, f"at least {MIN_LIMIT}"),
            ("cap", self.cap >= MIN_LIMIT, f"at least {MIN_LIMIT}"),
            ("block", self.block > self.summary, f"more than {self.summary=}, or nothing shrinks"),
            (
                "group",
                self.group >= 2 * widest + SLACK,
                f"at least {2 * widest + SLACK}, so that two summaries can always be merged",
            ),
            ("activate", self.activate >= 0, "0 (off) or more"),
            (
                "activate",
                self.with_context or not self.activate,
                "0 unless with_context=True",
            ),
        )
        for name, holds, rule in rules:
            if not holds:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be {rule}")

    @classmethod
    def scaled(cls, context: int) -> TreeConfig:
        """The default proportions for another context."""
        share = context / 1024
        return cls(
            context=context,
            block=int(512 * share),
            summary=int(96 * share),
            group=int(600 * share),
            cap=int(160 * share),
        )
