"""The bar of a long reading, on stderr, gone when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from .output import err

if TYPE_CHECKING:
    from ..memory.reading import Progress as Tell


@contextmanager
def bar(title: str, counted: ProgressColumn | None = None) -> Iterator[Tell]:
    """A function to be told how many of how many are done; `counted` shows them, by default as
    plain numbers."""
    shown = counted or MofNCompleteColumn()
    columns = (TextColumn(title), BarColumn(), shown, TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(title, total=None)

        def tell(done: int, expected: int) -> None:
            progress.update(task, completed=done, total=expected)

        yield tell
