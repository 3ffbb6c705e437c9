"""Markdown (CommonMark and tables) as the text that a reader sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from .base import Document
from .plain import decode

if TYPE_CHECKING:
    from markdown_it.token import Token

_BREAKS = {"softbreak": "\n", "hardbreak": "\n"}


def parse(data: bytes, name: str) -> Iterator[Document]:
    """One document, called by its first heading or else by its name."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark").enable("table").parse(decode(data, name))
    blocks = [text for text in _blocks(tokens) if text.strip()]
    yield Document(text="\n\n".join(blocks), title=_title(tokens) or name)


def _blocks(tokens: Sequence[Token]) -> Iterator[str]:
    """Headings, paragraphs, list items, code, and tables line by line."""
    row: list[str] | None = None
    table: list[str] = []
    for token in tokens:
        if token.type == "tr_open":
            row = []
        elif token.type == "tr_close":
            table.append(" | ".join(row or ()))
            row = None
        elif token.type == "table_close":
            yield "\n".join(table)
            table = []
        elif token.type in ("fence", "code_block"):
            yield token.content.rstrip("\n")
        elif token.type == "inline":
            text = _inline(token)
            if row is None:
                yield text
            else:
                row.append(text)


def _inline(token: Token) -> str:
    """Text without marks; an image is what stands for it, raw HTML says nothing."""
    parts = []
    for child in token.children or ():
        if child.type in ("text", "code_inline", "image"):
            parts.append(child.content)
        else:
            parts.append(_BREAKS.get(child.type, ""))
    return "".join(parts)


def _title(tokens: Sequence[Token]) -> str:
    headed = (_inline(after) for before, after in pairwise(tokens) if before.type == "heading_open")
    return next(headed, "").strip()[:200]
