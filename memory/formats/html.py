"""HTML as the text that a reader sees: no scripts, no styles, nothing that is hidden."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...errors import InputError
from .base import Document

if TYPE_CHECKING:
    from bs4 import BeautifulSoup

_UNSEEN = ("script", "style", "template", "noscript", "svg", "iframe", "object", "head")
_HIDDEN = '[hidden], [aria-hidden="true"], [style*="display:none"], [style*="display: none"]'
_BLOCKS = (
    *("address", "article", "aside", "blockquote", "body", "dd", "div", "dl", "dt", "fieldset"),
    *("figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr"),
    *("li", "main", "nav", "ol", "p", "pre", "section", "table", "ul"),
)
_EDGE = "\uffff\n"
"""Stands for a paragraph's edge until blanks are gone; U+FFFF is no character of any text."""


def parse(data: bytes, name: str) -> Iterator[Document]:
    """One document, called by its title, its first heading, or else by its name. Its encoding is
    what it declares, or else guessed."""
    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup

    try:
        soup = BeautifulSoup(data.replace(b"\0", b""), "html.parser")
    except ParserRejectedMarkup as error:
        raise InputError(f"{name!r} is not HTML: {error}") from error
    title = _title(soup)
    for tag in [*soup(_UNSEEN), *soup.select(_HIDDEN)]:
        if not tag.decomposed:
            tag.decompose()
    yield Document(text=_text(soup), title=title or name)


def _text(soup: BeautifulSoup) -> str:
    for tag in soup("br"):
        tag.replace_with("\n")
    for tag in soup(("td", "th")):
        tag.append(" | ")
    for tag in soup("tr"):
        tag.append("\n")
    for tag in soup(_BLOCKS):
        tag.insert(0, _EDGE)
        tag.append(_EDGE)
    paragraphs = []
    for part in soup.get_text().split(_EDGE.strip("\n")):
        lines = (re.sub(r"\s+", " ", line).strip(" |") for line in part.split("\n"))
        paragraphs.append("\n".join(line for line in lines if line))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _title(soup: BeautifulSoup) -> str:
    found = soup.title or soup.h1
    return " ".join(found.get_text().split())[:200] if found else ""
