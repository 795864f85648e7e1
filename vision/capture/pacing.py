"""The pace of recordings and synthetic cameras: at their own rate, or offline, as fast as they are read.

At its own rate, a recording stands for a camera. The time of a frame is when it is due, however late the waiting
thread runs, so that a machine that is too slow shows as latency. Offline, no frame is late. The time of a frame is its
position in the recording, so that results do not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vision.capture.source import Grab

_LATE_NS: Final = 500_000_000
"""A pacer this late restarts its schedule: after a slow reader, a burst of old frames is not useful."""


class FramePacer:
    """The due time and the timestamp of each frame of a recording. `media_ns` is its position in the recording."""

    def __init__(
        self,
        *,
        offline: bool,
        clock: Callable[[], int],
        utc: Callable[[], int],
        wait: Callable[[float], object],
    ) -> None:
        """Create a pacer. `wait` sleeps for a number of seconds, or until the source is interrupted."""
        self._offline = offline
        self._clock = clock
        self._utc = utc
        self._wait = wait
        self._base_ns = 0
        self._base_utc_ns = 0
        self._started = False

    def start(self) -> None:
        """Restart the schedule with the next frame."""
        self._started = False

    def due(self, media_ns: int, timeout_s: float) -> bool:
        """Wait until the frame is due, at most `timeout_s`. Return False if it is not yet due."""
        now_ns = self._clock()
        if not self._started:
            self._started = True
            self._base_ns, self._base_utc_ns = now_ns - media_ns, self._utc() - media_ns
        if self._offline:
            return True
        if now_ns - self._base_ns - media_ns > _LATE_NS:
            self._base_ns = now_ns - media_ns
        due_ns = self._base_ns + media_ns
        if now_ns < due_ns:
            self._wait(min(timeout_s, (due_ns - now_ns) / 1e9))
        return self._clock() >= due_ns

    def stamp(self, media_ns: int) -> Grab:
        """Return the times of the frame for which `due` returned True."""
        due_ns = self._base_ns + media_ns
        if self._offline:
            return Grab(due_ns, self._base_utc_ns + media_ns, "media", media_ns)
        late_ns = self._clock() - due_ns
        return Grab(due_ns, self._utc() - late_ns, "arrival", media_ns)
