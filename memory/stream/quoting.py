"""The readers' prompts as messages; whatever comes out of a document is fenced as quoted material.

Knows nothing of limits. A fence cannot be closed from inside: runs of its sign are shortened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from . import prompts
from .documents import sentences

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

FENCE = "====="
_RUN = re.compile(f"{FENCE}=*")


def quoted(text: str) -> str:
    """`text` between two fences; a run of five or more of the fence's sign in it becomes four."""
    return f"{FENCE}\n{_RUN.sub(FENCE[:-1], text)}\n{FENCE}"


def beyond(reply: str, messages: Sequence[BaseMessage], source: str) -> str:
    """What a reply says once and its prompt does not say around the quoted `source`.

    Small models copy what they are shown as background, fences and all, and go round in circles.
    """
    prompt = "\n".join(str(message.content) for message in messages)
    said = {part.strip() for part in _parts(prompt.replace(quoted(source), ""))}
    kept = ""
    for part in _parts(_RUN.sub("", reply)):
        if not part.strip() or part.strip() not in said:
            said.add(part.strip())
            kept += part
    return kept.strip()


def _parts(text: str) -> Iterator[str]:
    for line in text.splitlines(keepends=True):
        yield from sentences(line)


def section_prompt(
    text: str, *, words: int, background: Sequence[str], topic: str | None
) -> list[BaseMessage]:
    """Asks for a summary of a block, after the summaries that are its background."""
    before = quoted("\n\n".join(background))
    return _messages(
        prompts.SUMMARISE_SECTION.format(
            background=prompts.BACKGROUND.format(background=before) if background else "",
            text=quoted(text),
            topic=_topic(topic),
            what="the next part alone, without the background," if background else "the text above",
            words=words,
        )
    )


def merge_prompt(text: str, *, words: int, topic: str | None) -> list[BaseMessage]:
    """Asks for one text made of several summaries."""
    return _messages(
        prompts.MERGE_SECTIONS.format(text=quoted(text), topic=_topic(topic), words=words)
    )


def theme_prompt(opening: str) -> list[BaseMessage]:
    """Asks for the theme of a document by its opening."""
    return _messages(prompts.NAME_THEME.format(text=quoted(opening)))


def segment_prompt(segment: str) -> list[BaseMessage]:
    """Asks for a question that a segment answers; how likely the user's is, is its score."""
    return _messages(prompts.ASK_OF_SEGMENT.format(text=quoted(segment)))


def answer_prompt(context: str, question: str) -> list[BaseMessage]:
    """Asks the question of a text."""
    return _messages(prompts.ANSWER_FROM_SEGMENT.format(text=quoted(context), question=question))


def _topic(topic: str | None) -> str:
    return prompts.TOPIC.format(topic=quoted(topic)) if topic else ""


def _messages(text: str) -> list[BaseMessage]:
    from langchain_core.messages import HumanMessage, SystemMessage

    return [SystemMessage(prompts.READER), HumanMessage(text)]
