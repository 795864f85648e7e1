"""Speed and direction of travel from noisy positions: a straight line fitted to about the last second.

A difference of two positions would be all noise at 30 pictures a second. Positions are kept about an eighth of a second
apart, and the line is fitted only for the object that something is to be said about.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from vision.analytics.geometry import FloatArray, IndexArray

SAMPLES: Final = 9
"""Positions kept of each object, NaN where it was not seen."""

_SPACING_S: Final = 0.125
_WINDOW_S: Final = 1.05
_LEAST_SPAN_S: Final = 0.35  # below which nothing is said


class Trails:
    """Where each object was lately. All objects are sampled at the same times; the rows are the stage's memory's."""

    def __init__(self) -> None:
        self._times_s = [-math.inf] * SAMPLES
        self._slot = 0

    def observe(
        self,
        now_s: float,
        rows: IndexArray,
        places: tuple[FloatArray, FloatArray],
        trails: tuple[FloatArray, FloatArray],
    ) -> None:
        """Take the positions x and y (M,) of `rows`, if it is time to; `trails` x and y (R, SAMPLES) are written to."""
        if now_s - self._times_s[self._slot] < _SPACING_S:
            return
        self._slot = (self._slot + 1) % SAMPLES
        self._times_s[self._slot] = now_s
        for trail, place in zip(trails, places, strict=True):
            trail[:, self._slot] = math.nan
            trail[rows, self._slot] = place

    def of(self, now_s: float, trail_x: FloatArray, trail_y: FloatArray) -> list[tuple[float, float, float]]:
        """One object's last second as (time, x, y), in no order."""
        return [
            (time_s - now_s, x, y)
            for time_s, x, y in zip(self._times_s, trail_x.tolist(), trail_y.tolist(), strict=True)
            if now_s - time_s <= _WINDOW_S and x == x  # noqa: PLR0124 - NaN is not equal to itself
        ]


def velocity(trail: Iterable[tuple[float, float, float]]) -> tuple[float, float] | None:
    """x and y per second by least squares, of positions (time, x, y); None where they do not suffice."""
    number, first_s, last_s = 0, math.inf, -math.inf
    sum_t = sum_tt = sum_x = sum_y = sum_tx = sum_ty = 0.0
    for time_s, x, y in trail:
        number += 1
        first_s, last_s = min(first_s, time_s), max(last_s, time_s)
        sum_t += time_s
        sum_tt += time_s * time_s
        sum_x += x
        sum_y += y
        sum_tx += time_s * x
        sum_ty += time_s * y
    if last_s - first_s < _LEAST_SPAN_S:
        return None
    spread = number * sum_tt - sum_t * sum_t
    return (number * sum_tx - sum_t * sum_x) / spread, (number * sum_ty - sum_t * sum_y) / spread
