"""What a parser makes of a file: documents to be cut into passages, or memories as they are.

Knows nothing of records, of scopes or of where a file lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text, or a part of one that no passage may reach beyond, as a page is.

    Args:
        text: with blank lines between its paragraphs.
        meta: small JSON values that every passage of it gets.
    """

    text: str
    title: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memo:
    """A memory of another system.

    Args:
        place: what tells it from the others of its system, whichever export it comes in.
        created: an aware datetime, if the system says.
        session: the conversation that it is to belong to.
    """

    text: str
    place: str
    session: str
    created: datetime | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


Parsed = Document | Memo

Parser = Callable[[bytes, str], Iterable[Parsed]]
"""From a file's bytes and its name to what is in it. Raises InputError where that is nothing."""


def moment(value: Any) -> datetime | None:
    """A time as other systems write it, in UTC where they name no zone; None if it is none."""
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
