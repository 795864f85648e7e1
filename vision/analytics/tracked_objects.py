"""`TrackedObjects` stores the state and the motion of the objects of one camera within one epoch.

`TrackTable` contains the state of each object between two frames. `TrackSnapshot` contains the objects of one frame.

A straight line, fitted to the positions of about the last second, determines the speed and the direction of an object,
because the difference between two positions at 30 frames/s is mostly noise. `TrackedObjects` stores about eight
positions per second, and fits the line only for objects that have an event.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add, mul
from typing import Any, Final, NamedTuple

import numpy as np
from numpy import count_nonzero  # several times faster than any() and all() on small arrays
from numpy.typing import DTypeLike, NDArray

from vision.analytics.frame_clock import FrameClock
from vision.analytics.geometry import (
    EDGE_PX,
    OUTWARD,
    BoolArray,
    EqualRows,
    FloatArray,
    GroundPlane,
    IndexArray,
    LineSet,
    Points,
    places_of_anchors,
)
from vision.types import Tracks

MARGIN: Final = 0.1
"""Margin of zones, and largest margin of lines, as a fraction of the box's longer side: twice the jitter of boxes."""
_MARGIN: Final = np.array(MARGIN)  # NumPy computes faster with an array than with a Python number
STEADY_MARGIN: Final = 0.04  # margin of lines for objects whose boxes do not jitter
_MARGIN_OF_JITTER: Final = 3.5  # margin of lines in standard deviations of the error of the bottom center
FIRST_JITTER: Final = (MARGIN / _MARGIN_OF_JITTER) ** 2  # jitter that is assumed until it is measured
JITTER_S: Final = 5.0  # time constant of the moving average of jitter
_MOVING: Final = 0.1  # minimum speed for a direction of travel, in object sizes per second
SAMPLES: Final = 9  # number of positions stored per object; NaN if the object was not detected
SPACING_S: Final = 0.125  # minimum time between two stored positions
WINDOW_S: Final = 1.05  # maximum age of a position that contributes to a velocity
_UNKNOWN: Final = complex(math.nan, math.nan)
LEAST_SPAN_S: Final = 0.35  # minimum duration of a history for a velocity
_NO_ID: Final = np.iinfo(np.int64).max


class TrackSnapshot(NamedTuple):
    """M objects of one frame, with A anchors and L lines."""

    now_s: float  # time of the frame in seconds
    rows: IndexArray  # (M,) rows in the track table, which still contains the `points` of the previous frame
    fresh: BoolArray | None  # (M,) True for new objects; None if no object is new
    first_distances: FloatArray  # (F, 2 L) as `distances`, but for F new objects at their first detection
    points: Points  # (M, A) positions of the anchors
    distances: FloatArray  # (M, 2 L) signed distances from the lines in pixels, with each line twice
    margin: FloatArray  # (M,) distance in pixels by which an object must pass the border of a zone
    cut: BoolArray  # (M, 4) True if the edge of the frame cuts off the left, top, right, or bottom of the box


@dataclass(frozen=True, slots=True)
class TrackColumn:
    """Definition of a column of a `TrackTable`: the dtype, the shape for one object, and the value for a new object."""

    dtype: DTypeLike
    shape: tuple[int, ...] = ()
    blank: float = 0

    def rows(self, number: int) -> NDArray[Any]:
        """Return the initial values of `number` new objects, of shape (number, *shape)."""
        return np.full((number, *self.shape), self.blank, self.dtype)

    def carried(self, earlier: NDArray[Any], where: IndexArray) -> NDArray[Any]:
        """Rearrange the entries of each object in a column. Return the result (N, F).

        Args:
            earlier: the column (N, E) with E entries for each of N objects.
            where: for each entry of the result (F,), the index of its entry in `earlier`, or -1 for the initial value.
        """
        values, known = self.rows(len(earlier)), where >= 0
        values[:, known] = earlier[:, where[known]]
        return values


class TrackTable(dict[str, NDArray[Any]]):
    """State of tracks: columns by name, with one row per track, in ascending order of track ids."""

    def __init__(self, columns: Mapping[str, TrackColumn]) -> None:
        super().__init__({name: column.rows(0) for name, column in columns.items()})
        self._kinds = columns
        # The array has one id more than there are tracks, so that every search finds a row.
        self._ids: NDArray[np.int64] = np.array([_NO_ID])

    @property
    def ids(self) -> NDArray[np.int64]:
        """R track ids, in ascending order."""
        return self._ids[:-1]

    def rows_of(self, track_ids: NDArray[np.int64]) -> tuple[IndexArray, BoolArray | None]:
        """Return the rows (M,) of M track ids, and a mask (M,) of the new ids. Add a row for each new id.

        If no id is new, return None instead of the mask.
        """
        rows = self._ids.searchsorted(track_ids)
        present = self._ids[rows] == track_ids
        if count_nonzero(present) == len(present):
            return rows, None
        added = np.unique(track_ids[~present])
        ids = np.concatenate([self.ids, added])
        order = ids.argsort(kind="stable")
        self._ids = np.append(ids[order], _NO_ID)
        for name, values in self.items():
            self[name] = np.concatenate([values, self._kinds[name].rows(len(added))])[order]
        return self._ids.searchsorted(track_ids), ~present

    def adopt(self, earlier: TrackTable, places: Mapping[str, IndexArray]) -> None:
        """Replace all rows with the rows of another table, whose configuration can be different.

        Args:
            earlier: the other table, which this table replaces.
            places: for each entry of a column, the index of the entry in the column of `earlier`, or -1 for a new
                entry, which gets the initial value. The keys are the names of the columns whose entries differ between
                the tables.
        """
        self._ids = earlier._ids
        for name, column in self._kinds.items():
            where = places.get(name)
            self[name] = earlier[name] if where is None else column.carried(earlier[name], where)

    def keep(self, kept: BoolArray) -> None:
        """Delete the rows for which the mask `kept` (R,) is False."""
        self._ids = np.append(self.ids[kept], _NO_ID)
        for name, values in self.items():
            self[name] = values[kept]


class TableLayout(NamedTuple):
    """Definition of the values that `TrackedObjects` computes and stores for each object of a camera."""

    anchors: Sequence[str]  # names of the columns of `TrackSnapshot.points`; the first must be the point on the ground
    lines: LineSet  # the lines from which distances are computed
    ground: GroundPlane | None  # converter from pixels to meters, for speeds; None if no ground points are configured
    columns: Mapping[str, TrackColumn]  # columns of the table for the state that lines and zones store, by name
    frame_size_px: tuple[int, int]  # width and height


class TrackedObjects:
    """State and motion of the objects of one camera. `table` contains the state, and `clock` contains the time."""

    def __init__(self, layout: TableLayout) -> None:
        """Start without objects, at the time 0."""
        own = {
            "class_id": TrackColumn(np.int32),
            "seen_s": TrackColumn(np.float64),
            "size": TrackColumn(np.float64),
            "points": TrackColumn(np.complex128, (len(layout.anchors),)),
            "cut": TrackColumn(np.uint32),  # the four bytes of a row of `TrackSnapshot.cut`
            # Measured variance of the error of the bottom center, in object sizes²; it can be negative.
            "jitter": TrackColumn(np.float64, (), FIRST_JITTER),
            "jitter_weight": TrackColumn(np.float64),  # sum of the weights of the measurements of jitter
            "trail": TrackColumn(np.complex128, (SAMPLES,), math.nan),
        }
        self.table = TrackTable({**own, **layout.columns})
        self.clock = FrameClock()
        self.oldest_s = math.inf  # no object was last detected before this time
        self._ground = layout.ground
        self._outward = EqualRows(OUTWARD)
        self._cut_from = EqualRows(OUTWARD * (0.0, 0.0, *layout.frame_size_px) - EDGE_PX)
        self._has_lines = bool(layout.lines.anchors)
        self._end = 2 * len(layout.anchors)
        self._matrix, offset = _box_transform(layout.anchors, layout.lines)
        self._offset = EqualRows(offset)
        self._sample_times_s = [-math.inf] * SAMPLES  # the same for all objects
        self._sample = 0

    def adopt(self, earlier: TrackedObjects, places: Mapping[str, IndexArray]) -> None:
        """Continue with the objects and the clock of the instance `earlier`. `TrackTable.adopt` describes `places`."""
        self.table.adopt(earlier.table, places)
        self.clock, self.oldest_s = earlier.clock, earlier.oldest_s
        self._sample_times_s, self._sample = earlier._sample_times_s, earlier._sample

    def see(self, tracks: Tracks) -> TrackSnapshot:
        """Store the state of the objects in a frame, except `points`. Return a snapshot of this frame.

        The caller stores `points` when it no longer needs the previous points. For a new object, the previous points
        are the points of its previous detection.
        """
        table, now_s, end = self.table, self.clock.now_s, self._end
        rows, fresh = table.rows_of(tracks.track_ids)
        if fresh is not None:
            self.oldest_s = min(self.oldest_s, now_s)
        boxes = tracks.boxes_xyxy.astype(np.float64, order="C")
        cut = self.is_cut(boxes)
        if tracks.hidden_px is not None:
            boxes[:, 3] += tracks.hidden_px
        columns: FloatArray = boxes.dot(self._matrix)
        columns += self._offset.of(len(columns))
        points = columns.view(np.complex128)[:, : end // 2]
        size = np.maximum(columns[:, end], columns[:, end + 1])
        table["seen_s"][rows] = now_s
        table["size"][rows] = size
        table["class_id"][rows] = tracks.class_ids
        table["cut"][rows] = packed(cut)
        if now_s - self._sample_times_s[self._sample] >= SPACING_S:
            self._sample = (self._sample + 1) % SAMPLES
            self._sample_times_s[self._sample] = now_s
            samples = table["trail"][:, self._sample]
            samples.fill(math.nan)
            samples[rows] = points[:, 0]
            if self._has_lines:
                self._measure_jitter()
        distances = first = np.ascontiguousarray(columns[:, end + 2 :])
        if fresh is not None:
            first = self._appear(rows, fresh, columns, tracks.previous_xyxy)
        return TrackSnapshot(now_s, rows, fresh, first, points, distances, _MARGIN * size, cut)

    def is_cut(self, boxes: FloatArray) -> BoolArray:
        """Return a mask (M, 4) of the sides of boxes (M, 4) that the edge of the frame cuts off."""
        number = len(boxes)
        cut: BoolArray = boxes * self._outward.of(number) >= self._cut_from.of(number)
        return cut

    def _appear(
        self, rows: IndexArray, fresh: BoolArray, columns: FloatArray, previous_xyxy: NDArray[np.float32] | None
    ) -> FloatArray:
        """Store the first points of new objects in the table. Return the distances of these points from the lines.

        Args:
            rows: rows (M,) of the objects in the table.
            fresh: mask (M,) of the F new objects.
            columns: columns (M, ...) of the current boxes, as `_columns_of` returns them.
            previous_xyxy: previous boxes (M, 4) of the objects, NaN where unknown. The first points are the points of
                the previous box if it is known, and of the current box otherwise.

        Returns:
            `TrackSnapshot.first_distances` (F, 2 L).
        """
        first: FloatArray = columns[fresh]
        if previous_xyxy is not None:
            before = self._columns_of(previous_xyxy[fresh])
            first = np.where(np.isnan(before), first, before)
        self.table["points"][rows[fresh]] = np.ascontiguousarray(first[:, : self._end]).view(np.complex128)
        return first[:, self._end + 2 :]

    def _columns_of(self, boxes: NDArray[np.float32]) -> FloatArray:
        """Return the columns (M, ...) of boxes (M, 4), as `_box_transform` defines them.

        The columns of a box do not depend on the other boxes. In a matrix product, their last bits could depend on the
        other boxes.
        """
        columns = np.zeros((len(boxes), self._matrix.shape[1]))
        for corner, factors in zip(boxes.T.astype(np.float64), self._matrix, strict=True):
            columns += corner[:, None] * factors
        columns += self._offset.of(len(columns))
        return columns

    def _measure_jitter(self) -> None:
        """Update the columns `jitter` and `jitter_weight` with the newest deviation of each object.

        If the errors of positions are independent, successive deviations tend to have opposite directions, and the mean
        of their negative products is proportional to the variance of the errors. If an object turns or accelerates,
        its deviations have the same direction, so motion does not count as jitter.

        The first deviation of an object has no predecessor. Therefore, its square counts until the second deviation is
        known.
        """
        last, before = self._deviation(0), self._deviation(1)
        if last is None:
            return
        moved, ratio = last
        table, jitter, weight = self.table, self.table["jitter"], self.table["jitter_weight"]
        first = jitter_of(moved, moved, table["size"], square_factor(ratio))
        np.copyto(jitter, first, where=(weight == 0.0) & ~np.isnan(first))
        if before is None:
            return
        newest = jitter_of(moved, before[0], table["size"], product_factor(before[1], ratio))
        known = ~np.isnan(newest)
        step_s = self._sample_times_s[self._sample] - self._sample_times_s[self._sample - 1]
        new_weight = weight * math.exp(-step_s / JITTER_S) + 1.0
        np.copyto(jitter, jitter + (newest - jitter) / new_weight, where=known)
        np.copyto(weight, new_weight, where=known)

    def _deviation(self, back: int) -> tuple[Points, float] | None:
        """Return how far a stored position of each object deviates from the prediction from the previous two positions.

        Args:
            back: 0 for the newest stored position, 1 for the previous position.

        Returns:
            The deviations (R,) in pixels, or NaN if unknown, and the ratio of the two intervals between the three
                positions. The result is None if fewer than three positions are stored.
        """
        last, middle, first = (self._sample - back - number for number in range(3))
        last_s, middle_s, first_s = (self._sample_times_s[at] for at in (last, middle, first))
        if first_s == -math.inf:
            return None
        trail: Points = self.table["trail"]
        ratio = (last_s - middle_s) / (middle_s - first_s)
        moved: Points = trail[:, last] - (1.0 + ratio) * trail[:, middle] + ratio * trail[:, first]
        return moved, ratio

    def keep(self, kept: BoolArray) -> None:
        """Forget the objects for which the mask `kept` (R,) is False."""
        self.oldest_s = float(self.table["seen_s"][kept].min(initial=math.inf))
        if not kept.all():
            self.table.keep(kept)

    def motion(self, row: int) -> tuple[float, float]:
        """Return the speed of an object in km/h and its direction of travel in degrees, or NaN if unknown.

        Directions refer to the frame: 0 is up, 90 is right, 180 is down, 270 is left. Without a ground plane, the speed
        is unknown. If an object hardly moves, its direction is unknown.
        """
        times_s, points = self._recent(row)
        moves, on_ground = _velocity(times_s, points), _UNKNOWN
        if self._ground is not None:
            places = [complex(*self._ground.to_meters(point.real, point.imag)) for point in points]
            visible = [at for at, place in enumerate(places) if not math.isnan(place.real)]
            on_ground = _velocity([times_s[at] for at in visible], [places[at] for at in visible])
        return motion_of(moves, on_ground, float(self.table["size"][row]))

    def _recent(self, row: int) -> tuple[list[float], list[complex]]:
        """Return the times, in seconds relative to the clock, and the points stored in the last second."""
        now_s, times_s, points = self.clock.now_s, [], []
        for time_s, point in zip(self._sample_times_s, self.table["trail"][row].tolist(), strict=True):
            if time_s >= now_s - WINDOW_S and point == point:  # noqa: PLR0124 - NaN is not equal to itself
                times_s.append(time_s - now_s)
                points.append(point)
        return times_s, points


def packed(cut: BoolArray) -> NDArray[np.uint32]:
    """Return the rows of a mask (M, 4) as numbers (M,) for the column `cut` of the track table.

    Numbers are faster to write than rows. `view(np.bool_)` converts them back.
    """
    return np.ascontiguousarray(cut).view(np.uint32)[:, 0]


def jitter_of(moved: Points, before: Points, size: FloatArray, factor: float | FloatArray) -> FloatArray:
    """Return the jitter (M,) of objects: the variance of the errors of their positions, in object sizes².

    Args:
        moved: deviations (M,) of the positions from uniform motion, in pixels.
        before: deviations (M,) of the previous positions, or the same array as `moved`.
        size: sizes (M,) of the objects in pixels.
        factor: ratio of the mean product of both deviations to the variance, if the errors are independent.
    """
    variance: FloatArray = moved.real * before.real
    variance += moved.imag * before.imag
    variance /= factor * (size * size)
    return variance


def square_factor(ratio: float | FloatArray) -> float | FloatArray:
    """Return `factor` of `jitter_of` for the square of one deviation. `ratio` is the second result of `_deviation`."""
    return 1.0 + (1.0 + ratio) * (1.0 + ratio) + ratio * ratio


def product_factor(before: float | FloatArray, ratio: float | FloatArray) -> float | FloatArray:
    """Return `factor` of `jitter_of` for two successive deviations.

    `before` and `ratio` are the second results of `_deviation` for the first and for the second deviation.
    """
    return -1.0 - (2.0 + before) * ratio


def line_margin_px(jitter: FloatArray, size: FloatArray | float) -> FloatArray:
    """Return the margins of lines in pixels, from the columns `jitter` and `size` of the track table."""
    margin = _MARGIN_OF_JITTER * np.sqrt(np.maximum(jitter, 0.0))
    limited: FloatArray = np.minimum(np.maximum(margin, STEADY_MARGIN), MARGIN) * size
    return limited


def _box_transform(anchors: Sequence[str], lines: LineSet) -> tuple[FloatArray, FloatArray]:
    """Return the matrix (4, 2 A + 2 + 2 L) and the offset that convert boxes to the inputs of lines and zones.

    The columns are x and y of each of A anchors, the width and the height, the distances from L lines, and a second
    copy of these distances.
    """
    places = places_of_anchors(anchors)
    distances, offset = lines.of_places(places)
    size = ((-1.0, 0.0), (0.0, -1.0), (1.0, 0.0), (0.0, 1.0))
    matrix = np.concatenate([places, size, distances, distances], axis=1)
    return matrix, np.concatenate([np.zeros(places.shape[1] + 2), offset, offset])


def motion_of(moves: complex, on_ground: complex, size: float) -> tuple[float, float]:
    """Return the speed in km/h and the direction in degrees, as `TrackedObjects.motion` does.

    Args:
        moves: velocity x + iy in pixels per second, or NaN if unknown.
        on_ground: velocity x + iy on the ground in meters per second, or NaN if unknown.
        size: size of the object in pixels.
    """
    heading_deg = math.nan
    if abs(moves) >= _MOVING * size:
        heading_deg = math.degrees(math.atan2(moves.real, -moves.imag)) % 360.0
    return 3.6 * abs(on_ground), heading_deg


def _velocity(times_s: Sequence[float], points: Sequence[complex]) -> complex:
    """Return the velocity x + iy per second, or NaN if the positions span less than `LEAST_SPAN_S`."""
    if not times_s or max(times_s) - min(times_s) < LEAST_SPAN_S:
        return _UNKNOWN
    return complex(*fitted_velocity(len(times_s), times_s, points))


def fitted_velocity(number: Any, times_s: Sequence[Any], points: Sequence[Any]) -> tuple[Any, Any]:
    """Return the components x and y of the velocity per second, fitted to `number` positions by least squares.

    The elements of the arguments are either numbers for one object, or arrays (M,) for M objects. The results have the
    same form. Where a position is not known, both its time and its position must be 0.
    """
    # The result of `sum` depends on the version of Python.
    sum_t, sum_p = reduce(add, times_s), reduce(add, points)
    spread = number * reduce(add, map(mul, times_s, times_s)) - sum_t * sum_t
    moved = number * reduce(add, map(mul, times_s, points)) - sum_t * sum_p
    return moved.real / spread, moved.imag / spread
