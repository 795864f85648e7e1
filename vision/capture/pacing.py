"""The pace of what was recorded or is generated: as it was, for a demonstration, or as fast as it is read.

Played at its own pace, a recording stands for a camera: a frame comes when it is due, and that is its time, however
late the thread that waits for it gets its turn; so a machine that is too slow shows as latency. Read offline, every
frame counts and none is late: its time is its place in the recording, so that results do not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vision.capture.source import Grab

_LATE_NS: Final = 500_000_000
"""A player this late starts its schedule anew: the reader was slow, and a burst of old frames helps nobody."""


class FramePacer:
    """When each frame of a recording is due, and which time it carries. Its place in the recording is `media_ns`."""

    def __init__(
        self,
        *,
        offline: bool,
        clock: Callable[[], int],
        utc: Callable[[], int],
        wait: Callable[[float], object],
    ) -> None:
        """`wait` sleeps for so many seconds, or until its source is interrupted."""
        self._offline = offline
        self._clock = clock
        self._utc = utc
        self._wait = wait
        self._base_ns = 0
        self._base_utc_ns = 0
        self._started = False

    def start(self) -> None:
        """The next frame is the first one."""
        self._started = False

    def due(self, media_ns: int, timeout_s: float) -> bool:
        """Wait for the frame's time, at most `timeout_s`. False: it is not yet due."""
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
        """The frame for which `due` was True, of the moment at which it was due."""
        due_ns = self._base_ns + media_ns
        if self._offline:
            return Grab(due_ns, self._base_utc_ns + media_ns, "media", media_ns)
        late_ns = self._clock() - due_ns
        return Grab(due_ns, self._utc() - late_ns, "arrival", media_ns)
