"""The lines of an export: a header, rows of the ledger as JSON, and an end that vouches for all.

One format for a whole ledger and for a part of one. Knows nothing of what is done with the rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from itertools import chain, groupby, islice
from typing import Any

from sqlalchemy.exc import IntegrityError

from ..errors import InputError, PalimpsestError
from .chain import canonical, stamp
from .schema import Base, ErasureRow, EventRow, RecordRow, SessionRow, TraceRow, UtcDateTime

FORMAT = 1

PAGE = 256
"""Rows read or written at once."""

ROWS: Mapping[str, type[Base]] = {
    "session": SessionRow,
    "record": RecordRow,
    "event": EventRow,
    "trace": TraceRow,
    "erasure": ErasureRow,
}
"""What a line may be, in the order in which they come."""

_TIMES = frozenset(
    column.name
    for row in ROWS.values()
    for column in row.__table__.columns
    if isinstance(column.type, UtcDateTime)
)

Values = dict[str, Any]


def written(header: Values, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[bytes]:
    """The lines of a file, each with its end of line."""
    seal, count = hashlib.sha256(), -1
    for kind, values in chain([("ledger", {"format": FORMAT, **header})], rows):
        plain = {
            name: stamp(value) if isinstance(value, datetime) else value
            for name, value in values.items()
        }
        # ASCII throughout: no character in a text can be taken for an end of line.
        line = canonical({"is": kind, **plain}, f"a {kind}").encode() + b"\n"
        seal.update(line)
        count += 1
        yield line
    end = {"is": "end", "rows": count, "sha256": seal.hexdigest()}
    yield canonical(end, "the end").encode() + b"\n"


class Reader:
    """The rows of a file, as `written` made it. To be iterated over once.

    Args:
        lines: with their ends of line.

    Raises:
        InputError: it is no export, or one of a newer version; while iterating, it is cut short,
            was changed, or has a row that is none.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self._seal = hashlib.sha256()
        self._number = 0
        self.header = self._next()
        if self.header.get("is") != "ledger":
            raise InputError("this is no export of a ledger: its first line does not say so")
        if self.header.get("format") != FORMAT:
            raise InputError(
                f"this export has format {self.header.get('format')!r} and this version reads"
                f" {FORMAT}; install a newer palimpsest"
            )

    def batches(self) -> Iterator[tuple[str, list[Values]]]:
        """Rows of one kind, up to `PAGE` at a time, with their times as times."""
        for kind, run in groupby(self._rows(), key=lambda values: str(values.pop("is"))):
            while part := list(islice(run, PAGE)):
                yield kind, part

    @contextmanager
    def explained(self) -> Iterator[None]:
        """What a row's values break, as an InputError that says where it is."""
        try:
            yield
        except PalimpsestError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"the export cannot be read up to line {self._number}: {error!r}; export again"
            ) from error
        except IntegrityError as error:
            raise InputError(
                f"up to line {self._number}, the export has a row twice, or one that refers to"
                " another that is not in it; export again"
            ) from error

    def _rows(self) -> Iterator[Values]:
        while True:
            before = self._seal.hexdigest()
            values = self._next()
            if values.get("is") == "end":
                if (values.get("rows"), values.get("sha256")) != (self._number - 2, before):
                    raise InputError("the export was changed after it was written; export again")
                return
            if values.get("is") not in ROWS:
                raise InputError(f"line {self._number} of the export is none of {list(ROWS)}")
            for name in _TIMES & values.keys():
                if values[name] is not None:
                    with self.explained():
                        values[name] = datetime.fromisoformat(values[name])
            yield values

    def _next(self) -> Values:
        self._number += 1
        try:
            line = next(self._lines, b"")
            values = json.loads(line)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise InputError(
                f"line {self._number} of the export is missing or damaged; it was cut short, or is"
                " no export of a ledger"
            )
        self._seal.update(line)
        return values
