"""The limits of reading a long document, and what it leaves behind: sections, and their tree.

Knows nothing of models, nor of where a section is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ...errors import ConfigError
from .documents import MIN_LIMIT

SLACK = 16
"""Tokens kept free in a prompt: texts side by side may have some more than each alone."""

Progress = Callable[[int, int], None]
"""Called as (steps done, steps expected); what is expected may fall as the work goes on."""

Made = Literal["raw", "model", "cut", "opening", "before"]
"""Whose words a section's text is: the document's, short as it is (`raw`); the model's (`model`),
or as much of them as is new and within the limit (`cut`); the start of what was to be summarised,
where the model said nothing new (`opening`); or those of an earlier reading (`before`)."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A summary of a stretch of the document.

    Args:
        key: SHA-256, hex, of all that its text depends on: the model, the exact prompt, the limits.
        depth: 0 summarises a block; others merge sections of lower depths.
        index: place within its depth, from 0.
        start, end: characters of the document that it covers.
        text: never empty.
        tokens: length of `text`.
        made: whose words they are.
        prompt: tokens of the prompt and of the room for the reply; 0 when no model was asked.
        children: keys of the sections merged, in order.
        root: whether it covers the whole document.
    """

    key: str
    depth: int
    index: int
    start: int
    end: int
    text: str
    tokens: int
    made: Made
    prompt: int = 0
    children: tuple[str, ...] = ()
    root: bool = False

    @property
    def meta(self) -> dict[str, Any]:
        """All but the text, as JSON values: what a record of kind `summary` keeps beside it."""
        kept = asdict(self)
        del kept["text"]
        return kept | {"children": list(self.children)}


@dataclass(frozen=True, slots=True)
class Tree:
    """The sections of one document, as far as they were read, in the order of their making."""

    sections: tuple[Section, ...] = ()

    @classmethod
    def of(cls, sections: Iterable[Section]) -> Tree:
        """A tree of what a reader yields."""
        return cls(tuple(sections))

    @property
    def root(self) -> Section | None:
        """The summary of all; None for a document without text, or one not read to its end."""
        return next((s for s in reversed(self.sections) if s.root), None)

    @property
    def levels(self) -> tuple[tuple[Section, ...], ...]:
        """Sections by depth, each level in document order."""
        depth = max((s.depth for s in self.sections), default=-1)
        return tuple(
            tuple(s for s in self.sections if s.depth == level) for level in range(depth + 1)
        )

    @property
    def edges(self) -> tuple[tuple[Section, Section], ...]:
        """(merged section, one of its children), for drawing: x is `start` to `end`, y `depth`."""
        by_key = {s.key: s for s in self.sections}
        return tuple((s, by_key[child]) for s in self.sections for child in s.children)

    @property
    def max_prompt(self) -> int:
        """Most tokens that any prompt and the room for its reply had together."""
        return max((s.prompt for s in self.sections), default=0)

    def draw(self, width: int = 100) -> str:
        """The tree as indented lines of at most `width` characters, what is whole first."""
        by_key = {s.key: s for s in self.sections}
        below = {child for s in self.sections for child in s.children}
        tops = (s for s in self.sections if s.key not in below)
        return "\n".join(line for top in tops for line in _lines(top, by_key, width, ""))


def _lines(section: Section, by_key: dict[str, Section], width: int, indent: str) -> Iterator[str]:
    line = f"{indent}[{section.start}-{section.end}] {' '.join(section.text.split())}"
    yield line if len(line) <= width else line[: width - 1] + "…"
    for child in section.children:
        yield from _lines(by_key[child], by_key, width, indent + "  ")
