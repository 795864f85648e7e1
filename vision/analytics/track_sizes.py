"""`SizeFilter` determines how reliably the size of a detected box shows the size of its object.

A box that changes its size suddenly shows a part of an object, or two objects. A change is real if it lasts, if the box
grows or shrinks steadily, or if the box is at the edge of the frame.

If something hides the feet of an object, the filter remembers the previous height of the object, so that its point on
the ground stays where it is.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy import count_nonzero
from numpy.typing import NDArray

from vision.analytics.frame_clock import CLOCK_GRAIN_S
from vision.analytics.geometry import BoolArray, FloatArray, round_px
from vision.analytics.track_state import (
    DOUBTED,
    DOUBTED_S,
    EXTENT,
    HIDDEN_S,
    MISFIT,
    SEEN_S,
    TREND,
    VAR_EXTENT,
    WHOLE,
    PerTrack,
    values_at,
)

_PARTIAL2: Final = np.array(1.73**2)
"""Square of the deviation of the size, in standard deviations, at which a box has half its weight."""
_GROWTH: Final = 1.0  # standard deviation, in 1/s, of the growth rate of objects that approach or leave
_TREND_S: Final = 0.2  # time constant of the moving average of growth
_CLEAR_GROWTH: Final = 6.0  # variances of the average above which the growth is real, so the size follows immediately
_STEADY_GROWTH: Final = 2.0  # variances; a greater product of the average and the next growth overrides doubts
_SHAPED: Final = 4.0  # squares of the change of shape to subtract from this product
_DOUBT: Final = 0.6  # weight of a box below which its size is doubted
_DOUBT_S: Final = 0.3  # time of doubt after which the new size is adopted
_RAMP: Final = 1.25  # factor by which the misfit increases between two doubted boxes if the change lasts
_ADOPTED: Final = 0.5  # standard deviation of an adopted size, as a fraction of the size
_UPRIGHT: Final = 1.5  # minimum ratio of height to width of an object whose lower part can be hidden
_HIDES: Final = 0.85  # ratio of heights below which the lower part of an object is hidden
_TOP_STAYS: Final = 0.15  # maximum motion of the upper side of such an object, as a fraction of the height
_WIDTH_STAYS: Final = 0.35  # maximum absolute logarithm of its ratio of widths
_WHOLE_AGAIN: Final = 0.9  # ratio of heights from which the whole object is visible again
_HIDDEN_LIMIT_S: Final = 5.0  # time after which an object counts as being as small as its box
_LEAST_TRUST: Final = np.array(0.02)  # minimum weight of a box
_GROWTH_AND_SHAPE: Final = np.array([[0.5, 0.5], [0.5, -0.5]])
"""Matrix that converts logarithms of width and height ratios to growth (mean) and shape (half of the difference)."""
_QUARTERS: Final = np.array([0.25, 0.25])


def size_step(step_s: float) -> tuple[float, float]:
    """Return two arguments of `SizeFilter` for a time step of `step_s` seconds.

    The first value is the weight of a new box in the moving average of growth. The second value is the expected
    variance of growth.
    """
    return min(step_s / _TREND_S, 1.0), (_GROWTH * step_s) ** 2


class SizeFilter:
    """Filter that weighs the detected boxes of M tracks by their size, and makes the tracks follow lasting changes.

    Each argument is one value for all tracks, or an array (M,) with one value per track.

    Args:
        now_s: time of the frame in seconds.
        trend_share: the first result of `size_step`.
        growth_variance: the second result of `size_step`.
    """

    def __init__(self, now_s: PerTrack, trend_share: PerTrack, growth_variance: PerTrack) -> None:
        self._now_s, self._trend_share, self._growth_variance = now_s, trend_share, growth_variance

    def weigh(self, state: FloatArray, at: FloatArray, noise: FloatArray, cut: BoolArray) -> FloatArray:
        """Return the weight (M,) of each box, from its width and height. Update `state` with real changes of size.

        The shape of an object changes slowly. Its width and height change by the same factor when the object approaches
        or leaves. A box that is suddenly narrower, shorter, or wider shows only a part of an object, or two objects, so
        its center and edges are also wrong. Such a box gets less weight, as if its error had Student's distribution
        instead of a normal distribution.

        Growth in the same direction over several boxes is real, so it raises the gain.

        Args:
            state: state (ROWS, M) of the tracks, which is changed.
            at: centers and sizes (4, M) of the boxes.
            noise: variances (4, M) of `at`.
            cut: mask (M,) of the boxes that the edge of the frame cuts off.
        """
        if count_nonzero(state[WHOLE]):
            cut = cut | self._show_again(state, at)
        extent = state[EXTENT]
        changes = _GROWTH_AND_SHAPE.dot(np.log(at[EXTENT] / extent))
        variances = state[VAR_EXTENT] + noise[EXTENT]
        variances /= extent * extent
        variance = _QUARTERS.dot(variances)
        squares = changes * changes
        unlikely, of_shape = squares[0], squares[1]
        unlikely /= variance + self._growth_variance
        unlikely += of_shape / variance
        unlikely += _PARTIAL2
        belief: FloatArray = np.divide(_PARTIAL2, unlikely, out=unlikely)
        np.maximum(belief, _LEAST_TRUST, out=belief)
        doubted = belief < _DOUBT
        if count_nonzero(doubted) or count_nonzero(cut):
            self._adopt_changes(state, at, changes, cut, belief)
        else:
            state[DOUBTED] = math.inf
        share, before = self._trend_share, state[TREND]
        trend = changes[0] - before
        trend *= share
        trend += before
        grows = trend * trend > (_CLEAR_GROWTH * share / (2.0 - share)) * variance
        if count_nonzero(grows):
            grows &= ~doubted | (before * changes[0] > _STEADY_GROWTH * variance + _SHAPED * of_shape)
            change_px = changes[0] * grows * extent
            change_px *= change_px
            state[VAR_EXTENT] += change_px
        state[TREND] = trend
        return belief

    def _hide(self, state: FloatArray, at: FloatArray, begins: BoolArray) -> None:
        """Remember the height of objects whose box became shorter, but kept its top edge and its width.

        Of M objects, consider only those in the mask `begins` (M,).
        """
        height = state[3]
        shift = np.abs(at[1] - 0.5 * at[3] - state[1] + 0.5 * height)
        # An object that leaves becomes narrower by the same factor.
        shorter = at[3] * state[2] < _HIDES * height * np.minimum(at[2], state[2])
        hidden = begins & shorter & (shift < _TOP_STAYS * height)
        hidden &= height > _UPRIGHT * state[2]
        hidden &= np.abs(np.log(at[2] / state[2])) < _WIDTH_STAYS
        state[WHOLE, hidden] = height[hidden]
        state[HIDDEN_S, hidden] = values_at(self._now_s, hidden)

    def _show_again(self, state: FloatArray, at: FloatArray) -> BoolArray:
        """Return a mask (M,) of objects whose hidden part is visible again. Forget hidden parts after 5 s."""
        whole = state[WHOLE]
        again: BoolArray = (whole > 0.0) & (at[3] >= _WHOLE_AGAIN * whole)
        whole[again | (state[HIDDEN_S] < self._now_s - _HIDDEN_LIMIT_S)] = 0.0
        return again

    def _adopt_changes(
        self, state: FloatArray, at: FloatArray, changes: FloatArray, cut: BoolArray, belief: FloatArray
    ) -> None:
        """Make tracks adopt lasting changes of size. Set the weight `belief` of the adopted boxes to 1.

        A track adopts the size of a doubtful box if the doubt lasts for `_DOUBT_S`, or increases with the next box. In
        this case, the object turns, or a part of the object stays hidden. The size of a box that the edge of the frame
        cuts off can change at any rate, so tracks always adopt this size. `changes` (2, M) contains growth and shape,
        as logarithms of ratios.
        """
        now_s = self._now_s
        doubted = belief < _DOUBT
        begins = doubted & ~cut & (state[DOUBTED_S] == math.inf) & (state[WHOLE] == 0.0)
        if count_nonzero(begins):
            self._hide(state, at, begins)
        doubted_s = np.minimum(state[DOUBTED_S], 0.5 * (now_s + state[SEEN_S]))
        misfit = np.abs(changes).max(axis=0)
        lasts = (doubted_s <= now_s - _DOUBT_S + CLOCK_GRAIN_S) | (misfit > _RAMP * state[MISFIT])
        adopted = cut | (doubted & lasts)
        belief[adopted] = 1.0
        doubted &= ~adopted
        if count_nonzero(adopted):
            wide = _ADOPTED * adopted * state[EXTENT]
            wide *= wide
            np.maximum(state[VAR_EXTENT], wide, out=state[VAR_EXTENT])
        state[DOUBTED_S] = np.where(doubted, doubted_s, math.inf)
        state[MISFIT] = np.where(doubted, misfit, math.inf)


def hidden_heights_px(
    whole: FloatArray, detected: FloatArray, published: FloatArray
) -> tuple[BoolArray, NDArray[np.float32]] | None:
    """Return which objects are partly hidden, and the height of the hidden part below each published box.

    Args:
        whole: row `WHOLE` (M,) of the state.
        detected: detected boxes (M, 4).
        published: published boxes (M, 4).

    Returns:
        A mask (M,) of the objects that are partly hidden, and the heights (M,) of the hidden parts in pixels, or None
            if no object is hidden.
    """
    if not count_nonzero(whole):
        return None
    below = np.maximum(detected[:, 1] + whole - published[:, 3], 0.0)
    return whole > 0.0, round_px(np.where(whole > 0.0, below, 0.0)).astype(np.float32)
