"""Is a camera still alive? What to expect is learned from the camera itself.

A fixed time-out is wrong for somebody: one that notices a dead 25 frames/s camera within seconds calls a camera that
sends one frame every ten seconds dead all day. And a camera whose sensor hangs goes on sending: the stream is alive,
the frame is not. Both are told here from times and pixels alone, without a thread or a clock.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.types import FrameBuffer

_WINDOW: Final = 32  # arrivals that the cadence is taken from
_FEW: Final = 5  # intervals; with fewer, the cadence is not known: a source may open with a burst of old frames
_SILENT_INTERVALS: Final = 8
_SILENT_S: Final = 2.0  # encoders pause for 0.5 s at key frames, and Wi-Fi for longer
_SAMPLED_ROWS: Final = 64


@dataclass(slots=True)
class FrameRateEstimator:
    """How often frames come, from the last 32 of them.

    The mean and not the median, because many cameras send in bursts.
    """

    _arrivals_ns: deque[int] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def arrived(self, now_ns: int) -> None:
        """A frame came."""
        self._arrivals_ns.append(now_ns)

    def interval_s(self) -> float | None:
        """Mean time between two frames; None until a few have come."""
        arrivals = self._arrivals_ns
        if len(arrivals) <= _FEW:
            return None
        return (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1) / 1e9

    def fps(self, now_ns: int) -> float:
        """Frames per second, sinking while none comes."""
        arrivals = self._arrivals_ns
        if len(arrivals) < 2:
            return 0.0
        interval_ns = (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1)
        overdue_ns = max(0.0, now_ns - arrivals[-1] - interval_ns)
        span_ns = arrivals[-1] - arrivals[0] + overdue_ns
        return (len(arrivals) - 1) * 1e9 / span_ns if span_ns > 0 else 0.0

    def clear(self) -> None:
        """A new connection."""
        self._arrivals_ns.clear()


@dataclass(frozen=True, slots=True)
class StallTimeouts:
    """How long no frame may come before a camera is called frozen, and before its connection is given up."""

    frozen_s: float
    lost_s: float

    @staticmethod
    def of(interval_s: float | None, read_timeout_s: float) -> StallTimeouts:
        """For a camera with this measured cadence. The operator's time-out is the upper end of both.

        An unknown cadence gets the whole time-out. A known one gets eight intervals, but not less than 2 s, until it
        counts as frozen, and twice that until it counts as lost.
        """
        if interval_s is None:
            return StallTimeouts(read_timeout_s, read_timeout_s)
        frozen_s = min(read_timeout_s, max(_SILENT_S, _SILENT_INTERVALS * interval_s))
        return StallTimeouts(frozen_s, min(read_timeout_s, 2 * frozen_s))


class FrozenFrameDetector:
    """Tells a camera that sends the same frame for ever from one that looks at a quiet scene.

    A sensor's noise changes every frame, so exact equality over time is the sign of a frozen one. 64 whole rows are
    compared: a clock that the camera writes into its frame is higher than the gaps between them. It costs 30 to
    100 us for 1080p; the whole frame would cost twenty times that.

    What was found frozen stays so over reconnections until another frame comes (`stuck`).
    """

    def __init__(self, frozen_after_s: float) -> None:
        self._frozen_after_ns = int(frozen_after_s * 1e9)
        self._rows: NDArray[np.uint8] | None = None
        self._frame_since_ns: int | None = None
        self._pts_ns: int | None = None
        self._pts_since_ns: int | None = None
        self.stuck = False

    def connected(self) -> None:
        """A new connection: both times start again; the frame that was seen last is remembered."""
        self._frame_since_ns = self._pts_since_ns = self._pts_ns = None

    def see(self, buffer: FrameBuffer, pts_ns: int | None, now_ns: int) -> str:
        """Look at the frame in `buffer`.

        Returns why the camera counts as frozen, or ``""``.
        """
        if self._same_rows(buffer):
            self._frame_since_ns = now_ns if self._frame_since_ns is None else self._frame_since_ns
        else:
            self._frame_since_ns = now_ns
            self.stuck = False
        if pts_ns is None or pts_ns != self._pts_ns or self._pts_since_ns is None:
            self._pts_ns, self._pts_since_ns = pts_ns, now_ns
        if now_ns - self._frame_since_ns >= self._frozen_after_ns:
            self.stuck = True
            return f"the frame has not changed for {(now_ns - self._frame_since_ns) / 1e9:.1f} s"
        if now_ns - self._pts_since_ns >= self._frozen_after_ns:
            return f"the stream's time has not moved for {(now_ns - self._pts_since_ns) / 1e9:.1f} s"
        return ""

    def _same_rows(self, buffer: FrameBuffer) -> bool:
        rows = _sample(buffer)
        if self._rows is None or self._rows.shape != rows.shape:
            self._rows = rows.copy()
            return False
        if np.array_equal(rows, self._rows):
            return True
        np.copyto(self._rows, rows)
        return False


def _sample(buffer: FrameBuffer) -> NDArray[np.uint8]:
    """Return some rows of a frame. Only these are copied from a frame on the GPU."""
    step = max(1, buffer.shape[0] // _SAMPLED_ROWS)
    return buffer.read_rows(step // 2, step)


@dataclass(slots=True)
class Backoff:
    """Exponential back-off with full jitter: cameras that were lost together do not come back together.

    Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. The jitter has a floor here, because a
    camera that refuses connections answers at once.
    """

    first_s: float = 0.5
    longest_s: float = 30.0
    shortest_s: float = 0.1
    random: random.Random = field(default_factory=random.Random)
    failures: int = 0

    def failed(self) -> float:
        """Count a failure; how long to wait before the next attempt."""
        ceiling_s = min(self.longest_s, self.first_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return max(self.shortest_s, self.random.uniform(0.0, ceiling_s))

    def recovered(self) -> None:
        """The camera has been well for a while."""
        self.failures = 0
