"""Pacing of recordings and synthetic cameras: at their own frame rate or, offline, as fast as they are read.

At its own rate, a recording simulates a camera. The capture time of a frame is the time at which the frame is due, even
if the waiting thread wakes up late, so that a slow machine is visible as latency. Offline, no frame is late, and
capture times follow from the positions of the frames in the recording, so that results do not depend on the machine.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

from vision.capture.source import Grab, SkippedFrames, StreamInfo, not_open
from vision.types import FrameBuffer

FrameT = TypeVar("FrameT")

_LATE_NS: Final = 500_000_000
"""A pacer that is this late restarts its schedule, because a burst of old frames is not useful."""


class FramePacer:
    """Pacer that computes the due time and the timestamps of each frame.

    `media_ns` is the position of a frame in the recording, in ns.
    """

    def __init__(
        self,
        *,
        offline: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
        utc: Callable[[], int] = time.time_ns,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        """Create a pacer. If `offline` is True, every frame is due immediately.

        `clock` returns the monotonic time, and `utc` the time in UTC, both in ns. `wait` sleeps for a number of
        seconds, but at most until the event `interrupted` of the pacer is set.
        """
        self.offline = offline
        self.interrupted = threading.Event()
        self._clock = clock
        self._utc = utc
        self._wait = wait or self.interrupted.wait
        self._base_ns = 0
        self._base_utc_ns = 0
        self._started = False

    def start(self) -> None:
        """Restart the schedule, so that the next frame is due immediately."""
        self._started = False

    def due(self, media_ns: int, timeout_s: float) -> bool:
        """Wait until the frame at `media_ns` is due, but at most `timeout_s`. Return True if the frame is due."""
        now_ns = self._clock()
        if not self._started:
            self._started = True
            self._base_ns, self._base_utc_ns = now_ns - media_ns, self._utc() - media_ns
        if self.offline:
            return True
        if now_ns - self._base_ns - media_ns > _LATE_NS:
            self._base_ns = now_ns - media_ns
        due_ns = self._base_ns + media_ns
        if now_ns < due_ns:
            self._wait(min(timeout_s, (due_ns - now_ns) / 1e9))
        return self._clock() >= due_ns

    def stamp(self, media_ns: int) -> Grab:
        """Return the `Grab`, with the capture times, of a frame for which `due` returned True."""
        due_ns = self._base_ns + media_ns
        if self.offline:
            return Grab(due_ns, self._base_utc_ns + media_ns, "media", media_ns)
        late_ns = self._clock() - due_ns
        return Grab(due_ns, self._utc() - late_ns, "arrival", media_ns)


class PacedSource(ABC, Generic[FrameT]):
    """Base class of recordings and synthetic cameras. It implements `vision.capture.source.Source`."""

    def __init__(self, name: str | Path, pacer: FramePacer | None) -> None:
        """Create the source. `name` appears in errors. If `pacer` is None, frames are due at their own rate."""
        self._name = name
        self._pacer = pacer or FramePacer()
        self.skipped = SkippedFrames()
        self.live = False
        self._opened = False
        self._next: tuple[int, FrameT] | None = None  # the last result of `_read`; None after its frame was grabbed
        self._frame: FrameT | None = None  # the last grabbed frame

    def open(self) -> StreamInfo:
        self.close()
        info = self._open()
        self._opened = True
        self._pacer.start()
        return info

    def grab(self, timeout_s: float) -> Grab | None:
        if not self._opened:
            raise not_open(self._name, "grab")
        self._frame = None  # its memory can belong to a decoder, which `_read` calls
        if self._next is None:
            self._next = self._read()
        media_ns, frame = self._next
        if self._pacer.interrupted.is_set() or not self._pacer.due(media_ns, timeout_s):
            return None
        self._next, self._frame = None, frame
        return self._mark(self._pacer.stamp(media_ns), frame)

    def retrieve(self, out: FrameBuffer) -> None:
        if self._frame is None:
            raise not_open(self._name, "retrieve")
        self._write(self._frame, out)

    def interrupt(self) -> None:
        """Make current and future calls to `grab` return None."""
        self._pacer.interrupted.set()

    def close(self) -> None:
        self._opened = False
        self._next = self._frame = None
        self._close()

    @abstractmethod
    def _open(self) -> StreamInfo:
        """Open the recording at its first frame, and return the properties of the stream.

        An implementation that reads the first frame must store the result of `_read` in `_next`, so that the first
        `grab` returns this frame.
        """

    @abstractmethod
    def _read(self) -> tuple[int, FrameT]:
        """Read the next frame. Return its position in the recording, in ns, and the frame.

        Raises:
            EndOfStream: there are no more frames.
            SourceError: the recording cannot be read.
        """

    @abstractmethod
    def _write(self, frame: FrameT, out: FrameBuffer) -> None:
        """Write a frame into `out`, as `Source.retrieve` does."""

    def _mark(self, grab: Grab, _frame: FrameT, /) -> Grab:
        """Return `grab` with the properties of the frame that only the subclass knows, such as damage."""
        return grab

    @abstractmethod
    def _close(self) -> None:
        """Release all resources. This method must be idempotent, because `open` also calls it, before `_open`."""
