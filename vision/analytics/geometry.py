"""Lines, polygons and the ground plane, for every object and every shape at once.

All coordinates are pixels of the picture, x to the right and y down. Plain NumPy: on 200 objects and 20 zones it takes
about a third of the time of shapely 2, because the polygons' bounding boxes leave few pairs to look at
(`python -m tests.perf --only tracking`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]
IndexArray: TypeAlias = NDArray[np.intp]

ANCHORS: Final = {
    "bottom-center": (0.5, 1.0),
    "center": (0.5, 0.5),
    "top-center": (0.5, 0.0),
    "center-left": (0.0, 0.5),
    "center-right": (1.0, 0.5),
}
"""Where in a box the point lies that stands for the object: fractions of its width and height."""


def anchor_points(boxes_xyxy: FloatArray, anchors: Sequence[str]) -> tuple[FloatArray, FloatArray]:
    """x and y, (M, A) each, of A anchors of M boxes."""
    fractions = np.array([ANCHORS[name] for name in anchors], np.float64).reshape(-1, 2)
    x1, y1, x2, y2 = boxes_xyxy.T[:, :, None]
    return x1 + fractions[:, 0] * (x2 - x1), y1 + fractions[:, 1] * (y2 - y1)


def pairs(mask: BoolArray) -> tuple[IndexArray, IndexArray]:
    """Row and column, (K,) each, of what is true in `mask` (M, N); much quicker than `nonzero` in two dimensions."""
    rows, columns = np.divmod(mask.ravel().nonzero()[0], mask.shape[1])
    return rows, columns


class LineSet:
    """L directed lines, each from its first point to its second."""

    def __init__(self, points: Sequence[Sequence[tuple[float, float]]]) -> None:
        ends = np.asarray(points, np.float64).reshape(-1, 2, 2)
        self._start_x, self._start_y = ends[:, 0].T
        along = ends[:, 1] - ends[:, 0]
        self._length = np.hypot(*along.T)
        self._unit_x, self._unit_y = (along / self._length[:, None]).T

    def __len__(self) -> int:
        return len(self._length)

    def distances(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Signed distances (M, L) of points (M, L) from the endless lines: positive to the right of who looks along."""
        distances: FloatArray = self._unit_x * (y - self._start_y) - self._unit_y * (x - self._start_x)
        return distances

    def are_passed(self, x: FloatArray, y: FloatArray, lines: IndexArray) -> BoolArray:
        """(K,) whether points (K,) on the endless lines lie between the lines' ends."""
        along = (x - self._start_x[lines]) * self._unit_x[lines] + (y - self._start_y[lines]) * self._unit_y[lines]
        between: BoolArray = (along >= 0) & (along <= self._length[lines])
        return between


class ZoneSet:
    """Z polygons, which close by themselves."""

    def __init__(self, polygons: Sequence[Sequence[tuple[float, float]]]) -> None:
        corners = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in polygons]
        most = max((len(polygon) for polygon in corners), default=0)
        # Every polygon gets as many sides as the longest one: those too many have no length and are never crossed.
        padded = np.array([np.concatenate([p, np.repeat(p[:1], most - len(p), axis=0)]) for p in corners])
        padded = padded.reshape(len(corners), most, 2)
        x, y = padded[..., 0], padded[..., 1]
        next_x, next_y = np.roll(x, -1, axis=1), np.roll(y, -1, axis=1)
        run, rise = next_x - x, next_y - y
        slope = np.divide(run, rise, out=np.zeros_like(rise), where=rise != 0)
        self._sides = np.stack([y, next_y, slope, x - slope * y])  # (4, Z, sides)
        length2 = run * run + rise * rise
        inverse = np.divide(1.0, length2, out=np.zeros_like(length2), where=length2 > 0)
        self._borders = np.stack([x, y, run, rise, inverse])
        self._left, self._right = x.min(axis=1, initial=np.inf), x.max(axis=1, initial=-np.inf)
        self._top, self._bottom = y.min(axis=1, initial=np.inf), y.max(axis=1, initial=-np.inf)

    def __len__(self) -> int:
        return len(self._left)

    def contain(self, x: FloatArray, y: FloatArray) -> BoolArray:
        """(M, Z) which points, (M, Z) or (M, 1), lie inside, by the even-odd rule; a common side is one neighbour's."""
        inside: BoolArray = x >= self._left
        inside &= x <= self._right
        inside &= y >= self._top
        inside &= y <= self._bottom
        objects, zones = pairs(inside)
        column = zones if x.shape[1] > 1 else 0
        point_x, point_y = x[objects, column][:, None], y[objects, column][:, None]
        side_y, next_y, slope, intercept = self._sides[:, zones]
        crosses = (point_y < side_y) != (point_y < next_y)
        crosses &= point_x < slope * point_y + intercept
        inside[objects, zones] = np.logical_xor.reduce(crosses, axis=1)
        return inside

    def distances_to_border(self, x: FloatArray, y: FloatArray, zones: IndexArray) -> FloatArray:
        """(K,) distances of points (K,) from the border of their zones, never negative."""
        start_x, start_y, side_x, side_y, inverse = self._borders[:, zones]
        from_x, from_y = x[:, None] - start_x, y[:, None] - start_y
        share = np.minimum(np.maximum((from_x * side_x + from_y * side_y) * inverse, 0.0), 1.0)
        from_x -= share * side_x
        from_y -= share * side_y
        nearest: FloatArray = np.sqrt((from_x * from_x + from_y * from_y).min(axis=1))
        return nearest


class GroundPlane:
    """Where points of the picture lie on the ground, in metres, from four points whose places are known.

    The homography is solved from its eight equations (Hartley and Zisserman, Multiple View Geometry, 4.1).

    Args:
        points: four (x, y) in the picture, no three of them on one line.
        metres: the same four points on the ground.
    """

    def __init__(self, points: Sequence[tuple[float, float]], metres: Sequence[tuple[float, float]]) -> None:
        rows, values = [], []
        # Sizes near 1 keep the equations well conditioned.
        self._scale = max(1.0, float(np.abs(np.asarray(points)).max()))
        for (px, py), (x, y) in zip(points, metres, strict=True):
            u, v = px / self._scale, py / self._scale
            rows += [[u, v, 1, 0, 0, 0, -u * x, -v * x], [0, 0, 0, u, v, 1, -u * y, -v * y]]
            values += [x, y]
        matrix = np.append(np.linalg.solve(np.array(rows), np.array(values)), 1.0).reshape(3, 3)
        self._rows: list[list[float]] = matrix.tolist()
        u, v = np.mean(points, axis=0) / self._scale
        self._in_front = float(np.sign(matrix[2] @ (u, v, 1.0)))

    def to_metres(self, x: float, y: float) -> tuple[float, float]:
        """x and y on the ground; NaN for points at or above the horizon, which are not on it."""
        u, v = x / self._scale, y / self._scale
        (a, b, c), (d, e, f), (g, h, i) = self._rows
        depth = g * u + h * v + i
        if depth * self._in_front <= 1e-9:
            return math.nan, math.nan
        return (a * u + b * v + c) / depth, (d * u + e * v + f) / depth
