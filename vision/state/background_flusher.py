"""Waiting for the disk where nobody else waits: one thread that forces what was written, for all cameras together.

A memory card may take seconds for what others do in milliseconds, and results must not wait for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundFlusher:
    """Does jobs in a thread of its own, each at most once every `every_s`, and none that nobody has asked for."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._jobs: dict[Callable[[], None], None] = {}  # in the order in which they were asked for
        self._lock = threading.Lock()  # of the jobs
        self._asked, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="counters", daemon=True)
        self._thread.start()

    def soon(self, job: Callable[[], None]) -> None:
        """Do it within `every_s` from now; asked for again before that, it is still done once."""
        with self._lock:
            self._jobs[job] = None
        self._asked.set()

    def close(self) -> None:
        """End the thread, which finishes the job that it is at. What else was asked for is not done. Idempotent."""
        self._ending.set()
        self._asked.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            self._asked.wait()
            if self._ending.wait(self._every_s):
                return
            with self._lock:
                jobs, self._jobs = self._jobs, {}
                self._asked.clear()
            for job in jobs:
                if self._ending.is_set():
                    return
                job()
