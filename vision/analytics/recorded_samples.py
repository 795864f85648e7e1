"""`Samples` computes the motion and the jitter of objects in archived frames from stored positions.

`TrackedObjects` defines motion and jitter. `Samples` computes them for many objects and frames together, with the same
results.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vision.analytics.geometry import BoolArray, FloatArray, GroundPlane, IndexArray, Points
from vision.analytics.tracked_objects import (
    JITTER_S,
    LEAST_SPAN_S,
    SAMPLES,
    SPACING_S,
    WINDOW_S,
    fitted_velocity,
    jitter_of,
    product_factor,
    square_factor,
)


def sorted_order(numbers: NDArray[np.int64]) -> IndexArray:
    """Return the indices (N,) that sort `numbers` (N,). The sort is stable."""
    keys: NDArray[Any] = numbers
    if len(numbers) and numbers.max() - (lowest := numbers.min()) < 1 << 16:
        keys = (numbers - lowest).astype(np.uint16)  # NumPy sorts them several times faster
    return keys.argsort(kind="stable")


class Steps:
    """Times (steps) at which the positions of all objects are stored. Steps are numbered from 1."""

    def __init__(self) -> None:
        self.number = 0  # number of the last step
        self.oldest = 1  # number of the oldest step in memory
        self.fades: list[float] = []
        """Factors of the weight of earlier jitter, from the oldest step on; NaN for the first two steps."""
        self._times_s: list[float] = []
        self._ratios: list[float] = []  # interval before each step divided by the previous interval; NaN if unknown

    def add_due(self, times_s: Sequence[float], have_objects: Sequence[bool]) -> Iterator[int]:
        """Add the steps in the next frames. Yield, for each frame, the number of the latest step.

        A frame is a step if it has objects, and if at least `SPACING_S` has passed since the previous step.

        Args:
            times_s: time of each frame in seconds.
            have_objects: True for each frame that has objects.
        """
        last_s = self._times_s[-1] if self._times_s else -math.inf
        for now_s, has_objects in zip(times_s, have_objects, strict=True):
            if has_objects and now_s - last_s >= SPACING_S:
                self._add(now_s)
                last_s = now_s
            yield self.number

    def _add(self, now_s: float) -> None:
        self.number += 1
        ratio = fade = math.nan
        if len(self._times_s) > 1:
            before_s, last_s = self._times_s[-2:]
            ratio, fade = (now_s - last_s) / (last_s - before_s), math.exp((last_s - now_s) / JITTER_S)
        self._times_s.append(now_s)
        self._ratios.append(ratio)
        self.fades.append(fade)

    def forget_before(self, step: int) -> None:
        """Forget the steps before `step`, but keep at least the last two steps."""
        number = min(step - self.oldest, len(self._times_s) - 2)
        if number > 0:
            self.oldest += number
            del self._times_s[:number], self._ratios[:number], self.fades[:number]

    def times_of(self, steps: IndexArray) -> FloatArray:
        """Return the times of steps (...) in seconds. The result for a step that is not in memory is -inf."""
        times_s, at = np.array([-math.inf, *self._times_s]), steps - self.oldest + 1
        return times_s[np.maximum(at, 0)]

    def ratios_of(self, steps: IndexArray) -> FloatArray:
        """Return the interval before each of `steps` (...) divided by the previous interval, or NaN if unknown."""
        ratios, at = np.array([math.nan, *self._ratios]), steps - self.oldest + 1
        return ratios[np.maximum(at, 0)]


@dataclass(frozen=True, slots=True)
class Lives:
    """Lives of the tracks in memory.

    A life of a track ends when the object counts as gone. If the track id occurs again after this end, another life
    starts.
    """

    starts: IndexArray  # (L,) first row
    ends: IndexArray  # (L,) row after the last row
    gone: IndexArray  # (L,) frame in which the object counts as gone; the number of frames if there is none yet
    of_row: IndexArray  # (N,) life of each row


class Samples:
    """Positions of S rows, sorted by life, and then by frame. Each row is in the frame of a step."""

    def __init__(
        self, steps: Steps, rows: IndexArray, of_step: IndexArray, of_life: IndexArray, points: Points
    ) -> None:
        """Store the positions `points` (S,) of `rows` (S,), with the step (S,) and the life (S,) of each row."""
        self._steps, self._rows, self._of_step, self._points = steps, rows, of_step, points
        self._of_life = of_life
        self._keys = of_life * _KEY + of_step
        self._jitter: FloatArray = np.zeros((0, 2))
        self._carried: FloatArray = np.zeros((0, 2))

    def measure_jitter(self, sizes: FloatArray, carried: FloatArray, carried_step: int) -> None:
        """Compute the jitter at each sample, as `TrackedObjects._measure_jitter` defines it.

        Args:
            sizes: sizes (S,) of the objects in pixels.
            carried: jitter and jitter weight (L, 2) of each of L lives at the step `carried_step`.
            carried_step: number of the last step at which the jitter is known.
        """
        steps, lives, points = self._of_step, self._of_life, self._points
        first, newest = np.full((2, len(steps)), np.nan)
        if len(steps) > 3:
            ratios = self._steps.ratios_of(steps)
            moved = points[2:] - (1.0 + ratios[2:]) * points[1:-1] + ratios[2:] * points[:-2]
            first[2:] = jitter_of(moved, moved, sizes[2:], square_factor(ratios[2:]))
            newest[3:] = jitter_of(moved[1:], moved[:-1], sizes[3:], product_factor(ratios[2:-1], ratios[3:]))
            for values, number in ((first, 2), (newest, 3)):
                is_known = (lives[number:] == lives[:-number]) & (steps[number:] - steps[:-number] == number)
                values[number:][~is_known] = np.nan
        self._carried, self._jitter = carried, carried[lives]
        (new,) = (steps > carried_step).nonzero()
        columns = (values[new].tolist() for values in (lives, steps, first, newest))
        self._jitter[new] = np.array(self._averages(carried.tolist(), *columns)).T

    def _averages(
        self,
        carried: Sequence[tuple[float, float]],
        lives: Sequence[int],
        steps: Sequence[int],
        first: Sequence[float],
        newest: Sequence[float],
    ) -> tuple[list[float], list[float]]:
        """Return the jitter and the weight of the jitter after each of several samples.

        Args:
            carried: jitter and weight of each life before these samples.
            lives: life of each sample.
            steps: step of each sample.
            first: jitter that counts until `newest` is known for the first time, or NaN if unknown.
            newest: jitter that each sample adds to the moving average, or NaN if unknown.
        """
        # Lists of numbers need less time than a list of tuples.
        values, weights, present, value, weight = list[float](), list[float](), -1, 0.0, 0.0
        fades, oldest = self._steps.fades, self._steps.oldest
        for life, step, alone, added in zip(lives, steps, first, newest, strict=True):
            if life != present:
                present = life
                value, weight = carried[life]
            if added == added:  # noqa: PLR0124 - NaN is not equal to itself
                if weight == 0.0 and alone == alone:  # noqa: PLR0124
                    value = alone
                weight = weight * fades[step - oldest] + 1.0
                value += (added - value) / weight
            elif weight == 0.0 and alone == alone:  # noqa: PLR0124
                value = alone
            values.append(value)
            weights.append(weight)
        return values, weights

    def jitter_at(self, rows: IndexArray, lives: IndexArray) -> FloatArray:
        """Return an array (M, 2) of the jitter and the jitter weight of M objects at their detections `rows` (M,).

        `lives` (M,) are the indices of the lives to which these rows belong.
        """
        at = self._rows.searchsorted(rows, "right") - 1
        found: FloatArray = self._carried[lives]
        (known,) = (at >= 0).nonzero()
        known = known[self._of_life[at[known]] == lives[known]]
        found[known] = self._jitter[at[known]]
        return found

    def velocities(
        self, lives: IndexArray, steps: IndexArray, now_s: FloatArray, ground: GroundPlane | None
    ) -> tuple[list[complex], list[complex]]:
        """Return the velocities (M,) of M objects in pixels per second, and on the ground in meters per second.

        A velocity is NaN if the positions of the object span less than `LEAST_SPAN_S`. The velocities on the ground are
        also NaN if `ground` is None.

        Args:
            lives: lives (M,) of the objects.
            steps: last step (M,) at the time of each velocity.
            now_s: time (M,) of each velocity in seconds.
            ground: converter from pixels to meters, or None if no ground points are configured.
        """
        # The order is that of `TrackedObjects`, which stores step n at index n % SAMPLES, because sums of
        # floating-point numbers depend on the order.
        numbers = steps[:, None] - (steps[:, None] - np.arange(SAMPLES)) % SAMPLES
        keys, times_s = lives[:, None] * _KEY + numbers, self._steps.times_of(numbers)
        at = self._keys.searchsorted(keys)
        known = (at < len(self._keys)) & (times_s >= (now_s - WINDOW_S)[:, None])
        known[known] = self._keys[at[known]] == keys[known]
        seen_s, points = times_s - now_s[:, None], np.zeros(known.shape, np.complex128)
        points[known] = self._points[at[known]]
        moves, on_ground = _velocities(known, seen_s, points), np.full(len(lives), np.nan, np.complex128)
        if ground is not None:
            places = ground.all_to_meters(points)
            on_ground = _velocities(known & ~np.isnan(places), seen_s, places)
        return moves.tolist(), on_ground.tolist()


_KEY: Final = 1 << 40  # larger than the number of a step


def _velocities(known: BoolArray, seen_s: FloatArray, points: Points) -> Points:
    """Return the velocity (M,) of M objects, from K positions of each, or NaN if the positions span too little time.

    Args:
        known: mask (M, K) of the positions that are known. The other positions are ignored.
        seen_s: times (M, K) of the positions in seconds.
        points: the positions (M, K).
    """
    span_s = np.where(known, seen_s, -np.inf).max(axis=1) - np.where(known, seen_s, np.inf).min(axis=1)
    found, (far,) = np.full(len(known), np.nan, np.complex128), (span_s >= LEAST_SPAN_S).nonzero()
    known = known[far]
    seen_s, points = np.where(known, seen_s[far], 0.0), np.where(known, points[far], 0.0)
    found.real[far], found.imag[far] = fitted_velocity(known.sum(axis=1), [*seen_s.T], [*points.T])
    return found
