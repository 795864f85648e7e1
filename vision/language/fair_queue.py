"""`FairQueue` holds the questions that wait for the server, with a share for each camera."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from vision.language.messages import Question

_MOST_CAMERAS: Final = 4096  # cameras whose last turn is stored


class Waiting(Protocol):
    """An entry of the queue, whose question expires."""

    @property
    def question(self) -> Question: ...


_T = TypeVar("_T", bound=Waiting)


class FairQueue(Generic[_T]):
    """A queue with limits. It serves the camera that was asked about least recently, and its newest entry first.

    The queue stores the last turn of a camera even while no entry of the camera waits. Therefore, a camera that needs
    less than its share does not wait behind busy cameras.

    Beyond a limit, the camera with the most entries loses its oldest one, so a busy camera cannot displace the entries
    of a quiet one. The methods can be called by several threads.
    """

    def __init__(self, *, most: int, most_bytes: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """Create an empty queue.

        Args:
            most: maximum number of entries.
            most_bytes: maximum size of all entries in bytes.
            clock_ns: clock that tells when questions expire, in ns.
        """
        self.nbytes = 0
        self._most, self._most_bytes, self._clock_ns = most, most_bytes, clock_ns
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[tuple[_T, int]]] = {}
        """The entries of each camera and their sizes in bytes, oldest first."""
        self._turns: dict[str, int] = {}
        """Number of the last turn of each camera. The camera that was asked about least recently comes first."""
        self._turn = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, camera: str, entry: _T, nbytes: int) -> list[_T]:
        """Add an entry of `nbytes` bytes. Return the entries that were displaced, which can include the new one.

        Of the cameras with the most entries, the one that was asked about most recently loses an entry.
        """
        with self._changed:
            self._waiting.setdefault(camera, deque()).append((entry, nbytes))
            self._count += 1
            self.nbytes += nbytes
            displaced = []
            while self._count > self._most or (self.nbytes > self._most_bytes and self._count > 0):
                busiest = max(self._waiting, key=lambda name: (len(self._waiting[name]), self._turns.get(name, 0)))
                displaced.append(self._removed(busiest, 0))
            self._changed.notify()
            return displaced

    def take(self, timeout_s: float | None = None) -> _T | None:
        """Wait for an entry, remove it, and return it; None if none arrives in time.

        Return expired entries first. They do not count as a turn of their camera, because nobody asks them.
        `timeout_s` is the maximum time to wait in seconds; None means no limit.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._count > 0, timeout_s):
                return None
            if (expired := self._expired()) is not None:
                return self._removed(*expired)
            camera = min(self._waiting, key=lambda name: self._turns.get(name, 0))
            self._turn += 1
            self._turns.pop(camera, None)
            self._turns[camera] = self._turn
            if len(self._turns) > _MOST_CAMERAS:
                del self._turns[next(iter(self._turns))]
            return self._removed(camera, -1)

    def _expired(self) -> tuple[str, int] | None:
        """Return the camera and the position of an expired entry; None if there is none."""
        now_ns = self._clock_ns()
        for camera, entries in self._waiting.items():
            for position, (entry, _) in enumerate(entries):
                if entry.question.expires_ns <= now_ns:
                    return camera, position
        return None

    def _removed(self, camera: str, position: int) -> _T:
        entries = self._waiting[camera]
        entry, nbytes = entries[position]
        del entries[position]
        if not entries:
            del self._waiting[camera]
        self._count -= 1
        self.nbytes -= nbytes
        return entry
