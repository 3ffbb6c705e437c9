"""The report of an erasure: what went, from where, how that was checked, and what could not be.

Ids and numbers only: a report may be shown to anyone, and holds nothing of what was forgotten. It
knows nothing of how the erasing is done; see `verification` for how a report is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigError
from ..memory.derived import Why
from ..memory.erasures import Position
from ..memory.record import Reach, RecordId
from .asking import Asked, ForgetRequest
from .residue import Hit

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["Backup", "Doomed", "Hit", "Plan", "Report", "Search", "StoreErasure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doomed:
    """A record that goes, and why: `asked for`, or `version of`, `made from` or `reply to` the
    record `of`, which goes."""

    id: RecordId
    why: Why
    of: RecordId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreErasure:
    """One store's part.

    Args:
        erased: keys of its artefacts that came from records that go, and from no other.
        rebuilt: keys of those that came from records that stay, too, and were made anew.
        checked: what was found true of it afterwards.
    """

    store: str
    erased: tuple[str, ...] = ()
    rebuilt: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What was read, what for, and what was found.

    Args:
        strings: byte strings that were looked for.
        residue: occurrences that nothing that stays accounts for, in all files together.
        hits: where the first of them are.
        also_said: records of which the text, or a stretch of it, stands in a record that stays:
            of these nobody can say from a file's bytes whose they are.
        unsearchable: records of a text too short or too plain to be told from chance.
        unread: files that could not be read, and why.
    """

    files: int
    bytes: int
    strings: int
    residue: int = 0
    hits: tuple[Hit, ...] = ()
    also_said: tuple[str, ...] = ()
    unsearchable: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A backup that was made while the records were there, and holds them still."""

    path: str
    created: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """An Ed25519 signature (RFC 8032) over the report's canonical JSON; both in hex."""

    public_key: str
    value: str
    algorithm: Literal["ed25519"] = "ed25519"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of a request to forget. Signed when it is done; times are UTC.

    Args:
        records: all that went, each with why.
        rebuilt: ids of those that were summaries of records that stay, too: they are made again
            from what stays by the next `Agent.derive`.
        traces: traces of turns that mentioned one of the records, and went.
        search: None while nothing was searched, or when nobody knew any more what to search for.
        rewritten: whether all files were written anew, as something of it was still found in one,
            or nobody could tell; else what was deleted was overwritten where it stood.
        seconds: how long each step took; after a crash, only of those made up for.
        unchecked: what no check of ours reaches.
        before, after: the head of the chain of events around the erasure.
    """

    id: str
    requested: datetime
    asked: Asked
    who: Reach
    records: tuple[Doomed, ...]
    rebuilt: tuple[RecordId, ...] = ()
    stores: tuple[StoreErasure, ...] = ()
    traces: int = 0
    search: Search | None = None
    rewritten: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    unchecked: tuple[str, ...] = ()
    backups: tuple[Backup, ...] = ()
    before: Position | None = None
    after: Position | None = None
    finished: datetime | None = None
    version: str = ""
    signature: Signature | None = None

    @property
    def ids(self) -> frozenset[RecordId]:
        """Of all records that go."""
        return frozenset(record.id for record in self.records)

    @property
    def residue(self) -> int | None:
        """Occurrences of what was forgotten in any file; None if that was not searched."""
        return None if self.search is None else self.search.residue

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the report, and the signature beside it."""
        body: dict[str, Any] = _adapter().dump_python(self, mode="json")
        signature = body.pop("signature")
        return {"report": body, "signature": signature}

    @classmethod
    def from_json(cls, document: Any) -> Report:
        """The report that `to_json` wrote.

        Raises:
            ConfigError: it is not one.
        """
        from pydantic import ValidationError

        try:
            return _adapter().validate_python(
                {**document["report"], "signature": document["signature"]}
            )
        except (TypeError, KeyError, ValidationError) as error:
            raise ConfigError(
                f"this is no report of an erasure ({type(error).__name__}); give the file that"
                " `palimpsest forget --report FILE` wrote"
            ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Report):
    """A report of what would go, and nothing has gone yet. Hand it to `forget` to have exactly
    that done."""

    request: ForgetRequest = field(repr=False)

    def same_as(self, other: Plan) -> bool:
        """Whether the same would go, from the same places."""
        return self.ids == other.ids and self.stores == other.stores


@cache
def _adapter() -> TypeAdapter[Report]:
    from pydantic import TypeAdapter

    return TypeAdapter(Report)
