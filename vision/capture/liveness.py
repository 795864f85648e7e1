"""Detection of silent and frozen cameras, with timeouts that adapt to each camera.

No fixed timeout suits all cameras: one that detects the failure of a 25 frames/s camera within seconds is too short for
a camera that sends one frame every ten seconds. A camera with a failed sensor continues to send the same frame. This
module uses only times and pixels, without a thread or a clock.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.types import FrameBuffer

_WINDOW: Final = 32  # arrivals that the frame rate is estimated from
_MIN_INTERVALS: Final = 5  # with fewer, the rate is unknown, because a source can start with a burst of old frames
_SILENT_INTERVALS: Final = 8
_SILENT_S: Final = 2.0  # encoders pause for 0.5 s at key frames, and Wi-Fi for longer
_SAMPLED_ROWS: Final = 64


@dataclass(slots=True)
class FrameRateEstimator:
    """Estimates the frame rate from the last 32 arrivals.

    It uses the mean and not the median, because many cameras send in bursts.
    """

    _arrivals_ns: deque[int] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def arrived(self, now_ns: int) -> None:
        """Record an arrival."""
        self._arrivals_ns.append(now_ns)

    def interval_s(self) -> float | None:
        """Return the mean time between two frames, or None before a few have arrived."""
        arrivals = self._arrivals_ns
        if len(arrivals) <= _MIN_INTERVALS:
            return None
        return (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1) / 1e9

    def fps(self, now_ns: int) -> float:
        """Return the frames per second. The value decreases while no frame arrives."""
        arrivals = self._arrivals_ns
        if len(arrivals) < 2:
            return 0.0
        interval_ns = (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1)
        overdue_ns = max(0.0, now_ns - arrivals[-1] - interval_ns)
        span_ns = arrivals[-1] - arrivals[0] + overdue_ns
        return (len(arrivals) - 1) * 1e9 / span_ns if span_ns > 0 else 0.0

    def clear(self) -> None:
        """Forget all arrivals, for a new connection."""
        self._arrivals_ns.clear()


@dataclass(frozen=True, slots=True)
class StallTimeouts:
    """The times without a frame after which a camera is frozen, and its connection is lost."""

    frozen_s: float
    lost_s: float

    @staticmethod
    def from_interval(interval_s: float | None, read_timeout_s: float) -> StallTimeouts:
        """Return the timeouts for a measured frame interval. The configured timeout is the maximum of both.

        With an unknown interval, the configured timeout applies. With a known one, the camera is frozen after eight
        intervals, at least 2 s, and lost after twice that.
        """
        if interval_s is None:
            return StallTimeouts(read_timeout_s, read_timeout_s)
        frozen_s = min(read_timeout_s, max(_SILENT_S, _SILENT_INTERVALS * interval_s))
        return StallTimeouts(frozen_s, min(read_timeout_s, 2 * frozen_s))


class FrozenFrameDetector:
    """Distinguishes a camera that repeats one frame from a camera with a static scene.

    Sensor noise changes every frame, so exact equality over time is the sign of a frozen camera. The detector compares
    64 whole rows: a clock that the camera draws into its frame is higher than the gaps between them. This takes 30 to
    100 us for 1080p; the whole frame would take twenty times that.

    A frozen camera stays `frozen` over reconnections until a different frame arrives.
    """

    def __init__(self, frozen_after_s: float | None) -> None:
        """Create the detector. If the time is None, no camera counts as frozen."""
        self._frozen_after_ns = None if frozen_after_s is None else int(frozen_after_s * 1e9)
        self._rows: NDArray[np.uint8] | None = None
        self._frame_since_ns: int | None = None
        self._pts_ns: int | None = None
        self._pts_since_ns: int | None = None
        self.frozen = False

    def connected(self) -> None:
        """Restart both timers for a new connection. The last frame is kept."""
        self._frame_since_ns = self._pts_since_ns = self._pts_ns = None

    def check(self, buffer: FrameBuffer, pts_ns: int | None, now_ns: int) -> str:
        """Compare the frame with the last one. Return the reason if the camera counts as frozen, else an empty text."""
        if self._frozen_after_ns is None:
            return ""
        if self._same_rows(buffer):
            self._frame_since_ns = now_ns if self._frame_since_ns is None else self._frame_since_ns
        else:
            self._frame_since_ns = now_ns
            self.frozen = False
        if pts_ns is None or pts_ns != self._pts_ns or self._pts_since_ns is None:
            self._pts_ns, self._pts_since_ns = pts_ns, now_ns
        if now_ns - self._frame_since_ns >= self._frozen_after_ns:
            self.frozen = True
            return f"the frame has not changed for {(now_ns - self._frame_since_ns) / 1e9:.1f} s"
        if now_ns - self._pts_since_ns >= self._frozen_after_ns:
            return f"the stream's time has not changed for {(now_ns - self._pts_since_ns) / 1e9:.1f} s"
        return ""

    def _same_rows(self, buffer: FrameBuffer) -> bool:
        step = max(1, buffer.shape[0] // _SAMPLED_ROWS)
        rows = buffer.read_rows(step // 2, step)  # only these are copied from a frame on the GPU
        if self._rows is None or self._rows.shape != rows.shape:
            self._rows = rows.copy()
            return False
        if np.array_equal(rows, self._rows):
            return True
        np.copyto(self._rows, rows)
        return False


@dataclass(slots=True)
class Backoff:
    """Exponential back-off with full jitter, so that cameras that were lost together do not reconnect together.

    Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. The jitter has a minimum here,
    because a camera that refuses connections answers immediately.
    """

    first_s: float = 0.5
    longest_s: float = 30.0
    shortest_s: float = 0.1
    random: random.Random = field(default_factory=random.Random)
    failures: int = 0

    def next_delay_s(self) -> float:
        """Count a failure, and return the time until the next attempt."""
        ceiling_s = min(self.longest_s, self.first_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return max(self.shortest_s, self.random.uniform(0.0, ceiling_s))

    def reset(self) -> None:
        """Reset the failures, because the camera has been healthy for a while."""
        self.failures = 0
