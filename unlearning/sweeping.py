"""The files, once records are gone from ledger and stores: purged, and read to see that it is so.

What to look for is learnt by heart before anything is erased, and never written down. Knows nothing
of why the records go, or of what else goes with them.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..memory.record import Reach, RecordId
from . import bounds
from .report import Search
from .residue import Needles
from .tiers import Tiers

LISTED_HITS = 100
"""Places of residue that a report names one by one."""


BESIDE = ("mark", "meta")
"""Forms of what is no text. A title that others have, too, is no second telling."""

TWINS = 100
"""Records that say the same as a forgotten one, which are looked at before all others."""


@dataclass(slots=True)
class Attempt:
    """What one process knows of an erasure under way.

    Args:
        needles: None if another process erased the texts, and died.
        seconds: step -> how long it took here.
    """

    needles: Needles | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time of a block to a step."""
        start = time.perf_counter()
        yield
        taken = time.perf_counter() - start
        self.seconds[step] = round(self.seconds.get(step, 0.0) + taken, 3)


def learn(tiers: Tiers, ids: Collection[RecordId], reach: Reach) -> Needles:
    """What to look for once these records are gone: their texts, and the stores' own marks."""
    needles = Needles()
    for content in tiers.ledger.erasures.contents(ids, reach):
        needles.add(content)
    for name, memory in tiers.stores.items():
        for mark in memory.marks(ids):
            needles.add_mark(name, mark)
    return needles


def sweep(tiers: Tiers, attempt: Attempt, backups: Collection[str]) -> tuple[Search | None, bool]:
    """Leave nothing in the files, and read them to see that it is so.

    First what was deleted is overwritten where it stands. Only where something is found even so, or
    where nobody can tell, the files are written anew, which takes as long as they are large.

    Args:
        backups: paths of those that hold the records, and may.

    Returns:
        What was found, None if nobody knows what to look for; and whether the files are new.
    """
    needles = attempt.needles
    telling = needles is not None and tiers.ledger.file is not None
    for rewrite in (False, True) if telling else (True,):
        with tiers.following, attempt.timed("purge"):
            for memory in tiers.memories:
                memory.purge(rewrite=rewrite)
            tiers.ledger.purge(rewrite=rewrite)
        search = None
        if needles is not None:
            with attempt.timed("search"):
                search = _search(tiers, needles, backups)
            if not search.residue:
                break
    return search, rewrite


def _search(tiers: Tiers, needles: Needles, backups: Collection[str]) -> Search:
    home, file = tiers.home.root, tiers.ledger.file
    others = [] if file is None or file.is_relative_to(home) else bounds.files_of(file)
    found = needles.search(home, others)
    ledger = tiers.ledger.erasures

    twins = ledger.saying(needles.hashes, TWINS)  # most often they account for all that is found

    def said() -> Iterator[str]:
        yield from ledger.names()
        yield from ledger.said(twins)
        yield from ledger.said()

    def marks(store: str) -> Iterator[bytes]:
        yield from tiers.stores[store].marks(twins)
        yield from tiers.stores[store].marks()

    standing = needles.also_held(found, said, marks)
    hits = [
        (string, hit)
        for string, hit in needles.hits(found)
        if not any((home / hit.file).is_relative_to(backup) for backup in backups)
    ]
    residue = [hit for string, hit in hits if string not in standing]
    texts = [hit for string, hit in hits if string in standing and hit.form not in BESIDE]
    return Search(
        files=found.files,
        bytes=found.size,
        strings=len(needles),
        residue=sum(hit.count for hit in residue),
        hits=tuple(residue[:LISTED_HITS]),
        also_said=tuple(sorted({hit.of for hit in texts})),
        unsearchable=tuple(sorted(needles.unsearchable)),
        unread=tuple(found.unread),
    )
