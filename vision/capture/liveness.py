"""Detection of silent and frozen cameras, with timeouts that adapt to each camera, and the back-off of reconnections.

No fixed timeout suits all cameras. A timeout of a few seconds suits a camera that sends 25 frames/s, but is too short
for a camera that sends one frame every ten seconds. A timeout also does not detect a camera with a failed sensor, which
continues to send the same frame.

This module starts no thread and reads no clock. Its callers pass times and pixels.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.types import FrameBuffer

_WINDOW: Final = 32  # number of arrivals from which the frame rate is estimated
_MIN_INTERVALS: Final = 5  # with fewer, the rate is unknown, because a source can start with a burst of old frames
_SILENT_INTERVALS: Final = 8  # frame intervals without a frame after which a camera counts as frozen
_SILENT_S: Final = 2.0  # encoders pause for 0.5 s at key frames, and Wi-Fi for longer
_SAMPLED_ROWS: Final = 64
_FEW_STEP: Final = 8  # every eighth sampled row is compared first


@dataclass(slots=True)
class FrameRateEstimator:
    """Estimator of the frame rate, based on the last 32 arrivals.

    The estimate is a mean and not a median, because many cameras send frames in bursts.
    """

    _arrivals_ns: deque[int] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def arrived(self, now_ns: int) -> None:
        """Record that a frame arrived at `now_ns` (monotonic ns)."""
        self._arrivals_ns.append(now_ns)

    def interval_s(self) -> float | None:
        """Return the mean time between two frames in seconds, or None until six frames have arrived."""
        arrivals = self._arrivals_ns
        if len(arrivals) <= _MIN_INTERVALS:
            return None
        return (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1) / 1e9

    def fps(self, now_ns: int) -> float:
        """Return the frame rate in frames/s, or 0 before the second frame.

        While no frame arrives, the rate decreases.
        """
        arrivals = self._arrivals_ns
        if len(arrivals) < 2:
            return 0.0
        interval_ns = (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1)
        overdue_ns = max(0.0, now_ns - arrivals[-1] - interval_ns)
        span_ns = arrivals[-1] - arrivals[0] + overdue_ns
        return (len(arrivals) - 1) * 1e9 / span_ns if span_ns > 0 else 0.0

    def clear(self) -> None:
        """Discard all arrivals, because a new connection starts."""
        self._arrivals_ns.clear()


@dataclass(frozen=True, slots=True)
class StallTimeouts:
    """Times without a frame after which a camera counts as frozen (`frozen_s`) or its connection as lost (`lost_s`)."""

    frozen_s: float
    lost_s: float

    @staticmethod
    def from_interval(interval_s: float | None, read_timeout_s: float) -> StallTimeouts:
        """Return the timeouts for a measured frame interval. Neither is longer than `read_timeout_s`.

        If the interval is unknown (None), both are `read_timeout_s`. Otherwise, the camera counts as frozen after eight
        intervals but not before 2 s, and as lost after twice that time.
        """
        if interval_s is None:
            return StallTimeouts(read_timeout_s, read_timeout_s)
        frozen_s = min(read_timeout_s, max(_SILENT_S, _SILENT_INTERVALS * interval_s))
        return StallTimeouts(frozen_s, min(read_timeout_s, 2 * frozen_s))


class FrozenFrameDetector:
    """Detector of a camera that repeats one frame, in contrast to a camera with a static scene.

    Sensor noise changes every frame, so a camera whose frames stay exactly equal is frozen. The detector compares about
    64 whole rows of each frame, which takes less than 0.1 ms for a 1080p frame. All rows would take twenty times as
    long. The detector starts with an eighth of the 64 rows, and compares the other rows only if these are equal. If the
    camera draws a clock into its frames, the clock is taller than the gaps between the 64 rows, so changes of the clock
    are detected.

    `frozen` is True if the frame has not changed for `frozen_after_s`. It stays True over reconnections until a
    different frame arrives.
    """

    def __init__(self, frozen_after_s: float | None) -> None:
        """Create the detector. If `frozen_after_s` is None, `check` never reports a frozen camera."""
        self._frozen_after_ns = None if frozen_after_s is None else int(frozen_after_s * 1e9)
        self._rows: NDArray[np.uint8] | None = None
        self._frame_since_ns: int | None = None
        self._pts_ns: int | None = None
        self._pts_since_ns: int | None = None
        self.frozen = False

    def connected(self) -> None:
        """Prepare for a new connection: discard the times of the last change of the frame and of its presentation time.

        Keep the last frame, so that the first frame of the new connection is compared with it.
        """
        self._frame_since_ns = self._pts_since_ns = self._pts_ns = None

    def check(self, buffer: FrameBuffer, pts_ns: int | None, now_ns: int) -> str:
        """Compare a frame with the previous one. Return the reason to reconnect if the camera is frozen, otherwise "".

        The reason is that the frame or the presentation time `pts_ns` has not changed for `frozen_after_s`. If `pts_ns`
        is None, only the frame is compared. `now_ns` is the current time (monotonic ns).
        """
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
        rows = buffer.read_rows(step // 2, step)  # if the frame is on the GPU, only these rows are copied
        if self._rows is None or self._rows.shape != rows.shape:
            self._rows = rows.copy()
            return False
        few = slice(None, None, _FEW_STEP)  # if the camera works, these rows usually differ already
        if np.array_equal(rows[few], self._rows[few]) and np.array_equal(rows, self._rows):
            return True
        np.copyto(self._rows, rows)
        return False


@dataclass(slots=True)
class Backoff:
    """Exponential back-off with full jitter, so that cameras that failed together do not reconnect together.

    The method is that of Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. In addition, the
    delay has a minimum, because a camera that refuses connections answers immediately.
    """

    first_s: float = 0.5  # upper limit of the first delay, which doubles with each failure
    longest_s: float = 30.0  # upper limit of all delays
    shortest_s: float = 0.1  # lower limit of all delays
    random: random.Random = field(default_factory=random.Random)
    failures: int = 0  # number of failures since the last `reset`

    def next_delay_s(self) -> float:
        """Count a failure, and return the time until the next attempt in seconds."""
        ceiling_s = min(self.longest_s, self.first_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return max(self.shortest_s, self.random.uniform(0.0, ceiling_s))

    def reset(self) -> None:
        """Reset the number of failures, because the camera has been healthy for a while."""
        self.failures = 0
