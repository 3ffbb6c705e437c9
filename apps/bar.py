"""The bar of something long, on stderr, gone when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from .output import err

if TYPE_CHECKING:
    from ..agent.jobs import Job
    from ..memory.reading import Progress as Tell


T = TypeVar("T")


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


def waited(job: Job[T], title: str = "learning") -> T:
    """Show how far a job is until it has ended; Ctrl-C cancels it.

    Raises:
        Cancelled, or whatever the job raises.
    """
    with bar(title, TaskProgressColumn()) as tell:
        while not job.done:
            try:
                if job.progress[1]:
                    tell(*job.progress)
                job.wait(0.1)
            except KeyboardInterrupt:
                job.cancel()
    return job.result()
