"""Speed and direction of travel from noisy positions: a straight line fitted to the last second of each object.

A difference of two positions would be all noise at 30 pictures a second. The fit forgets exponentially, so that each
object needs five sums and no history.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vision.analytics.geometry import FloatArray

_FORGET_S: Final = 0.6  # time constant
_LEAST_SPAN_S: Final = 0.15  # weighted spread of the observations' times, below which nothing is said

COORDINATES: Final = 4  # picture x, picture y, ground x, ground y
COLUMNS: Final = 3 + 2 * COORDINATES
"""Numbers per object: sums of weight, weight·t, weight·t², and of weight·p and weight·t·p for each coordinate p."""


def observe(sums: FloatArray, elapsed_s: FloatArray, positions: FloatArray) -> None:
    """Take one position of each object. Times are counted from the observation itself, so nothing grows.

    Args:
        sums: (M, COLUMNS), written in place; zeros for an object that is new.
        elapsed_s: (M,) since each object's last observation.
        positions: (M, COORDINATES). An object with a NaN among them starts anew at its next observation.
    """
    weight, time, time2 = sums[:, 0], sums[:, 1], sums[:, 2]
    at, time_at = sums[:, 3 : 3 + COORDINATES], sums[:, 3 + COORDINATES :]
    back = elapsed_s[:, None]
    time2 += elapsed_s * (elapsed_s * weight - 2.0 * time)
    time_at -= back * at
    time -= elapsed_s * weight
    sums *= np.exp(-back / _FORGET_S)
    weight += 1.0
    at += positions
    broken = np.isnan(positions).any(axis=1)
    if broken.any():
        sums[broken] = 0.0


def velocities(sums: FloatArray) -> FloatArray:
    """(M, COORDINATES) per second; NaN where the observations do not suffice."""
    weight, time, time2 = sums[:, 0:1], sums[:, 1:2], sums[:, 2:3]
    at, time_at = sums[:, 3 : 3 + COORDINATES], sums[:, 3 + COORDINATES :]
    spread = weight * time2 - time * time  # weight² · variance of the times
    known = spread > (weight * _LEAST_SPAN_S) ** 2
    result: FloatArray = np.full(at.shape, np.nan)
    np.divide(weight * time_at - time * at, spread, out=result, where=known)
    return result
