"""Speed and direction of travel from noisy positions: a straight line fitted to about the last second.

A difference of two positions would be all noise at 30 frames a second. Positions are kept about an eighth of a second
apart, and the line is fitted only for the object that something is to be said about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul
from typing import Final

from vision.analytics.geometry import IndexArray, Points

SAMPLES: Final = 9
"""Positions kept of each object, NaN where it was not seen."""

_SPACING_S: Final = 0.125
_WINDOW_S: Final = 1.05
_LEAST_SPAN_S: Final = 0.35  # below which nothing is said


class TrackHistory:
    """Where each object was lately. All objects are sampled at the same times; the rows are the stage's memory's."""

    def __init__(self) -> None:
        self._times_s = [-math.inf] * SAMPLES
        self._slot = 0

    def observe(self, now_s: float, rows: IndexArray, points: Points, trails: Points) -> None:
        """Take the positions (M,) of `rows`, if it is time to; `trails`, (R, SAMPLES), are written to."""
        if now_s - self._times_s[self._slot] < _SPACING_S:
            return
        self._slot = (self._slot + 1) % SAMPLES
        self._times_s[self._slot] = now_s
        of_now = trails[:, self._slot]
        of_now.fill(math.nan)
        of_now[rows] = points

    def of(self, now_s: float, trail: Points) -> tuple[list[float], list[complex]]:
        """Times and positions of one object's last second, in no order."""
        since_s = now_s - _WINDOW_S
        times_s, points = [], []
        for time_s, point in zip(self._times_s, trail.tolist(), strict=True):
            if time_s >= since_s and point == point:  # noqa: PLR0124 - NaN is not equal to itself
                times_s.append(time_s - now_s)
                points.append(point)
        return times_s, points


def velocity(times_s: Sequence[float], points: Sequence[complex]) -> complex | None:
    """x + iy per second by least squares; None where the positions do not suffice."""
    if not times_s or max(times_s) - min(times_s) < _LEAST_SPAN_S:
        return None
    number, sum_t = len(times_s), sum(times_s)
    spread = number * sum(map(mul, times_s, times_s)) - sum_t * sum_t
    moved: complex = (number * sum(map(mul, times_s, points)) - sum_t * sum(points)) / spread
    return moved
