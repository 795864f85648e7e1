"""`FairQueue` holds the questions that wait for the server, and gives each camera a fair share of the server."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from vision.language.messages import Question

_MOST_CAMERAS: Final = 4096  # cameras whose last turn is stored


class Waiting(Protocol):
    """An entry of the queue, with a question that has an expiry time."""

    @property
    def question(self) -> Question: ...


_T = TypeVar("_T", bound=Waiting)


class FairQueue(Generic[_T]):
    """A queue of limited length. The next entry is the newest entry of the camera whose most recent turn is oldest.

    The queue remembers the most recent turn of a camera even while no entry of the camera waits. Therefore, a camera
    that needs less than its share does not wait behind busy cameras. Of the cameras that had no turn yet, the camera
    that has added the fewest entries comes first, so that shares are fair from the first turn on.

    Beyond the limit, the camera with the most entries loses its oldest entry, so a busy camera cannot displace the
    entries of a quiet camera. Several threads can call the methods.
    """

    def __init__(self, *, most: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """Create an empty queue.

        Args:
            most: maximum number of entries.
            clock_ns: function that returns the time in ns, on the clock of the questions' `expires_ns`.
        """
        self._most, self._clock_ns = most, clock_ns
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[_T]] = {}
        """The entries of each camera, oldest first."""
        self._turns: dict[str, int] = {}
        """Number of the last turn of each camera. The camera with the oldest turn comes first."""
        self._turn = 0
        self._arrived: dict[str, int] = {}
        """Number of entries so far of each camera that had no turn yet."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, camera: str, entry: _T) -> list[_T]:
        """Add an entry. Return the entries that were displaced, which can include the new entry.

        If several cameras have the most entries, the camera with the most recent turn loses an entry. If none of these
        cameras had a turn yet, the camera that has added the most entries loses an entry.
        """
        with self._changed:
            if camera not in self._turns:
                _put(self._arrived, camera, self._arrived.get(camera, 0) + 1)
            self._waiting.setdefault(camera, deque()).append(entry)
            self._count += 1
            displaced = []
            while self._count > self._most:
                busiest = max(self._waiting, key=lambda name: (len(self._waiting[name]), *self._rank(name)))
                displaced.append(self._removed(busiest, 0))
            self._changed.notify()
            return displaced

    def take(self, timeout_s: float | None = None) -> _T | None:
        """Wait for an entry, remove it, and return it. Return None if no entry arrives in time.

        Return expired entries first. An expired entry does not count as a turn of its camera, because its question is
        not asked. `timeout_s` is the maximum time to wait in seconds. None means no limit.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._count > 0, timeout_s):
                return None
            if (expired := self._expired()) is not None:
                return self._removed(*expired)
            camera = min(self._waiting, key=self._rank)
            self._turn += 1
            self._arrived.pop(camera, None)
            _put(self._turns, camera, self._turn)
            return self._removed(camera, -1)

    def take_expired(self) -> _T | None:
        """Remove an expired entry, and return it. Return None if no entry has expired."""
        with self._changed:
            expired = self._expired()
            return None if expired is None else self._removed(*expired)

    def remove(self, camera: str, entry: _T) -> bool:
        """Remove an entry of a camera. Return False if the entry is no longer in the queue."""
        with self._changed:
            for position, each in enumerate(self._waiting.get(camera, ())):
                if each is entry:
                    self._removed(camera, position)
                    return True
            return False

    def _rank(self, camera: str) -> tuple[int, int]:
        """Return a rank that is lower for a camera with an older turn, and lowest for a camera without a turn."""
        return self._turns.get(camera, 0), self._arrived.get(camera, 0)

    def _expired(self) -> tuple[str, int] | None:
        """Return the camera and the position of an expired entry. Return None if no entry has expired."""
        now_ns = self._clock_ns()
        for camera, entries in self._waiting.items():
            for position, entry in enumerate(entries):
                if entry.question.expires_ns <= now_ns:
                    return camera, position
        return None

    def _removed(self, camera: str, position: int) -> _T:
        entries = self._waiting[camera]
        entry = entries[position]
        del entries[position]
        if not entries:
            del self._waiting[camera]
        self._count -= 1
        return entry


def _put(numbers: dict[str, int], camera: str, number: int) -> None:
    """Store a number for a camera as the newest entry. If `numbers` has too many cameras, remove the oldest entry."""
    numbers.pop(camera, None)
    numbers[camera] = number
    if len(numbers) > _MOST_CAMERAS:
        del numbers[next(iter(numbers))]
