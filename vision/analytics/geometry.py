"""Geometry of lines, zones, boxes, and the ground plane, computed for all objects and all shapes together.

Coordinates are pixels of the frame: x increases to the right, and y increases downward.

With 200 objects and 20 zones, this NumPy code needs a third of the time of shapely 2, because a test of bounding boxes
excludes most pairs of an object and a zone. `python -m tests.perf --only tracking` measures both times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
from numpy import count_nonzero
from numpy.typing import NDArray

from vision.types import STEPS_PER_PX

FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]
IndexArray: TypeAlias = NDArray[np.intp]
Points: TypeAlias = NDArray[np.complex128]
"""Points as complex numbers x + iy. This halves the number of NumPy calls, which take most of the time."""

Corners: TypeAlias = Sequence[tuple[float, float]]
"""Corners of a polygon as (x, y)."""

EDGE_PX: Final = 1.5
"""Points within this distance count as on the edge of the frame, because the last of 1920 pixels is number 1919."""
_INSIDE_PX: Final = 1e-3  # minimum distance of a point from the right and lower edges of the frame
_MOST_EQUAL_ROWS: Final = 1_000  # for more equal rows, a single row saves memory
_SMALL_MASK: Final = 128  # number of elements up to which NumPy's `nonzero` is fast in two dimensions
_LEAST_DEPTH: Final = 1e-9  # points with a smaller depth are at or above the horizon
_ZERO, _ONE = np.array(0.0), np.array(1.0)
_STEPS_PER_PX: Final = np.array(float(STEPS_PER_PX))  # NumPy computes faster with an array than with a Python number

ANCHORS: Final = {
    "bottom-center": (0.5, 1.0),
    "center": (0.5, 0.5),
    "top-center": (0.5, 0.0),
    "center-left": (0.0, 0.5),
    "center-right": (1.0, 0.5),
}
"""Position of each anchor in a box, as fractions of the width and height of the box."""


def places_of_anchors(anchors: Sequence[str]) -> FloatArray:
    """Return the (4, 2 A) matrix that converts the corners x1, y1, x2, y2 of a box to x and y of each of A anchors."""
    places = np.zeros((4, 2 * len(anchors)))
    for at, name in enumerate(anchors):
        for axis in (0, 1):
            share = ANCHORS[name][axis]
            places[axis, 2 * at + axis], places[axis + 2, 2 * at + axis] = 1.0 - share, share
    return places


class EqualRows:
    """Copies of one row of values, such as the width and height of the frame, to combine with the rows of an array.

    NumPy takes a third of the time if both arrays have the same shape and are contiguous.
    """

    def __init__(self, row: FloatArray) -> None:
        self._row = row
        self._rows = np.tile(row, (1, 1))

    def of(self, number: int) -> FloatArray:
        """Return an array (`number`, C) of equal rows. For many rows, return a single row (C,) to save memory."""
        rows = self._rows  # another thread can replace it
        if number > len(rows):
            if number > _MOST_EQUAL_ROWS:
                return self._row
            self._rows = rows = np.tile(self._row, (2 * number, 1))
        return rows[:number]


OUTWARD: Final = np.array([-1.0, -1.0, 1.0, 1.0])
"""Signs of the outward direction of a box at each of x1, y1, x2, and y2."""
_OUTWARD_ROWS: Final = EqualRows(OUTWARD)
_NO_SIDE: Final = np.array(0, np.uint32)  # the four bytes of a mask without a side


def pairs(mask: BoolArray) -> tuple[IndexArray, IndexArray]:
    """Return the rows (K,) and columns (K,) of the True elements of `mask` (M, N), as `mask.nonzero()` does.

    For large masks, this function is faster than `nonzero`.
    """
    if mask.size <= _SMALL_MASK:
        rows, columns = mask.nonzero()
        return rows, columns
    rows, columns = np.divmod(mask.ravel().nonzero()[0], mask.shape[1])
    return rows, columns


class LineSet:
    """Set of L directed lines. Each line has the index of the anchor that must cross the line."""

    def __init__(self, points: Sequence[Sequence[tuple[float, float]]], anchors: Sequence[int]) -> None:
        self.anchors = tuple(anchors)
        self._starts = [complex(*start) for start, _ in points]
        self._along = [complex(*end) - complex(*start) for start, end in points]
        self._lengths = [abs(along) for along in self._along]

    def of_places(self, places: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the factors (4, L) and offsets (L,) that convert the corners of a box to distances from the lines.

        `places` is the result of `places_of_anchors`.
        """
        starts = np.array(self._starts, np.complex128)
        directions = np.array(self._along, np.complex128) / np.array(self._lengths)
        columns = 2 * np.array(self.anchors, np.intp)
        factors: FloatArray = directions.real * places[:, columns + 1] - directions.imag * places[:, columns]
        return factors, directions.imag * starts.real - directions.real * starts.imag

    def distance(self, point: complex, line: int) -> float:
        """Return the distance in pixels of `point` from the extended line. Distances on the left are negative."""
        return ((point - self._starts[line]) * self._along[line].conjugate()).imag / self._lengths[line]

    def is_passed(self, before: complex, now: complex, line: int) -> bool:
        """Return True if the straight path from `before` to `now` crosses the extended line between the line's ends."""
        was = self.distance(before, line)
        change = was - self.distance(now, line)
        point = before + (was / change if change else 0.0) * (now - before)
        share = ((point - self._starts[line]) / self._along[line]).real
        return 0.0 <= share <= 1.0


class ZoneSet:
    """Set of Z closed polygons with holes, which tests all points together.

    If a zone reaches the edge of the frame, points beyond this edge also count as inside the zone, so no object leaves
    the zone at this edge.

    Args:
        zones: the outline and the holes of each zone, as corners in pixels.
        frame_size_px: width and height of the frame. If None, no zone counts as reaching the edge of the frame.
    """

    def __init__(self, zones: Sequence[Sequence[Corners]], frame_size_px: tuple[int, int] | None = None) -> None:
        outlines = [_one_outline([_snapped(ring, frame_size_px) for ring in rings]) for rings in zones]
        most = max((len(corners) for corners, _ in outlines), default=0)
        # Every outline is padded to the number of sides of the longest one. The extra sides have no length.
        padded = np.array([np.concatenate([c, np.repeat(c[:1], most - len(c), axis=0)]) for c, _ in outlines])
        padded = padded.reshape(len(outlines), most, 2)
        low, high = padded.min(axis=1, initial=1e9), padded.max(axis=1, initial=-1e9)
        self._middle = _complex((low + high) / 2)
        self._half = (high - low) / 2
        x, y = padded[..., 0], padded[..., 1]
        next_x, next_y = np.roll(x, -1, axis=1), np.roll(y, -1, axis=1)
        run, rise = next_x - x, next_y - y
        slope = np.divide(run, rise, out=np.zeros_like(rise), where=rise != 0)
        self._heights = np.ascontiguousarray(np.concatenate([y, y[:, :1]], axis=1).T)  # (sides + 1, Z) of the corners
        self._slopes, self._offsets = np.ascontiguousarray(slope.T), np.ascontiguousarray((x - slope * y).T)
        # (point - corner) * turn: position along the side (real) and distance from it (imaginary), in side lengths.
        side = np.ascontiguousarray(_complex(np.stack([run, rise], axis=2)).T)
        self._lengths = np.abs(side)
        self._turns = np.divide(1.0, side, out=np.zeros_like(side), where=side != 0)
        self._corners = np.ascontiguousarray(_complex(padded).T)
        ignored = self._lengths == 0
        self._last_px: FloatArray | None = None  # limit of the points, if a zone reaches the edge of the frame
        for zone, (corners, bridges) in enumerate(outlines):
            on_edge = _sides_on_edge(corners, frame_size_px)
            ignored[: len(corners), zone] |= bridges | on_edge
            if on_edge.any():
                self._last_px = np.array(frame_size_px) - _INSIDE_PX
        self._corners[ignored], self._turns[ignored], self._lengths[ignored] = 1e9, 1.0, 1.0  # far from every point

    def contain(self, points: Points) -> BoolArray:
        """Return the mask (M, Z) of the points (M, Z) or (M, 1) that are inside each polygon by the even-odd rule."""
        points = self._within_frame(points)
        if len(self._half) == 1:
            # There are no other zones to exclude, so the test of bounding boxes would save nothing.
            return self._parity(points[:, 0], self._heights, self._slopes, self._offsets)[:, None]
        offset = (points - self._middle)[..., None].view(np.float64)
        in_box = np.abs(offset, out=offset) <= self._half
        inside: BoolArray = in_box[..., 0] & in_box[..., 1]
        objects, zones = pairs(inside)
        point = points[objects, zones if points.shape[1] > 1 else 0]
        sides = (values.take(zones, axis=1) for values in (self._heights, self._slopes, self._offsets))
        inside[objects, zones] = self._parity(point, *sides)
        return inside

    @staticmethod
    def _parity(points: Points, heights: FloatArray, slopes: FloatArray, offsets: FloatArray) -> BoolArray:
        """Return a mask (K,) of the points (K,) to the left of an odd number of sides.

        Args:
            points: the points (K,), as complex numbers x + iy.
            heights: y of the corners (sides + 1, K or 1) of each point's zone.
            slopes: slopes (sides, K or 1) of the sides of each point's zone. On a side, x = slope * y + offset.
            offsets: offsets (sides, K or 1) of these sides.
        """
        x, y = points.real.copy(), points.imag.copy()  # NumPy computes faster with contiguous arrays
        below = y < heights
        crosses = below[1:] != below[:-1]
        where = slopes * y
        where += offsets
        crosses &= x < where
        inside: BoolArray = np.logical_xor.reduce(crosses, axis=0)
        return inside

    def distances_to_border(self, points: Points, zones: IndexArray) -> FloatArray:
        """Return the unsigned distance (K,) in pixels of each point (K,) from the border of its zone.

        Sides of a zone that lie on the edge of the frame, or beyond the edge, do not count as border.
        """
        corners, turns, lengths = self._corners, self._turns, self._lengths
        if len(self._half) > 1:
            corners, turns, lengths = (values.take(zones, axis=1) for values in (corners, turns, lengths))
        at = self._within_frame(points) - corners
        at *= turns
        share = at.real
        on_side = np.maximum(share, _ZERO)
        np.minimum(on_side, _ONE, out=on_side)
        share -= on_side
        distances = np.abs(at)
        distances *= lengths
        nearest: FloatArray = distances.min(axis=0)
        return nearest

    def _within_frame(self, points: Points) -> Points:
        """Return the points. If any zone reaches the frame's edge, move points on or beyond the edge into the frame."""
        if self._last_px is None:
            return points
        places = np.ascontiguousarray(points)[..., None].view(np.float64)
        return np.minimum(np.maximum(places, 0.0), self._last_px).view(np.complex128)[..., 0]


def _snapped(corners: Corners, frame_size_px: tuple[int, int] | None) -> FloatArray:
    """Move corners within `EDGE_PX` of the edge of the frame onto the edge. Return all corners (N, 2)."""
    ring = np.asarray(corners, np.float64).reshape(-1, 2)
    if frame_size_px is None:
        return ring
    size = np.array(frame_size_px, np.float64)
    return np.where(ring <= EDGE_PX, 0.0, np.where(ring >= size - EDGE_PX, np.maximum(ring, size), ring))


def _one_outline(rings: Sequence[FloatArray]) -> tuple[FloatArray, BoolArray]:
    """Join an outline and its holes into one ring. Return its corners (N, 2), and a mask (N,) of the bridge sides.

    A bridge goes from the first corner of the outline to a hole and back. The even-odd rule counts both directions, so
    a bridge does not change which points are inside.
    """
    outline, bridges = [*rings[0]], [False] * len(rings[0])
    for hole in rings[1:]:
        outline += [rings[0][0], *hole, hole[0]]
        bridges += [True, *[False] * len(hole), True]
    return np.array(outline).reshape(-1, 2), np.array(bridges, np.bool_)


def _sides_on_edge(corners: FloatArray, frame_size_px: tuple[int, int] | None) -> BoolArray:
    """Return a mask (N,) of the sides of a polygon (N, 2) that lie on the edge of the frame, or beyond the edge."""
    if frame_size_px is None:
        return np.zeros(len(corners), np.bool_)
    following = np.roll(corners, -1, axis=0)
    size = np.array(frame_size_px, np.float64)
    beyond_low = (corners <= 0.0) & (following <= 0.0)
    beyond_high = (corners >= size) & (following >= size)
    beyond: BoolArray = beyond_low | beyond_high
    return beyond[:, 0] | beyond[:, 1]


def _complex(places: FloatArray) -> Points:
    """Convert coordinates x, y of shape (..., 2) to complex numbers x + iy of shape (...)."""
    return places[..., 0] + 1j * places[..., 1]


class GroundPlane:
    """Converter from points in the frame to meters on the ground, given four points whose positions are known.

    The constructor solves the eight equations of the homography (Hartley and Zisserman, Multiple View Geometry, 4.1).

    Args:
        points: four points (x, y) in the frame, in pixels. No three of these points lie on one line.
        meters: the positions (x, y) of the same four points on the ground, in meters.
    """

    def __init__(self, points: Sequence[tuple[float, float]], meters: Sequence[tuple[float, float]]) -> None:
        rows, values = [], []
        # Values near 1 keep the equations well conditioned.
        self._scale = max(1.0, float(np.abs(np.asarray(points)).max()))
        for (px, py), (x, y) in zip(points, meters, strict=True):
            u, v = px / self._scale, py / self._scale
            rows += [[u, v, 1, 0, 0, 0, -u * x, -v * x], [0, 0, 0, u, v, 1, -u * y, -v * y]]
            values += [x, y]
        matrix = np.append(np.linalg.solve(np.array(rows), np.array(values)), 1.0).reshape(3, 3)
        self._rows: list[list[float]] = matrix.tolist()
        u, v = np.mean(points, axis=0) / self._scale
        self._in_front = float(np.sign(matrix[2] @ (u, v, 1.0)))

    def to_meters(self, x: float, y: float) -> tuple[float, float]:
        """Return x and y, in meters on the ground, of a point in the frame, or NaN at or above the horizon."""
        right, ahead, depth = self._projected(x, y)
        if depth * self._in_front <= _LEAST_DEPTH:
            return math.nan, math.nan
        return right / depth, ahead / depth

    def all_to_meters(self, points: Points) -> Points:
        """Return the positions on the ground, in meters, of an array of points in the frame, as `to_meters` does."""
        right, ahead, depth = self._projected(points.real, points.imag)
        places, visible = np.full(points.shape, np.nan, np.complex128), depth * self._in_front > _LEAST_DEPTH
        places.real[visible], places.imag[visible] = (axis[visible] / depth[visible] for axis in (right, ahead))
        return places

    def _projected(self, x: Any, y: Any) -> tuple[Any, Any, Any]:
        """Return the homogeneous coordinates on the ground of one point in the frame, or of an array of points."""
        u, v = x / self._scale, y / self._scale
        (a, b, c), (d, e, f), (g, h, i) = self._rows
        return a * u + b * v + c, d * u + e * v + f, g * u + h * v + i


def covered_parts(boxes_xyxy: FloatArray, nearer_xyxy: FloatArray) -> FloatArray:
    """Return the fraction (M, N) of the area of each box (M, 4) that each box of `nearer_xyxy` (N, 4) covers.

    A box covers only boxes whose lower edges are higher in the frame, because their objects are farther away.
    """
    low = np.maximum(boxes_xyxy[:, None, :2], nearer_xyxy[:, :2])
    common = np.minimum(boxes_xyxy[:, None, 2:], nearer_xyxy[:, 2:]) - low
    np.maximum(common, 0.0, out=common)
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    parts: FloatArray = common.prod(axis=2) / areas[:, None]
    parts *= boxes_xyxy[:, 3:] < nearer_xyxy[:, 3]
    return parts


def iou(a_xyxy: FloatArray, b_xyxy: FloatArray) -> FloatArray:
    """Return the intersection over union (M, N) of each pair of boxes from (M, 4) and (N, 4)."""
    ax1, ay1, ax2, ay2 = a_xyxy.T[:, :, None]
    bx1, by1, bx2, by2 = b_xyxy.T
    width = np.minimum(ax2, bx2) - np.maximum(ax1, bx1)
    height = np.minimum(ay2, by2) - np.maximum(ay1, by1)
    common: FloatArray = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    union: FloatArray = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - common
    return common / union


class FrameEdges:
    """Edges of the frames of several cameras, for comparisons with boxes.

    The parameter `camera` of the methods is the index of the camera of each box (N,). If all frames have the same size,
    `camera` has no effect, and can be None.
    """

    def __init__(self, sizes_px: Sequence[tuple[int, int]], margin_px: float) -> None:
        """Store `sizes_px`, the width and height of each camera's frame.

        A box counts as near an edge if its distance from the edge is at most `margin_px`.
        """
        ends = np.tile(np.array(sizes_px, np.float64), 2)  # (cameras, 4) width and height twice
        starts = OUTWARD * (0.0, 0.0, 1.0, 1.0) * ends - margin_px
        self._is_equal = len(set(sizes_px)) == 1
        self._all_ends, self._all_starts = ends, starts
        self._ends, self._starts = EqualRows(ends[0]), EqualRows(starts[0])

    def are_near(self, boxes: FloatArray, camera: IndexArray | None) -> BoolArray:
        """Return a mask (N,) of the boxes (N, 4) that are near an edge of the frame, or extend beyond the edge."""
        number = len(boxes)
        starts = self._starts.of(number) if self._is_equal else self._all_starts[camera]
        cut = boxes * _OUTWARD_ROWS.of(number) >= starts
        near: BoolArray = cut.view(np.uint32)[:, 0] != _NO_SIDE
        return near

    def clip(self, boxes: FloatArray, detected: FloatArray, camera: IndexArray | None) -> None:
        """Clip `boxes` (N, 4) to the frame, in place. Replace a box outside the frame with its detected box.

        `detected` (N, 4) are the detected boxes.
        """
        np.maximum(boxes, _ZERO, out=boxes)
        ends = self._ends.of(len(boxes)) if self._is_equal else self._all_ends[camera]
        np.minimum(boxes, ends, out=boxes)
        empty = boxes[:, :2] >= boxes[:, 2:]
        if count_nonzero(empty):
            outside = empty.any(axis=1)
            boxes[outside] = detected[outside]


@lru_cache(maxsize=64)  # the frames of the cameras seldom change their size
def edges_of_frames(sizes_px: tuple[tuple[int, int], ...], margin_px: float) -> FrameEdges:
    """Return the edges of the frames of several cameras. Equal arguments return the same object, which saves time."""
    return FrameEdges(sizes_px, margin_px)


def round_px(lengths_px: FloatArray) -> FloatArray:
    """Round lengths to the precision of published boxes, so that subscribers can repeat the analytics exactly."""
    rounded: FloatArray = lengths_px * _STEPS_PER_PX
    np.rint(rounded, out=rounded)
    rounded /= _STEPS_PER_PX
    return rounded
