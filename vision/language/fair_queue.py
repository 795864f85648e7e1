"""`FairQueue` holds the questions that wait for the server, with a share for each camera."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import Generic, TypeVar

_T = TypeVar("_T")


class FairQueue(Generic[_T]):
    """A queue with limits. It serves the cameras in turn, and the newest entry of each camera first.

    Beyond a limit, the camera with the most entries loses its oldest one, so a busy camera cannot displace the entries
    of a quiet one. The methods can be called by several threads.
    """

    def __init__(self, *, most: int, most_bytes: int) -> None:
        self.nbytes = 0
        self._most, self._most_bytes = most, most_bytes
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, deque[tuple[_T, int]]] = OrderedDict()
        """The entries of each camera and their sizes in bytes, oldest first. The next camera comes first."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, camera: str, entry: _T, nbytes: int) -> list[_T]:
        """Add an entry of `nbytes` bytes. Return the entries that were displaced, which can include the new one."""
        with self._changed:
            self._waiting.setdefault(camera, deque()).append((entry, nbytes))
            self._count += 1
            self.nbytes += nbytes
            displaced = []
            while self._count > self._most or (self.nbytes > self._most_bytes and self._count > 0):
                busiest = max(self._waiting, key=lambda name: len(self._waiting[name]))
                displaced.append(self._taken(busiest, oldest=True))
            self._changed.notify()
            return displaced

    def take(self, timeout_s: float | None = None) -> _T | None:
        """Wait for an entry, remove it, and return it; None if none arrives in time.

        `timeout_s` is the maximum time to wait in seconds; None means no limit.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._count > 0, timeout_s):
                return None
            camera = next(iter(self._waiting))
            entry = self._taken(camera, oldest=False)
            if camera in self._waiting:
                self._waiting.move_to_end(camera)
            return entry

    def _taken(self, camera: str, *, oldest: bool) -> _T:
        entries = self._waiting[camera]
        entry, nbytes = entries.popleft() if oldest else entries.pop()
        if not entries:
            del self._waiting[camera]
        self._count -= 1
        self.nbytes -= nbytes
        return entry
