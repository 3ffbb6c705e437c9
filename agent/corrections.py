"""When a user says that an answer was wrong, and what is right: the edit that would follow.

Plain patterns, and few: what they do not see, `/edit` says. Nothing is edited from here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..editors.base import Edit
from ..memory.record import Turn

LONGEST = 200
"""Characters of a message that may be a correction, or of a question that may be corrected."""

_WRONG = (
    r"(?:no|nope|wrong|incorrect|false|actually"
    r"|(?:that|this|it)(?:'s| is| was)(?: just| simply)? (?:not (?:right|correct|true)|wrong"
    r"|incorrect|false)|(?:that|this|it) (?:isn't|wasn't) (?:right|correct|true))"
)
_RIGHT = r"(?:(?:it|that)(?:'s| is| was)|the (?:right |correct |true )?answer (?:is|was))"
_CORRECTION = re.compile(
    rf"{_WRONG}\s*[,.;:!-]+\s*(?:actually,?\s+)?{_RIGHT}\s*:?\s+(?P<right>.+)", re.IGNORECASE
)
_DENIAL = re.compile(r"(?:not|n't|wrong|incorrect|false|ok|okay|fine)\b", re.IGNORECASE)


def corrected(message: str) -> str | None:
    """The right answer that a message states, if it corrects one: "No, it is X" says X."""
    text = " ".join(message.replace("\u2019", "'").split())
    found = _CORRECTION.fullmatch(text) if len(text) <= LONGEST else None
    if found is None:
        return None
    right = found["right"].rstrip(" .!").strip("\"'“”")
    return None if not right or right.endswith("?") or _DENIAL.match(right) else right


def proposal(turns: Sequence[Turn], message: str) -> Edit | None:
    """The edit that a message asks for, given the turns before it: the question that was answered
    wrongly, and the answer that is right. None if it corrects nothing."""
    target = corrected(message)
    if target is None:
        return None
    for turn in reversed(turns):
        if corrected(turn.user.text) is None:
            question = turn.user.text.strip()
            asked = turn.reply is not None and len(question) <= LONGEST
            return Edit(prompt=question, target=target) if asked else None
    return None
