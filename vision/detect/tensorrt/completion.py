"""Waiting for the GPU with a time limit, without burning a core and without sleeping past the end.

CUDA's own wait knows no limit. Asking all the time takes a core; sleeping a fixed time adds it to every batch. But
batches of one size take much the same time, so the first look is shortly before the last ones were done.

The quicker of the last two batches counts. A pause of the machine makes one batch late by 100 ms and more: by a moving
average, the batches after it were waited for too long, for a second and more, and the cameras dropped their frames.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from vision.gpu.cuda import Event, Resource, Stream

_POLL_NS: Final = 20_000
_LONGEST_POLL_NS: Final = 5_000_000
_EARLY: Final = 0.9  # of the usual time, for the first look
_UNKNOWN: Final = (0.0, 0.0)
_PR_SET_TIMERSLACK: Final = 29


class _Precision(threading.local):
    """Whether the thread has asked to be woken on time."""

    asked = False


_precision = _Precision()


def _sleep_precisely(seconds: float) -> None:
    """Sleep, and wake on time: Linux adds 50 µs to each sleep otherwise, a fifth of a small batch."""
    if not _precision.asked:
        _precision.asked = True
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1_000, 0, 0, 0)  # nanoseconds
    time.sleep(seconds)


class Completion(Resource):
    """The end of a batch on a stream."""

    def __init__(
        self,
        make_event: Callable[[], Event] = Event,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = _sleep_precisely,
    ) -> None:
        """`sleep` takes seconds and moves `clock` on."""
        self._event = make_event()
        self._clock = clock
        self._sleep = sleep
        self._size = 0
        self._recorded_ns = 0
        self._running_ns: int | None = None  # when a look last found it running
        self._last_two_ns: dict[int, tuple[float, float]] = {}  # by batch size
        self._opened = True

    def record(self, stream: Stream, size: int) -> None:
        """A batch of `size` has just been queued on `stream`."""
        self._event.record(stream)
        self._size = size
        self._recorded_ns = self._clock()
        self._running_ns = None

    def before(self, stream: Stream) -> None:
        """What is queued on `stream` from now on begins after the batch. The host does not wait."""
        stream.wait(self._event)

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is done (True), at most so long (False). Releases the GIL.

        Raises:
            DeviceError: the work failed.
        """
        if self._done():
            return True
        deadline_ns = self._clock() + int(timeout_s * 1e9)
        first_look_ns = self._recorded_ns + _EARLY * min(self._last_two_ns.get(self._size, _UNKNOWN))
        while (now_ns := self._clock()) < deadline_ns:
            poll_ns = min(max((now_ns - self._recorded_ns) / 64, _POLL_NS), _LONGEST_POLL_NS)
            self._sleep(min(max(first_look_ns - now_ns, poll_ns), deadline_ns - now_ns) / 1e9)
            if self._done():
                return True
        return False

    def _done(self) -> bool:
        done, now_ns = self._event.reached(), self._clock()
        if not done:
            self._running_ns = now_ns
        elif self._running_ns is not None:  # one that nobody waited for may have been done for long
            self._learn((self._running_ns + now_ns) / 2 - self._recorded_ns)
        return done

    def _learn(self, took_ns: float) -> None:
        """Half way between two looks: after a sleep that was too long, the next one is half as long."""
        _, last_ns = self._last_two_ns.get(self._size, _UNKNOWN)
        self._last_two_ns[self._size] = last_ns, took_ns

    def _release(self) -> None:
        self._event.close()
