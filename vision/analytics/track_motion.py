"""The motion model of tracks: an Ornstein-Uhlenbeck speed, in continuous time, so that steps can have any length.

Lengths are in object sizes (the longer side of the box), so that near and far objects are alike. The values fit people
on foot, with room for faster objects, because the filter adapts through acceleration.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from vision.analytics.geometry import FloatArray

_POSITION_AGITATION: Final = 0.5  # growth of the speed's variance, sizes² per s³
_SIZE_AGITATION: Final = 0.05
_POSITION_DAMPING: Final = 0.2  # 1/s by which an unobserved speed fades
_SIZE_DAMPING: Final = 4.0


def motion(step_s: float) -> tuple[FloatArray, FloatArray]:
    """Return the transition of the filter's rows, (20, 20), and their growth for an object of size 1, (20, 1).

    Gillespie, "Exact numerical simulation of the Ornstein-Uhlenbeck process and its integral", 1996.
    """
    moves: list[float] = []
    growths: list[float] = []
    for damping, agitation in ((_POSITION_DAMPING, _POSITION_AGITATION), (_SIZE_DAMPING, _SIZE_AGITATION)):
        fade = math.exp(-damping * step_s)
        travel = (1.0 - fade) / damping
        spread = (1.0 - fade * fade) / (2.0 * damping)
        moves += (1.0, travel, fade, 2.0 * travel, travel * travel, fade * travel, fade * fade)
        var_at = agitation * max(step_s - 2.0 * travel + spread, 0.0) / damping**2
        growths += (var_at, agitation * travel * travel / 2.0, agitation * spread)
    transition: FloatArray = (np.array(moves) @ _WHERE_MOVES).reshape(20, 20)
    return transition, (np.array(growths) @ _WHERE_GROWTHS)[:, None]


def _places_of_coefficients() -> tuple[FloatArray, FloatArray]:
    """Return the positions of the coefficients of `motion`, (14, 400) in the matrix and (6, 20) in the column."""
    moves, growths = np.zeros((14, 20, 20)), np.zeros((6, 20))
    at, speed, var_at, covariance, var_speed = range(0, 20, 4)
    for row in range(4):
        kind = 7 * (row // 2)  # of the centre, then of the size
        for coefficient, to, of in (
            (0, at, at),
            (1, at, speed),
            (2, speed, speed),
            (0, var_at, var_at),
            (3, var_at, covariance),
            (4, var_at, var_speed),
            (2, covariance, covariance),
            (5, covariance, var_speed),
            (6, var_speed, var_speed),
        ):
            moves[kind + coefficient, to + row, of + row] = 1.0
        for coefficient, to in enumerate((var_at, covariance, var_speed)):
            growths[3 * (row // 2) + coefficient, to + row] = 1.0
    return moves.reshape(14, 400), growths


_WHERE_MOVES, _WHERE_GROWTHS = _places_of_coefficients()
