"""What becomes of requests to unlearn, as values; and what a new one would come to.

Knows nothing of how a request is learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING

from ..memory.record import RecordId
from ..unlearning.base import Means, Receipt, Request

if TYPE_CHECKING:
    from ..unlearning.unlearner import State

KEPT = "kept"
"""Key of `meta` of a request's texts that are to be kept when it is learnt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingRequest:
    """A request that holds.

    Args:
        fingerprints: SHA-256 of each sample.
        unlearner: name of the memory that has it.
        state: `learnt`; `pending`, to be learnt by the next learning; or `lost`: its texts were
            dropped before it was learnt for this model, so it has to be asked again.
        texts: whether its texts are still kept.
        receipt: None unless it is learnt.
        created: None if its record is not in the ledger.
    """

    id: RecordId
    name: str
    reason: str
    fingerprints: tuple[str, ...]
    unlearner: str
    means: Means
    state: State
    texts: bool
    receipt: Receipt | None
    created: datetime | None

    @property
    def samples(self) -> int:
        """How many."""
        return len(self.fingerprints)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """A request that holds and has samples of another.

    Args:
        shared: how many.
    """

    id: RecordId
    name: str
    shared: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearnPlan:
    """What a request would come to; nothing was done.

    Args:
        known: id of the same request, if it holds: it would not be learnt again.
        overlaps: others that share samples with it.
        seconds: what learning would take, by what earlier ones took; None before the first.
    """

    name: str
    samples: int
    unlearner: str
    means: Means
    known: RecordId | None
    overlaps: tuple[Overlap, ...]
    seconds: float | None


def planned(
    request: Request, unlearner: str, means: Means, held: Sequence[StandingRequest]
) -> UnlearnPlan:
    """What a request would come to, beside those that hold."""
    own = frozenset(request.fingerprints)
    known = [each.id for each in held if same(each, request, unlearner)]
    others = [
        Overlap(id=each.id, name=each.name, shared=shared)
        for each in held
        if each.id not in known and (shared := len(own & frozenset(each.fingerprints)))
    ]
    paces = [
        each.receipt.seconds / each.samples
        for each in held
        if each.receipt is not None and each.unlearner == unlearner
    ]
    return UnlearnPlan(
        name=request.name,
        samples=len(request.samples),
        unlearner=unlearner,
        means=means,
        known=known[0] if known else None,
        overlaps=tuple(others),
        seconds=median(paces) * len(request.samples) if paces else None,
    )


def same(held: StandingRequest, request: Request, unlearner: str) -> bool:
    """Whether a request that holds is the one that is asked for, and needs no learning anew."""
    return (
        held.name == request.name
        and held.unlearner == unlearner
        and held.state != "lost"
        and sorted(held.fingerprints) == sorted(request.fingerprints)
    )
