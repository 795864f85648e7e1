"""`FrameClock` derives a time that never goes back from capture times that sometimes do.

Capture times come from the clocks of cameras, from files that loop, and from machines whose clocks are adjusted. State
with a limited lifetime, such as a track or a stay in a zone, must nevertheless expire, and its age must not decrease.
"""

from __future__ import annotations

from typing import Final

CLOCK_GRAIN_S: Final = 1e-3
"""Precision of capture times."""

_FASTEST_CHANGE: Final = 2.0  # a single long gap is weak evidence of a lower frame rate
_WEIGHT_OF_NEW: Final = 0.2
_SLOWEST_S: Final = 10.0  # longer intervals do not change the estimate
_FRAMES_REMEMBERED: Final = 2.5


class FrameClock:
    """Time since the first frame, in seconds. If a capture time goes back, the clock advances by the usual interval."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.usual_s = 0.0  # interval between frames, smoothed
        self._last_ns: int | None = None

    def advance(self, captured_ns: int) -> float:
        """Advance to the capture time of a frame. Return the seconds since the previous frame, never negative."""
        step_s = 0.0 if self._last_ns is None else (captured_ns - self._last_ns) * 1e-9
        self._last_ns = captured_ns
        if step_s < 0:
            step_s = self.usual_s
        elif step_s > 0:
            self._learn(step_s)
        self.now_s += step_s
        return step_s

    def memory_s(self, wanted_s: float) -> float:
        """Return the time to keep state: `wanted_s`, or more than two frame intervals if the camera is slow."""
        return max(wanted_s, _FRAMES_REMEMBERED * self.usual_s)

    def _learn(self, step_s: float) -> None:
        if self.usual_s:
            likely_s = min(step_s, _FASTEST_CHANGE * self.usual_s, _SLOWEST_S)
            self.usual_s += _WEIGHT_OF_NEW * (likely_s - self.usual_s)
        else:
            self.usual_s = min(step_s, _SLOWEST_S)
