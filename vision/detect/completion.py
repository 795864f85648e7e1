"""Waiting for the GPU with a time limit, without burning a core and without sleeping past the end.

CUDA's own wait knows no limit. Asking all the time takes a core; sleeping a fixed time adds it to every batch. But
batches of one size take much the same time, so the first look is when the last ones were done.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from typing import Final

from vision.cuda import Event, Owned, Stream

_POLL_NS: Final = 20_000
_LONGEST_POLL_NS: Final = 5_000_000
_EARLY: Final = 0.9  # of the usual time, for the first look
_WEIGHT: Final = 0.2  # of a new batch in the usual time
_PR_SET_TIMERSLACK: Final = 29


class Completion(Owned):
    """The end of a batch on a stream."""

    def __init__(self) -> None:
        self._event = Event()
        self._size = 0
        self._recorded_ns = 0
        self._usual_ns: dict[int, float] = {}  # by batch size
        self._opened = True

    def record(self, stream: Stream, size: int) -> None:
        """A batch of `size` has just been queued on `stream`."""
        self._event.record(stream)
        self._size = size
        self._recorded_ns = time.monotonic_ns()

    def before(self, stream: Stream) -> None:
        """What is queued on `stream` from now on begins after the batch. The host does not wait."""
        stream.wait(self._event)

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is done (True), at most so long (False). Releases the GIL.

        Raises:
            DeviceError: the work failed.
        """
        if self._event.reached():
            return self._learn()
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        _sleep_precisely()
        while (now_ns := time.monotonic_ns()) < deadline_ns:
            passed_ns = now_ns - self._recorded_ns
            usual_ns = _EARLY * self._usual_ns.get(self._size, 0.0) - passed_ns
            pause_ns = max(usual_ns, min(max(passed_ns / 64, _POLL_NS), _LONGEST_POLL_NS))
            time.sleep(min(pause_ns, deadline_ns - now_ns) / 1e9)
            if self._event.reached():
                return self._learn()
        return False

    def _learn(self) -> bool:
        took_ns = time.monotonic_ns() - self._recorded_ns
        usual_ns = self._usual_ns.get(self._size, took_ns)
        self._usual_ns[self._size] = usual_ns + _WEIGHT * (took_ns - usual_ns)
        return True

    def _release(self) -> None:
        self._event.close()


class _Precision(threading.local):
    """Whether the thread has asked to be woken on time."""

    asked = False


_precision = _Precision()


def _sleep_precisely() -> None:
    """Let this thread's sleeps end on time: Linux adds 50 µs to each otherwise, a fifth of a small batch."""
    if _precision.asked:
        return
    _precision.asked = True
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1_000, 0, 0, 0)  # nanoseconds
