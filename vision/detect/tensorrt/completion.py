"""Classes that wait for the end of a batch with a time limit, and that limit how many batches run at the same time.

CUDA's own wait has no time limit. Polling without a pause occupies a core, and a fixed sleep delays every batch.
Batches of the same size take nearly the same time. Therefore, the first poll is shortly before the expected end.

The expected duration of a batch is the shorter of the previous two durations, because a stall can delay a batch by
100 ms or more. With a moving average, the waits were too long for more than a second after a stall, and frames were
dropped.
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
_EARLY: Final = 0.9  # fraction of the expected time before the first poll
_UNKNOWN: Final = (0.0, 0.0)
_PR_SET_TIMERSLACK: Final = 29
_MIN_BATCHES: Final = 3  # with fewer, the GPU is idle between layers and at the end of kernels


_precise = threading.local()  # has the attribute `is_set` after the thread's timer slack is set


def _sleep_precisely(seconds: float) -> None:
    """Sleep with a timer slack of 1 µs on Linux. The default, 50 µs, is a fifth of the time of a small batch."""
    if not hasattr(_precise, "is_set"):
        _precise.is_set = True
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1_000, 0, 0, 0)  # nanoseconds
    time.sleep(seconds)


class Completion(Resource):
    """Event at the end of a batch on a stream. Past durations of batches of the same size determine when to poll."""

    def __init__(
        self,
        make_event: Callable[[], Event] = Event,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = _sleep_precisely,
    ) -> None:
        """Create the event. `clock` returns the time in ns. `sleep` waits for a duration in seconds."""
        self._event = make_event()
        self._clock = clock
        self._sleep = sleep
        self._size = 0
        self._recorded_ns = 0
        self._running_ns: int | None = None  # time of the last poll that found the batch running
        self._last_two_ns: dict[int, tuple[float, float]] = {}  # by batch size
        self._opened = True

    def record(self, stream: Stream, size: int) -> None:
        """Record the event on `stream`. Call this method directly after queueing a batch of `size` frames there."""
        self._event.record(stream)
        self._size = size
        self._recorded_ns = self._clock()
        self._running_ns = None

    def before(self, stream: Stream) -> None:
        """Make work that is queued on `stream` after this call wait until the batch has ended.

        The host does not wait.
        """
        stream.wait(self._event)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the batch for at most `timeout_s` seconds. Return True if it has ended. Waiting releases the GIL.

        Raises:
            DeviceError: the batch or previous work on the GPU failed.
        """
        if self._done():
            return True
        deadline_ns = self._clock() + int(timeout_s * 1e9)
        first_poll_ns = self._recorded_ns + _EARLY * min(self._last_two_ns.get(self._size, _UNKNOWN))
        while (now_ns := self._clock()) < deadline_ns:
            poll_ns = min(max((now_ns - self._recorded_ns) / 64, _POLL_NS), _LONGEST_POLL_NS)
            self._sleep(min(max(first_poll_ns - now_ns, poll_ns), deadline_ns - now_ns) / 1e9)
            if self._done():
                return True
        return False

    def _done(self) -> bool:
        done, now_ns = self._event.reached(), self._clock()
        if not done:
            self._running_ns = now_ns
        elif self._running_ns is not None:  # otherwise, the batch may have ended much earlier
            # The midpoint between two polls halves the next sleep if this sleep was too long.
            self._learn((self._running_ns + now_ns) / 2 - self._recorded_ns)
        return done

    def _learn(self, took_ns: float) -> None:
        """Store the duration of the batch in ns. Keep only the last two durations for each batch size."""
        _, last_ns = self._last_two_ns.get(self._size, _UNKNOWN)
        self._last_two_ns[self._size] = last_ns, took_ns

    def _release(self) -> None:
        self._event.close()


class ConcurrencyLimit:
    """Limit on the number of batches that the GPU computes at the same time. Only one thread may use it.

    Batches in flight overlap: one is copied while others are computed. Each layer reads the results of the previous
    layer. If too many batches are computed at the same time, they evict each other's results from the GPU's cache, and
    become slower.

    On an H100 (50 MB of cache) with six batches of 32 in flight, a batch finishes every 0.81 ms if all are computed at
    the same time, and every 0.78 ms if only three are. Many batches of 1 fit into the cache, and are fastest without a
    limit.
    """

    def __init__(self, cache_bytes: int, frame_bytes: int) -> None:
        """Create the limit for a GPU.

        Args:
            cache_bytes: size of the GPU's last-level cache, in bytes.
            frame_bytes: size of the network's input for one frame, in bytes.
        """
        self._frames = cache_bytes // max(frame_bytes, 1)
        self._order: list[Completion] = []  # ends of the newest batch of each slot, in the order of queueing

    def at_once(self, batch: int) -> int:
        """Return the maximum number of batches of this size that are computed at the same time."""
        return max(_MIN_BATCHES, self._frames // batch)

    def begin(self, stream: Stream, batch: int) -> None:
        """Make the next batch on `stream` wait, on the GPU, until fewer than `at_once` batches are being computed."""
        count = self.at_once(batch)
        if len(self._order) >= count:
            self._order[-count].before(stream)

    def queued(self, end: Completion) -> None:
        """Register the batch that was queued most recently. `end` is reached when this batch ends."""
        if end in self._order:
            self._order.remove(end)
        self._order.append(end)
