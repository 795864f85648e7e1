"""`FrameClock` converts capture times, which can go back, to a time that never goes back.

A capture time can go back when a camera is reopened, or when it comes from a custom source. Tracks and stays in zones
must still expire, and their ages must not decrease.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

CLOCK_GRAIN_S: Final = 1e-3
"""Precision of capture times in seconds. Comparisons of durations tolerate errors of this size."""

_FASTEST_CHANGE: Final = 2.0  # limits the effect of a single long gap, which rarely means a lower frame rate
_WEIGHT_OF_NEW: Final = 0.2  # weight of the newest interval in the usual interval
_SLOWEST_S: Final = 10.0  # longer intervals count as this long
_FRAMES_REMEMBERED: Final = 2.5  # minimum time to keep state, in frame intervals


class FrameClock:
    """Clock that counts the seconds since the first frame.

    If a capture time goes back, the clock advances by the usual frame interval.
    """

    def __init__(self) -> None:
        self.now_s = 0.0  # time of the last frame in seconds
        self.usual_s = 0.0  # smoothed interval between frames; 0 if unknown
        self._last_ns: int | None = None

    def advance(self, captured_ns: int) -> float:
        """Advance to the capture time of a frame. Return the time since the previous frame in seconds, at least 0."""
        step_s = 0.0 if self._last_ns is None else (captured_ns - self._last_ns) * 1e-9
        self._last_ns = captured_ns
        if step_s < 0:
            step_s = self.usual_s
        elif step_s > 0:
            self._learn(step_s)
        self.now_s += step_s
        return step_s

    def memory_s(self, wanted_s: float) -> float:
        """Return the time, in seconds, for which to keep state: `wanted_s`, or 2.5 usual frame intervals if longer."""
        return max(wanted_s, _FRAMES_REMEMBERED * self.usual_s)

    def _learn(self, step_s: float) -> None:
        if self.usual_s:
            likely_s = min(step_s, _FASTEST_CHANGE * self.usual_s, _SLOWEST_S)
            self.usual_s += _WEIGHT_OF_NEW * (likely_s - self.usual_s)
        else:
            self.usual_s = min(step_s, _SLOWEST_S)


class FrameTimes:
    """Times that a clock will show at the next F frames. `seek` sets the clock to one of these times."""

    now_s: list[float]
    """Time of each frame in seconds."""
    steps_s: list[float]
    """Time since the previous frame in seconds, for each frame."""

    def __init__(self, clock: FrameClock, captured_ns: Sequence[int]) -> None:
        """Compute the times of the next frames from their capture times. `clock` itself does not advance."""
        self._last_ns = [clock._last_ns, *captured_ns]
        self.now_s, self.steps_s, self._usual_s = _times(clock.now_s, clock.usual_s, clock._last_ns, tuple(captured_ns))
        self._before = clock.now_s, clock.usual_s

    def memory_s(self, wanted_s: float) -> NDArray[np.float64]:
        """Return, for each frame (F,), the time in seconds that `FrameClock.memory_s` would return at this frame."""
        return np.maximum(wanted_s, _FRAMES_REMEMBERED * np.array(self._usual_s))

    def seek(self, clock: FrameClock, frame: int) -> None:
        """Set `clock` to its state just before the frame with index `frame`.

        If `frame` is the number of frames, set the clock to its state after the last frame.
        """
        before = frame - 1
        clock.now_s, clock.usual_s = (self.now_s[before], self._usual_s[before]) if frame else self._before
        clock._last_ns = self._last_ns[frame]


@lru_cache(maxsize=1)  # the clocks of the objects, the crowds, and the rules of a camera usually show the same times
def _times(
    now_s: float, usual_s: float, last_ns: int | None, captured_ns: tuple[int, ...]
) -> tuple[list[float], list[float], list[float]]:
    """Return what a clock in a given state will show at each of the frames captured at `captured_ns`.

    The results are the time `now_s`, the seconds since the previous frame, and the usual interval `usual_s`.
    """
    clock = FrameClock()
    clock.now_s, clock.usual_s, clock._last_ns = now_s, usual_s, last_ns
    times_s, steps_s, usual = list[float](), list[float](), list[float]()
    for each_ns in captured_ns:
        steps_s.append(clock.advance(each_ns))
        times_s.append(clock.now_s)
        usual.append(clock.usual_s)
    return times_s, steps_s, usual
