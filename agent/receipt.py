"""The receipt of an ingest: what became of each file. Counts and names, never texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class FileCount:
    """What became of one file: records that are new; that were there already; that were there, and
    now have a version that is trusted more; that were forgotten here, and stay out; and how many
    of the new ones give orders, and are in quarantine."""

    name: str
    added: int = 0
    known: int = 0
    vouched: int = 0
    forgotten: int = 0
    quarantined: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """A file of which nothing was taken, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """The receipt.

    Args:
        skipped: files of a kind that is not read.
        failed: files that should have been read and could not.
        cancelled: whether it ended early; ingesting again goes on from there.
    """

    files: Sequence[FileCount]
    skipped: Sequence[Unread]
    failed: Sequence[Unread]
    cancelled: bool = False

    @property
    def added(self) -> int:
        """Records that are new."""
        return sum(each.added for each in self.files)

    @property
    def known(self) -> int:
        """Records that were there already."""
        return sum(each.known for each in self.files)

    @property
    def vouched(self) -> int:
        """Records that were there, and now have a version that is trusted more."""
        return sum(each.vouched for each in self.files)

    @property
    def forgotten(self) -> int:
        """Records that were forgotten here, and stay out."""
        return sum(each.forgotten for each in self.files)

    @property
    def quarantined(self) -> int:
        """Records that are new and that no memory is given; see `Agent.quarantined`."""
        return sum(each.quarantined for each in self.files)
