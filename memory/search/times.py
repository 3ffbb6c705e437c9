"""What a question says of when: dates, months, years, and times told from today.

Knows nothing of entries but when they were made. English only.
"""

from __future__ import annotations

import calendar
import math
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

AFTERGLOW_DAYS = 10.0
"""One speaks of a thing for a while after it happened: what is said so many days after counts 1/e
of what is said then."""

_MONTHS = {name.lower(): at for at, name in enumerate(calendar.month_name) if name} | {
    name.lower(): at for at, name in enumerate(calendar.month_abbr) if name
}
_DAYS = {name.lower(): at for at, name in enumerate(calendar.day_name)}
_NUMBERS = {
    name: at
    for at, name in enumerate(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 1
    )
} | {"a": 1, "an": 1, "a few": 3, "a couple of": 2, "several": 4}
_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_COUNT = "|".join(sorted((*_NUMBERS, r"\d{1,3}"), key=len, reverse=True))
_SEASONS = {"spring": 3, "summer": 6, "autumn": 9, "fall": 9, "winter": 12}

_FORMS = (
    ("iso", r"(?P<y>\d{4})-(?P<m>\d\d)-(?P<d>\d\d)"),
    ("day", rf"(?P<M>{_MONTH})\.? (?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?:,? (?P<y>\d{{4}}))?"),
    ("day", rf"(?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<M>{_MONTH})\.?(?:,? (?P<y>\d{{4}}))?"),
    ("month", rf"(?P<M>{_MONTH})\.?,? (?P<y>\d{{4}})"),
    ("month", rf"(?:in|during|since|until|last|this|of) (?P<M>{_MONTH})"),
    ("season", rf"(?P<s>{'|'.join(_SEASONS)})(?: of)? (?P<y>\d{{4}})"),
    ("year", r"(?:in|during|of|since) (?P<y>(?:19|20)\d\d)"),
    ("ago", rf"(?P<n>{_COUNT}) (?P<u>day|week|month|year)s? ago"),
    ("last", r"(?:last|past|previous) (?P<u>week|month|year|weekend)"),
    ("this", r"this (?P<u>week|month|year)"),
    ("named", r"(?P<w>today|yesterday)"),
    ("weekday", rf"(?:last|on|this past) (?P<w>{'|'.join(_DAYS)})"),
)
_PATTERNS = [(kind, re.compile(rf"\b{form}\b", re.IGNORECASE)) for kind, form in _FORMS]
_UNIT_DAYS = {"day": 1, "week": 7, "weekend": 7, "month": 30, "year": 365}


class Interval(NamedTuple):
    """From `start` to just before `end`, in UTC."""

    start: datetime
    end: datetime


def intervals(query: str, now: datetime) -> Iterator[Interval]:
    """The times that a query names, seen from `now`; a stretch of text is read once, in the form
    that says most."""
    taken: list[tuple[int, int]] = []
    for kind, pattern in _PATTERNS:
        for match in pattern.finditer(query):
            if any(match.start() < end and start < match.end() for start, end in taken):
                continue
            found = _read(kind, {k: v for k, v in match.groupdict().items() if v}, now)
            if found is not None:
                taken.append(match.span())
                yield found


def closeness(created: str, times: Sequence[Interval]) -> float:
    """1 within one of the times, fading after it, 0 before it; `created` is an ISO time."""
    if not times:
        return 0.0
    at = datetime.fromisoformat(created)
    return max(_close(at, time) for time in times)


def _close(at: datetime, time: Interval) -> float:
    if at < time.start:
        return 0.0
    late = max((at - time.end).total_seconds(), 0.0) / 86_400
    return math.exp(-late / AFTERGLOW_DAYS)


def _read(kind: str, parts: dict[str, str], now: datetime) -> Interval | None:
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    year = int(parts["y"]) if "y" in parts else None
    month = _MONTHS[parts["M"].lower()] if "M" in parts else int(parts.get("m", 0))
    try:
        if kind in ("iso", "day"):
            return _span(_past(today, month, int(parts["d"]), year), 1)
        if kind == "month":
            first = _past(today, month, 1, year)
            return _span(first, calendar.monthrange(first.year, first.month)[1])
        if kind == "season" and year is not None:
            return _span(today.replace(year=year, month=_SEASONS[parts["s"].lower()], day=1), 92)
        if kind == "year" and year is not None:
            return _span(today.replace(year=year, month=1, day=1), 365)
    except ValueError:  # the 30th of February
        return None
    return _told_from(today, kind, parts)


def _told_from(today: datetime, kind: str, parts: dict[str, str]) -> Interval:
    word = (parts.get("w") or parts.get("u") or "").lower()
    if kind == "named":
        return _span(today - timedelta(days=int(word == "yesterday")), 1)
    if kind == "weekday":
        back = (today.weekday() - _DAYS[word]) % 7 or 7
        return _span(today - timedelta(days=back), 1)
    days = _UNIT_DAYS[word]
    if kind == "this":
        return _span(today - timedelta(days=days - 1), days)
    if kind == "last":
        return _span(today - timedelta(days=2 * days - 1), 2 * days - 1)
    count = parts["n"].lower()
    away = days * (_NUMBERS[count] if count in _NUMBERS else int(count))
    slack = max(1, days // 2)  # "two weeks ago" is no date
    return _span(today - timedelta(days=away + slack), 2 * slack + 1)


def _past(today: datetime, month: int, day: int, year: int | None) -> datetime:
    """That day of that year, or of the latest year in which it is not ahead."""
    if year is not None:
        return today.replace(year=year, month=month, day=day)
    found = today.replace(month=month, day=day)
    return found if found <= today else found.replace(year=today.year - 1)


def _span(start: datetime, days: int) -> Interval:
    return Interval(start, start + timedelta(days=days))
