"""What reading a long document leaves behind: sections, or an answer and its sources.

Knows nothing of models, of how a reader works, nor of where a section is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

Progress = Callable[[int, int], None]
"""Called as (steps done, steps expected); what is expected may fall as the work goes on."""

Made = Literal["raw", "model", "cut", "opening", "before"]
"""Whose words a section's text is: the document's, short as it is (`raw`); the model's (`model`),
or as much of them as is new and within the limit (`cut`); the start of what was to be summarised,
where the model said nothing new (`opening`); or those of an earlier reading (`before`)."""


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


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the document and its score.

    Args:
        key: SHA-256, hex, of all that the score depends on.
        start, end: characters of the document.
        score: None where the whole document fits the budget and nothing had to be scored.
    """

    key: str
    start: int
    end: int
    text: str
    tokens: int
    score: float | None = None


@dataclass(frozen=True, slots=True)
class KeyContext:
    """What the model is to read instead of the document.

    Args:
        text: the segments in document order; what they share stands once.
        tokens: length of `text`, at most the budget.
        segments: those it is made of, in document order.
        scanned: how many segments were scored.
    """

    text: str
    tokens: int
    segments: tuple[Segment, ...]
    scanned: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply and the key context it was given from."""

    text: str
    context: KeyContext
