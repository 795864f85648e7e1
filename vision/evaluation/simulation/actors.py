"""Objects that move over the ground (`Actor`), and functions that create their paths."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from vision.evaluation.simulation.projection import CameraView, FloatArray

_STEP_S: Final = 0.05  # time between two points of a path
_STEP_M: Final = 0.02  # distance between two points at which the speed is integrated
_CREEP: Final = 0.02  # minimum speed of the integration in m/s, so that a start from rest takes a finite time
_STILL: Final = 0.05  # speed in m/s below which an object keeps its heading
_CORNER_ROUNDS: Final = 3  # number of times that Chaikin's algorithm cuts all corners


@dataclass(frozen=True, slots=True)
class Kind:
    """Kind of object, such as a person or a truck: its class, size, shape, and acceleration."""

    class_name: str
    size_m: tuple[float, float, float]  # length, width, height
    is_round: bool = False  # True for an elliptic cylinder, False for a cuboid
    confused_with: tuple[str, ...] = ()  # classes that a detector sometimes reports instead
    acceleration: float = 1.5  # m/s²


KINDS: Final[Mapping[str, Kind]] = {
    "person": Kind("person", (0.45, 0.55, 1.72), is_round=True),
    "bicycle": Kind("bicycle", (1.75, 0.6, 1.75), confused_with=("motorcycle",)),
    "car": Kind("car", (4.4, 1.8, 1.5), confused_with=("truck",), acceleration=2.5),
    "truck": Kind("truck", (8.5, 2.5, 3.4), confused_with=("bus", "car"), acceleration=1.2),
}


@dataclass(frozen=True, slots=True, eq=False)
class Actor:
    """One object and its path. The object is in the scene from the first to the last time of the path."""

    kind: Kind
    times_s: FloatArray  # (K,) times of the points of the path, ascending
    places_m: FloatArray  # (K, 2) points of the path on the ground

    def places(self, times_s: FloatArray) -> FloatArray:
        """Return the positions (T, 2) on the ground in meters at the times `times_s` (T,)."""
        return np.stack([np.interp(times_s, self.times_s, self.places_m[:, axis]) for axis in (0, 1)], axis=1)

    def headings(self, times_s: FloatArray) -> FloatArray:
        """Return the directions of motion (T,) in radians at `times_s` (T,), counterclockwise from x.

        An object at rest keeps the direction of its previous motion. Before its first motion, an object has the
        direction of the first motion. If an object never moves, its direction is 0.
        """
        steps = np.diff(self.places_m, axis=0) / np.diff(self.times_s)[:, None]
        moving = np.hypot(steps[:, 0], steps[:, 1]) > _STILL
        if not moving.any():
            return np.zeros(len(times_s))
        last = np.maximum.accumulate(np.where(moving, np.arange(len(moving)), -1))
        last[last < 0] = int(moving.argmax())
        row = np.clip(np.searchsorted(self.times_s, times_s, side="right") - 1, 0, len(last) - 1)
        direction = steps[last[row]]
        headings: FloatArray = np.arctan2(direction[:, 1], direction[:, 0])
        return headings

    def speeds(self, times_s: FloatArray) -> FloatArray:
        """Return the speeds (T,) in m/s at `times_s` (T,)."""
        steps = np.diff(self.places_m, axis=0) / np.diff(self.times_s)[:, None]
        row = np.clip(np.searchsorted(self.times_s, times_s, side="right") - 1, 0, len(steps) - 1)
        speeds: FloatArray = np.hypot(steps[row, 0], steps[row, 1])
        return speeds

    def boxes(self, view: CameraView, times_s: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return boxes (T, 4) in pixels, not clipped to the frame, and distances (T,) from the camera in meters.

        Boxes and distances are NaN while the actor is absent. Boxes are also NaN while the actor is behind the camera.
        """
        boxes, distances = np.full((len(times_s), 4), np.nan), np.full(len(times_s), np.nan)
        present = (times_s >= self.times_s[0]) & (times_s <= self.times_s[-1])
        inside_s = times_s[present]
        boxes[present], distances[present] = view.boxes(
            self.places(inside_s), self.headings(inside_s), self.kind.size_m, is_round=self.kind.is_round
        )
        return boxes, distances


def travel(
    kind: str,
    waypoints_m: Sequence[tuple[float, float]],
    speed: float,
    start_s: float,
    *,
    stops: Mapping[float, float] | None = None,
) -> Actor:
    """Return an actor that moves along waypoints with rounded corners.

    Args:
        kind: a name in `KINDS`.
        waypoints_m: at least two positions (x, y) on the ground, in meters.
        speed: speed in m/s, except while the actor starts or stops.
        start_s: time in seconds at the first waypoint.
        stops: duration, in seconds, of each stop, by the position of the stop as a fraction of the path (0 to 1), or
            None if there are no stops.
    """
    about = KINDS[kind]
    line = _rounded(np.asarray(waypoints_m, np.float64))
    lengths = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    times, ways = [np.array([start_s])], [np.array([0.0])]
    rests = sorted((stops or {}).items())
    marks = [0.0, *(part * lengths[-1] for part, _ in rests), lengths[-1]]
    for leg, (low, high) in enumerate(itertools.pairwise(marks)):
        t, s = _leg(high - low, speed, about.acceleration, from_rest=leg > 0, to_rest=leg < len(rests))
        times.append(times[-1][-1] + t)
        ways.append(low + s)
        if leg < len(rests):
            times.append(times[-1][-1:] + rests[leg][1])
            ways.append(np.array([high]))
    exact, along = np.concatenate(times), np.concatenate(ways)
    grid = np.append(np.arange(exact[0], exact[-1], _STEP_S), exact[-1])
    way = np.interp(grid, exact, along)
    places = np.stack([np.interp(way, lengths, line[:, axis]) for axis in (0, 1)], axis=1)
    return Actor(about, grid, places)


def rest(kind: str, place_m: tuple[float, float], heading: float, until_s: float) -> Actor:
    """Return an actor that rests from 0 s to `until_s`, such as a parked car.

    At the start, the actor moves by one millimeter in the direction `heading` (in radians), so that it has a heading.
    """
    ahead = (np.cos(heading) * 1e-3, np.sin(heading) * 1e-3)
    places = np.array([place_m, (place_m[0] + ahead[0], place_m[1] + ahead[1]), place_m])
    return Actor(KINDS[kind], np.array([0.0, 1e-3, until_s]), places)


def _rounded(corners_m: FloatArray) -> FloatArray:
    """Return a polyline with rounded corners (Chaikin, "An algorithm for high-speed curve generation", 1974)."""
    for _ in range(_CORNER_ROUNDS if len(corners_m) > 2 else 0):
        start, end = corners_m[:-1], corners_m[1:]
        cut = np.stack([0.75 * start + 0.25 * end, 0.25 * start + 0.75 * end], axis=1).reshape(-1, 2)
        corners_m = np.concatenate([corners_m[:1], cut[1:-1], corners_m[-1:]])
    return corners_m


def _leg(
    length_m: float, speed: float, acceleration: float, *, from_rest: bool, to_rest: bool
) -> tuple[FloatArray, FloatArray]:
    """Return the times in seconds and the distances in meters of points on one leg of a path.

    Times and distances are relative to the start of the leg. The start itself is not in the result.
    """
    way = np.linspace(0.0, length_m, max(2, round(length_m / _STEP_M)))
    middle = (way[1:] + way[:-1]) / 2
    fastest = np.full(len(middle), speed)
    if from_rest:
        fastest = np.minimum(fastest, np.sqrt(2 * acceleration * middle))
    if to_rest:
        fastest = np.minimum(fastest, np.sqrt(2 * acceleration * (length_m - middle)))
    times: FloatArray = np.cumsum(np.diff(way) / np.maximum(fastest, _CREEP))
    return times, way[1:]
