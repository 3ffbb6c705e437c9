"""Slow work beside turns: a thread that tells how far it is, can be cancelled, and has a result."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread
from typing import Generic, TypeVar

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called as (steps done, steps expected)."""


class Job(Generic[T]):
    """Work that has begun.

    Args:
        work: called in a thread as `work(progress, cancel)`; it has to end soon after `cancel` is
            set, and to leave nothing half done.
    """

    def __init__(self, work: Callable[[Progress, Event], T]) -> None:
        self._work = work
        self._cancel = Event()
        self._progress = (0, 0)
        self._result: list[T] = []
        self._error: BaseException | None = None
        self._ended = Event()  # a join that Ctrl-C interrupts takes the thread for ended
        self._thread = Thread(target=self._run, name="palimpsest-job", daemon=True)
        self._thread.start()

    @property
    def progress(self) -> tuple[int, int]:
        """Steps done and steps expected; (0, 0) before the first."""
        return self._progress

    @property
    def done(self) -> bool:
        """Whether it has ended, however it did."""
        return self._ended.is_set()

    def wait(self, timeout: float | None = None) -> None:
        """Until it has ended, or for `timeout` seconds."""
        self._ended.wait(timeout)

    def cancel(self) -> None:
        """Ask it to end; `result` says what became of it."""
        self._cancel.set()

    def result(self, timeout: float | None = None) -> T:
        """Wait for what came of it; raises what it raised.

        Raises:
            TimeoutError: it has not ended within `timeout` seconds, and goes on.
        """
        self.wait(timeout)
        if not self.done:
            raise TimeoutError(f"the job has not ended within {timeout} s; it goes on")
        if self._error is not None:
            raise self._error
        return self._result[0]

    def close(self) -> None:
        """Cancel it, and wait until it has ended. May be called twice."""
        self.cancel()
        self._ended.wait()

    def _run(self) -> None:
        try:
            self._result.append(self._work(self._tell, self._cancel))
        except BaseException as error:  # it is raised where the result is asked for
            self._error = error
        finally:
            self._ended.set()

    def _tell(self, done: int, expected: int) -> None:
        self._progress = (done, expected)
