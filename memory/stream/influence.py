"""How far what a document or a tool said may sway an answer.

Three limits, by trust alone: what is said of the user must have been said by them; of the notes
shown, what is not trusted is a share; and it never stands above what is. They hold for whatever
a document says, true or false, as nobody here can tell. Knows nothing of budgets or prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from ..record import TRUST, Record
from ..words import COMMON, stem, stems
from .items import Item
from .ranking import Candidate, best

AboutUser = Literal["corroborated", "all"]

STATED = TRUST["assistant"]
"""Trust from which on something counts as said in conversation."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What untrusted notes may do.

    Args:
        about_user: which of them are shown for a question about the user: "corroborated", those
            that say nothing but what a trusted note says, too; or "all".
        untrusted_share: most of the notes shown that may be untrusted, where there are trusted
            ones; 1 sets no limit, and ranks all alike.
    """

    about_user: AboutUser = "corroborated"
    untrusted_share: float = 0.5


NONE = Limits(about_user="all", untrusted_share=1.0)
"""For who asks for a source by name."""


@dataclass(frozen=True, slots=True)
class Heard:
    """Candidates that may have a say, and how many may not, as the question is about the user."""

    candidates: tuple[Candidate, ...]
    personal: bool
    left_out: int

    def explain(self) -> dict[str, Any]:
        """Flags and numbers."""
        return {"about_user": self.personal, "left_out": self.left_out}


def heard(candidates: Sequence[Candidate], message: str, limits: Limits) -> Heard:
    """Leave out what an untrusted note says of the user and no trusted one does. Of an exchange
    whose reply went by something untrusted, what the user said themselves stays."""
    personal = limits.about_user == "corroborated" and about_user(message)
    if not personal or all(map(_trusted, candidates)):
        return Heard(tuple(candidates), personal, 0)
    known = frozenset(stems(message)) | _common()
    said = [frozenset(stems(c.item.said)) for c in candidates if _trusted(c)]
    kept = [_own_words(c) if _stated(c.item.head) else c for c in candidates]
    admitted = tuple(
        c for c in kept if c is not None and (_trusted(c) or _corroborated(c.item, known, said))
    )
    return Heard(admitted, personal, len(candidates) - len(admitted))


def chosen(
    candidates: Iterable[Candidate], limits: Limits, *, k: int, floor: float, least: float
) -> list[Candidate]:
    """The k best, best first; see `ranking.best`. Where trusted ones of a relevance of `least` are
    among them, the others stand behind these and are at most `untrusted_share` of all.

    A trusted one is measured by the best trusted one: a text made to be found, such as one that
    repeats the question, must not raise the bar for what the user said.
    """
    given = list(candidates)
    said = [c for c in best(filter(_trusted, given), k, floor) if c.relevance >= least]
    ranked = best(given, len(given), floor)
    others = [c for c in ranked if not _trusted(c)]
    share = limits.untrusted_share
    if share == 1 or not said or not others:
        return ranked[:k]
    others = others[: int(k * share)]
    said = said[: k - len(others)]
    others = others[: int(len(said) * share / (1 - share))]
    return [*said, *(replace(c, score=min(c.score, said[-1].score)) for c in others)]


def about_user(message: str) -> bool:
    """Whether a message, in English, asks for something about whoever sent it: it speaks in the
    first person, and neither just asks to be told something nor for advice."""
    if _TOLD.search(message):
        return True
    return not _ADVICE.search(message) and bool(_FIRST.search(_ASKING.sub(" ", message)))


_FIRST = re.compile(r"\b(?:i|me|my|mine|myself|we|us|our|ours)\b", re.IGNORECASE)
_TOLD = re.compile(
    r"\b(?:(?:i|we)\s+(?:told|said|mentioned)|did\s+(?:i|we)\s+\w+)\b", re.IGNORECASE
)
_ADVICE = re.compile(
    r"\b(?:how\s+(?:do|can|could|should|would|might)|can|could|may|should|shall|must)\s+(?:i|we)\b",
    re.IGNORECASE,
)
_ASKING = re.compile(
    r"\b(?:tell|give|show|help|let|remind|teach|send|find|get|write|explain\s+to)\s+(?:me|us)\b"
    r"|\b(?:i|we)(?:\s+(?:want|need|wonder|wish|would\s+like)|['’]d\s+like)\b"
    r"|\b(?:i\s+am|i['’]m|i\s+was)\s+(?:wondering|curious|looking)\b",
    re.IGNORECASE,
)


def _trusted(candidate: Candidate) -> bool:
    return candidate.item.trust >= STATED


def _stated(record: Record) -> bool:
    return record.trust is not None and record.trust >= STATED


def _own_words(candidate: Candidate) -> Candidate | None:
    """The candidate, with nothing but the user's side where the reply is not trusted; None if that
    side was not found."""
    if _trusted(candidate):
        return candidate
    scores = {key: score for key, score in candidate.scores.items() if key in ("message", "raw")}
    if not scores:
        return None
    score = candidate.score * max(scores.values()) / candidate.relevance
    return replace(candidate, item=Item(candidate.item.head), scores=scores, score=score)


def _corroborated(item: Item, known: frozenset[int], said: Sequence[frozenset[int]]) -> bool:
    """Whether one trusted text has every telling word that the item adds to what is `known`."""
    added = frozenset(stems(item.said)) - known
    return any(added <= one for one in said)


@cache
def _common() -> frozenset[int]:
    return frozenset(map(stem, COMMON))
