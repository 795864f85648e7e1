"""Speed and direction of travel from noisy positions: a straight line fitted to about the last second.

The difference of two positions at 30 frames/s is mostly noise. Positions are kept about an eighth of a second apart.
The line is fitted only for an object that has an event.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul
from typing import Final

from vision.analytics.geometry import IndexArray, Points

SAMPLES: Final = 9
"""Number of positions kept per object; NaN where it was not detected."""

_SPACING_S: Final = 0.125
_WINDOW_S: Final = 1.05
_LEAST_SPAN_S: Final = 0.35  # shorter histories give no velocity


class TrackHistory:
    """Recent positions of each object, all sampled at the same times. The rows are those of the `TrackTable`."""

    def __init__(self) -> None:
        self._times_s = [-math.inf] * SAMPLES
        self._slot = 0

    def observe(self, now_s: float, rows: IndexArray, points: Points, trails: Points) -> None:
        """Write the positions (M,) of `rows` to `trails`, (R, SAMPLES), if a sample is due."""
        if now_s - self._times_s[self._slot] < _SPACING_S:
            return
        self._slot = (self._slot + 1) % SAMPLES
        self._times_s[self._slot] = now_s
        of_now = trails[:, self._slot]
        of_now.fill(math.nan)
        of_now[rows] = points

    def of(self, now_s: float, trail: Points) -> tuple[list[float], list[complex]]:
        """Return times and positions of one object's last second, unordered."""
        since_s = now_s - _WINDOW_S
        times_s, points = [], []
        for time_s, point in zip(self._times_s, trail.tolist(), strict=True):
            if time_s >= since_s and point == point:  # noqa: PLR0124 - NaN is not equal to itself
                times_s.append(time_s - now_s)
                points.append(point)
        return times_s, points


def velocity(times_s: Sequence[float], points: Sequence[complex]) -> complex | None:
    """Return x + iy per second by least squares; None if there are too few positions."""
    if not times_s or max(times_s) - min(times_s) < _LEAST_SPAN_S:
        return None
    number, sum_t = len(times_s), sum(times_s)
    spread = number * sum(map(mul, times_s, times_s)) - sum_t * sum_t
    moved: complex = (number * sum(map(mul, times_s, points)) - sum_t * sum(points)) / spread
    return moved
