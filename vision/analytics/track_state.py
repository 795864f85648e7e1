"""Rows of the array that stores the state of tracks, and the motion model of the tracks.

The model treats the speed of an object as an Ornstein-Uhlenbeck process in continuous time, so steps can have any
length. Lengths are in object sizes (the longer side of the box), so the distance to the camera has no effect. The
constants below suit people on foot. The filter also follows faster objects, because it allows acceleration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy import count_nonzero  # several times faster than any() and all() on small arrays

from vision.analytics.frame_clock import CLOCK_GRAIN_S
from vision.analytics.geometry import BoolArray, FloatArray, IndexArray

PerTrack: TypeAlias = float | FloatArray
"""One value for all tracks, or an array (M,) with one value per track."""


def values_at(values: PerTrack, tracks: IndexArray | BoolArray) -> PerTrack:
    """Return the values of some `tracks`, given by their indices or a mask.

    A single value, which applies to all tracks, is returned unchanged.
    """
    return values if isinstance(values, float) else values[tracks]


# Rows of the state. The first five slices have four rows: center x, center y, width, and height.
AT: Final = slice(0, 4)
SPEED: Final = slice(4, 8)
VAR_AT: Final = slice(8, 12)
COVARIANCE: Final = slice(12, 16)
VAR_SPEED: Final = slice(16, 20)
VAR_PLACE: Final = slice(8, 10)
VAR_EXTENT: Final = slice(10, 12)
FILTER: Final = slice(0, 20)
SPREAD: Final = slice(8, 20)  # all variances and covariances
PLACE: Final = slice(0, 2)
EXTENT: Final = slice(2, 4)
SEEN_AT: Final = slice(20, 22)  # center of the last detection
SEEN_S: Final = 22  # time of the last detection
STRONG_S: Final = 23  # time of the last detection with at least `high_score`
DOUBTED: Final = slice(24, 26)
DOUBTED_S: Final = 24  # time from which the boxes are doubted; infinite if the last box was not doubted
MISFIT: Final = 25  # logarithm of the ratio of sizes for the last box; infinite if the box was not doubted
TREND: Final = 26  # moving average of growth, over `_TREND_S`
BORN_S: Final = 27  # time of the first detection; later if the tracker must publish the track later
LEAD: Final = 28  # votes for the class of the track minus votes for the other classes of its group
VOTES: Final = 29  # sum of all votes
WHOLE: Final = 30  # whole height while the lower part is hidden; 0 if nothing is known to be hidden
HIDDEN_S: Final = 31  # time from which the lower part was hidden
GROWN: Final = 32  # area of the track's box after the last detection, in pixels²
RATE: Final = 33  # growth of the size in 1/s, relative to the present size
ROWS: Final = 34  # number of rows of the state

_POSITION_AGITATION: Final = 0.5  # growth of the speed's variance, sizes² per s³
_SIZE_AGITATION: Final = 0.05  # the same, for the speed at which the size changes
_POSITION_DAMPING: Final = 0.2  # rate in 1/s at which an unobserved speed decays
_SIZE_DAMPING: Final = 4.0  # the same, for the speed at which the size changes
_FIRST_VAR_SPEED: Final = np.array([[2.0], [2.0], [0.2], [0.2]]) ** 2  # variance for a new object, sizes² per s²

_RATE_S: Final = 1.0  # time constant of the moving average of growth
_CLEAR_GROWTH: Final = 0.2  # smallest growth until the next frame that is predicted; less can be an error of boxes
_MOST_GROWTH: Final = 0.5  # largest growth that is predicted, with which the size doubles
_LEAST_GROWTH_STEP_S: Final = 0.07  # shorter steps have no clear growth unless an object more than triples in a second
_GROWTH_ERROR: Final = 0.3  # standard deviation of a predicted change of size, as a part of the change

_STANDING_SPEED: Final = 0.2  # sizes per second
_LEAST_EXTENT: Final = np.array(1.0)  # minimum width and height in pixels


class Motion(NamedTuple):
    """Motion model of tracks for a time step of `step_s` seconds."""

    transition: FloatArray  # (20, 20) matrix that moves `state[FILTER]`
    growth: FloatArray  # (12, 1) growth of `state[SPREAD]` for an object whose size is 1
    step_s: float  # length of the step in seconds


@lru_cache(maxsize=64)  # most steps have the same length
def motion(step_s: float) -> Motion:
    """Return the motion model for a step of `step_s` seconds.

    See Gillespie, "Exact numerical simulation of the Ornstein-Uhlenbeck process and its integral", 1996.
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
    return Motion(transition, (np.array(growths) @ _WHERE_GROWTHS)[:, None], step_s)


def predict(
    state: FloatArray, of_cameras: Sequence[FloatArray], motions: Sequence[Motion], camera: IndexArray | None
) -> None:
    """Predict the tracks of one or several cameras at the times of their frames.

    The speed is an Ornstein-Uhlenbeck process, integrated exactly. In this model, center and size do not depend on each
    other, so the 8×8 filter of the literature separates into four filters of 2×2. The means and covariances of these
    filters are the first 20 rows of the state, so one matrix per camera moves all tracks of the camera.

    Args:
        state: state (ROWS, M) of all tracks, which is changed.
        of_cameras: `state[FILTER]` of each camera's tracks.
        motions: motion model of each camera.
        camera: index of each track's camera (M,), or None if there is only one camera.
    """
    size2 = np.maximum(state[2], state[3])
    size2 *= size2
    step_s: PerTrack = motions[0].step_s
    growth = motions[0].growth
    before: FloatArray | None = None
    if camera is None:
        if step_s >= _LEAST_GROWTH_STEP_S:
            before = state[AT].copy()
        state[FILTER] = motions[0].transition.dot(of_cameras[0])
    else:
        if any(each.step_s >= _LEAST_GROWTH_STEP_S for each in motions):
            before = state[AT].copy()
        moved = [each.transition.dot(part) for each, part in zip(motions, of_cameras, strict=True)]
        np.concatenate(moved, axis=1, out=state[FILTER])
        if any(each is not motions[0] for each in motions):
            growth = np.concatenate([each.growth for each in motions], axis=1).take(camera, axis=1)
            step_s = np.array([each.step_s for each in motions]).take(camera)
    # A product of matrices with an inner dimension of 1 is the same as `growth * size2`, and faster.
    state[SPREAD] += growth.dot(size2[None]) if growth.shape[1] == 1 else growth * size2
    if before is not None:
        _approach(state, before, step_s)
    extent = state[EXTENT]
    np.maximum(extent, _LEAST_EXTENT, out=extent)


def _approach(state: FloatArray, before: FloatArray, step_s: PerTrack) -> None:
    """Predict the size and the position of tracks whose objects clearly approach the camera, or move away from it.

    If the distance from the camera changes uniformly, so does the reciprocal of the size. The center then moves by a
    distance that grows with the size at the start of the step and with the size at the end of the step.

    Args:
        state: state (ROWS, M) of the tracks after the step, which is changed.
        before: centers and sizes (4, M) before the step.
        step_s: duration of the step in seconds.
    """
    growth = np.minimum(state[RATE] * step_s, _MOST_GROWTH)
    growth *= step_s >= _LEAST_GROWTH_STEP_S
    factor = 1.0 / (1.0 - growth)
    state[RATE] *= factor
    clear = (np.abs(growth) > _CLEAR_GROWTH).nonzero()[0]
    if not len(clear):
        return
    growth, factor, place, extent = growth[clear], factor[clear], before[PLACE, clear], before[EXTENT, clear]
    state[PLACE, clear] = place + (state[PLACE, clear] - place) * factor * (1.0 + growth)
    state[EXTENT, clear] = extent * factor
    change = _GROWTH_ERROR * extent * (factor - 1.0)
    state[VAR_EXTENT, clear] += change * change


def _places_of_coefficients() -> tuple[FloatArray, FloatArray]:
    """Return the two matrices of zeros and ones that `motion` uses to arrange its coefficients.

    The first matrix (14, 400) yields the transition matrix. The second matrix (6, 12) yields the growth of variances.
    """
    moves, growths = np.zeros((14, 20, 20)), np.zeros((6, 12))
    at, speed, var_at, covariance, var_speed = range(0, 20, 4)
    for row in range(4):
        kind = 7 * (row // 2)  # of the center, then of the size
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
        for coefficient in range(3):
            growths[3 * (row // 2) + coefficient, 4 * coefficient + row] = 1.0
    return moves.reshape(14, 400), growths


_WHERE_MOVES, _WHERE_GROWTHS = _places_of_coefficients()


def restart_motion(state: FloatArray, again: IndexArray, at: FloatArray, noise: FloatArray, gap_s: FloatArray) -> None:
    """Compute the motion of tracks that are detected again after a gap, from only the previous and the new position.

    The result is the limit of OC-SORT's re-update, which runs the filter along a straight path between the positions.

    Args:
        state: state (ROWS, M) of the tracks, which is changed.
        again: indices of the tracks that are detected again.
        at: detected centers and sizes (4, M).
        noise: variances (4, M) of `at`.
        gap_s: time (M,) in seconds since the last detection.
    """
    if not len(again):
        return
    gap = gap_s[again]
    state[4:6, again] = (at[:2, again] - state[SEEN_AT, again]) / gap
    state[12:14, again] = noise[:2, again] / gap
    state[16:18, again] = 2.0 * noise[:2, again] / gap**2
    state[8:10, again] = noise[:2, again]


def measure_growth(state: FloatArray, gap_s: FloatArray, cut: BoolArray) -> None:
    """Update the growth rate of tracks after a detection. Call this after the update of their sizes.

    The growth is 0 after gaps of less than `_LEAST_GROWTH_STEP_S`, because `predict` does not need the growth rate
    after such gaps.

    Args:
        state: state (ROWS, M) of the tracks, which is changed.
        gap_s: time (M,) in seconds since the previous detection.
        cut: mask (M,) of the boxes that the edge of the frame cuts off, which do not show how the object grows.
    """
    area, rate = state[2] * state[3], state[RATE]
    if not count_nonzero(gap_s >= _LEAST_GROWTH_STEP_S):  # the usual case; the result is that of the steps below
        state[GROWN], state[RATE] = area, 0.0
        return
    measured = np.sqrt(area / state[GROWN])
    measured -= 1.0
    measured /= np.maximum(gap_s, CLOCK_GRAIN_S)
    measured -= rate
    measured *= np.minimum(gap_s / _RATE_S, 1.0)
    rate += measured
    np.putmask(rate, cut | (gap_s < _LEAST_GROWTH_STEP_S), 0.0)
    state[GROWN] = area


def is_standing(state: FloatArray) -> BoolArray:
    """Return a mask (M,) of the tracks whose centers move more slowly than `_STANDING_SPEED`."""
    limit, speed2 = np.maximum(state[2], state[3]), state[4:6] * state[4:6]
    limit *= _STANDING_SPEED
    limit *= limit
    standing: BoolArray = speed2[0] + speed2[1] < limit
    return standing


def new_state(at: FloatArray, noise: FloatArray, scores: FloatArray, now_s: PerTrack) -> FloatArray:
    """Return the state (ROWS, N) of new tracks.

    Args:
        at: detected centers and sizes (4, N).
        noise: variances (4, N) of `at`.
        scores: scores (N,) of the detections.
        now_s: times of the detections in seconds.
    """
    state = np.zeros((ROWS, len(scores)))
    state[AT], state[SEEN_AT], state[VAR_AT] = at, at[PLACE], noise
    state[VAR_SPEED] = _FIRST_VAR_SPEED * np.maximum(at[2], at[3]) ** 2
    state[SEEN_S:] = now_s
    state[DOUBTED_S] = state[MISFIT] = math.inf
    state[TREND] = state[WHOLE] = state[RATE] = 0.0
    state[GROWN] = at[2] * at[3]
    state[LEAD] = state[VOTES] = scores
    return state
