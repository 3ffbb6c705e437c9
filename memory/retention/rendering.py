"""A session's rows as the messages that a cache reads.

What a document or a tool says is data: it stands in a fence, labelled, and cannot close it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from .transcript import Line

_FENCE = re.compile(r"<(/?)(document|tool_result)", re.IGNORECASE)


def messages(lines: Iterable[Line]) -> tuple[BaseMessage, ...]:
    """What the model reads of rows in order; passages of one document are one message."""
    read: list[BaseMessage] = []
    for document, passages in groupby(lines, key=_document):
        if document is None:
            read += [_message(line) for line in passages]
        else:
            read.append(_whole(document, list(passages)))
    return tuple(read)


def _document(line: Line) -> str | None:
    """The title of the document that a row is of; None: it is of none."""
    return (line.title or "") if line.kind == "document" else None


def _whole(title: str, passages: Sequence[Line]) -> BaseMessage:
    text = "\n\n".join(_defused(line.text) for line in passages)
    named = _defused(title).replace('"', "'")
    opening = f'<document title="{named}">' if named else "<document>"
    return HumanMessage(f"{opening}\n{text}\n</document>", id=passages[0].id)


def _message(line: Line) -> BaseMessage:
    if line.role == "tool":
        return HumanMessage(f"<tool_result>\n{_defused(line.text)}\n</tool_result>", id=line.id)
    spoken = AIMessage if line.role == "assistant" else HumanMessage
    return spoken(line.text, id=line.id)


def _defused(text: str) -> str:
    """`text` with whatever looks like a fence made harmless and still readable."""
    return _FENCE.sub(r"‹\1\2", text)
