"""Slow work between turns, in a thread that steps aside the moment a turn begins."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread

log = logging.getLogger(__name__)


class Background:
    """Runs `work(cancel)` while nobody is talking.

    `work` must return soon after `cancel` is set and must be able to go on later. Without
    `start()`, nothing runs by itself, and `paused` costs nothing.
    """

    def __init__(self, work: Callable[[Event], object]) -> None:
        self._work = work
        self._cancel = Event()
        self._wake = Event()
        self._stopping = False
        self._turns = 0
        self._guard = Lock()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin to work, now and after every turn. May be called twice."""
        if self._thread is None:
            self._thread = Thread(target=self._run, name="palimpsest-background", daemon=True)
            self._thread.start()
        self._wake.set()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hold the work back for as long as any turn is running."""
        with self._guard:
            self._turns += 1
            self._cancel.set()
        try:
            yield
        finally:
            with self._guard:
                self._turns -= 1
                if not self._turns:
                    self._cancel.clear()
                    self._wake.set()

    def close(self) -> None:
        """Stop, and wait until the work has stepped aside."""
        self._stopping = True
        self._cancel.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if self._stopping:
                return
            self._wake.clear()
            if self._turns:
                continue
            try:
                self._work(self._cancel)
            except Exception:
                # The work is redone after the next turn; a chat must not end because of it.
                log.exception("background work failed")
