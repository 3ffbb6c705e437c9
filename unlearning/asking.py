"""What is asked to be forgotten, and which records that names.

Knows nothing of what must go along with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from ..errors import ConfigError, InputError, RecordNotFound
from ..memory.erasures import Erasures
from ..memory.record import Reach, RecordId, Scope, Source
from ..memory.words import words

Asked = Literal["ids", "query", "everything", "source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetRequest:
    """What is to be forgotten: `ids`, all with the words of `query`, everything, or all that came
    from a `source`.

    Args:
        scope: whose; with `session=None`, of all sessions.
        origin: only of this file, title or tool of the source, whole or with `*` for any part.
        since: only what the source has said from this time on, by when it was kept.
        all_users: of every user and agent of the scope's tenant.
    """

    scope: Scope
    ids: tuple[RecordId, ...] = ()
    query: str | None = None
    everything: bool = False
    all_users: bool = False
    source: Source | None = None
    origin: str | None = None
    since: datetime | None = None

    def __post_init__(self) -> None:
        asked = [bool(self.ids), self.query is not None, self.everything, self.source is not None]
        if self.source is None and (self.origin is not None or self.since is not None):
            raise ConfigError("origin and since narrow a source; name the source, too: 'document'")
        if sum(asked) != 1:
            raise ConfigError(
                "say what to forget, by exactly one of ids, a query, everything, or a source"
            )
        if self.source is not None and self.source not in get_args(Source):
            raise ConfigError(f"source={self.source!r} must be one of {get_args(Source)}")
        if self.since is not None and self.since.tzinfo is None:
            raise ConfigError(f"since={self.since} has no time zone; give it one, UTC for choice")

    @property
    def reach(self) -> Reach:
        """Whose records it is about."""
        return Reach(tenant=self.scope.tenant) if self.all_users else Reach.of(self.scope)

    @property
    def asked(self) -> Asked:
        """How it names what is to go. Never the words of a query: they may be a person's name."""
        if self.ids:
            return "ids"
        return "everything" if self.everything else "source" if self.source else "query"


def asked(erasures: Erasures, request: ForgetRequest) -> list[RecordId]:
    """The records that a request names. For a query, every one of them is looked at: those with
    all of its words, in the text or in what `meta` tells beside it, as whole words, in any order
    and with any case and accents; scripts written without spaces count pairs of characters as
    words.

    Raises:
        RecordNotFound: an id is unknown within its reach, or there is nothing to forget.
        InputError: the query has no words.
    """
    reach = request.reach
    if request.ids:
        known = {id for id, *_ in erasures.contents(request.ids, reach)}
        unknown = sorted(set(request.ids) - known)
        if unknown:
            raise RecordNotFound(
                f"records {unknown} are not in the ledger for {reach}; nothing was forgotten"
            )
        return sorted(known)
    if request.source is not None:
        found = erasures.said_by(request.source, reach, request.origin, request.since)
    else:
        named = _having(request.query) if request.query is not None else lambda text: True
        found = [id for id, text in erasures.texts(reach) if named(text)]
    if not found:
        what = {"everything": "holds nothing", "source": "has nothing of this source"}.get(
            request.asked, "has no record with all these words"
        )
        raise RecordNotFound(f"the ledger {what} for {reach}; nothing was forgotten")
    return found


def _having(query: str) -> Callable[[str], bool]:
    """Whether a text has all words of the query, in any order and form of case or accent."""
    wanted = frozenset(words(query))
    if not wanted:
        raise InputError("the query has no words; name some that stand in what is to be forgotten")

    def has(text: str) -> bool:
        if text.isascii():  # then a look spares most texts the taking apart
            lowered = text.lower()
            if not all(word in lowered for word in wanted):
                return False
        return wanted.issubset(words(text))

    return has
