"""Ground truth of the analytics in a scene: crossings of lines, stays in zones, and speeds.

All values are computed from the exact paths of the objects, not from frames, so they do not depend on the frame rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.config.analytics import CameraAnalytics, GroundConfig, LineConfig, ZoneConfig
from vision.evaluation.crossings import anchor_points, crossings_of_path
from vision.evaluation.simulation.actors import Actor
from vision.evaluation.simulation.projection import CameraView, FloatArray
from vision.evaluation.simulation.scenes import Place, Scene
from vision.evaluation.simulation.truth import LEAST_VISIBLE

DWELL_S: Final = 5.0  # `dwell_s` of all zones

_ORACLE_HZ: Final = 60.0  # sampling rate of the true paths
_BORDER: Final = (
    0.1  # distance within which an object keeps its side of a border, as a part of the longer side of its box
)
_EDGE_PX: Final = 0.01  # minimum distance of a point from the edge of the frame
_SPEED_S: Final = 1.0  # duration of the average of a true speed, as in the analytics
_GROUND: Final = (0.15, 0.85, 0.95)  # left, right, and bottom of the ground area, as parts of the frame
_BELOW_HORIZON: Final = 0.12  # distance of the ground area from the horizon, as a part of the frame height
_TOP: Final = 0.1  # minimum distance of the ground area from the upper edge, as a part of the frame height


def camera_analytics(scene: Scene) -> CameraAnalytics:
    """Return the lines, the zones, and the ground points of the camera of a scene, in pixels of its frame."""
    ends = {name: _on_frame(scene.view, places) for name, places in scene.lines_m.items()}
    lines = tuple(LineConfig(name=name, points=(first, second)) for name, (first, second) in ends.items())
    zones = tuple(
        ZoneConfig(name=name, polygon=_on_frame(scene.view, corners), dwell_s=DWELL_S)
        for name, corners in scene.zones_m.items()
    )
    return CameraAnalytics(lines=lines, zones=zones, ground=_ground(scene.view))


def _on_frame(view: CameraView, places_m: Sequence[Place]) -> tuple[Place, ...]:
    points, _ = view.project(np.array([(x, y, 0.0) for x, y in places_m]))
    points = np.clip(points, 0.0, (view.width_px, view.height_px))
    return tuple((round(float(x), 1), round(float(y), 1)) for x, y in points)


def _ground(view: CameraView) -> GroundConfig:
    """Return the positions of four points in the frame, in pixels, and on the ground, in meters."""
    left, right, bottom = _GROUND
    top_px = max(view.horizon_px + _BELOW_HORIZON * view.height_px, _TOP * view.height_px)
    corners = ((left, top_px), (right, top_px), (right, bottom * view.height_px), (left, bottom * view.height_px))
    places = [view.to_ground(x * view.width_px, y_px) for x, y_px in corners]
    rounded = tuple((round(x, 2), round(y, 2)) for x, y in places)
    return GroundConfig(points=_on_frame(view, rounded), metres=rounded)


# --- paths and crossings ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class TruePath:
    """Exact path of an object during one period in which the object is in the frame."""

    actor: int  # number of the actor in the scene, from 1
    times_s: FloatArray  # (N,)
    boxes_xyxy: FloatArray  # (N, 4) not clipped to the frame


@dataclass(frozen=True, slots=True)
class TrueCrossing:
    """Crossing of one line by one object."""

    actor: int  # number of the actor in the scene, from 1
    line: str
    direction: str  # "in" or "out"


def true_paths(scene: Scene) -> Iterator[TruePath]:
    """Yield a path for each period in which an object is in the frame, even if something hides the object."""
    for number, actor in enumerate(scene.actors, start=1):
        end_s = min(float(actor.times_s[-1]), scene.duration_s)
        times_s = np.arange(float(actor.times_s[0]), end_s, 1.0 / _ORACLE_HZ)
        boxes, _ = actor.boxes(scene.view, times_s)
        for period in _periods(_in_frame(scene.view, boxes)):
            yield TruePath(number, times_s[period], boxes[period])


def _periods(mask: NDArray[np.bool_]) -> Iterator[slice]:
    """Yield a slice for each series of at least two consecutive True values in a mask (N,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    for start, end in edges.reshape(-1, 2).tolist():
        if end - start > 1:
            yield slice(start, end)


def true_crossings(paths: Sequence[TruePath], section: CameraAnalytics) -> Iterator[TrueCrossing]:
    """Yield the crossings of all lines of `section`."""
    for path in paths:
        for line in section.lines:
            for direction in crossings_of_path(path.boxes_xyxy, path.times_s, line):
                yield TrueCrossing(path.actor, line.name, direction)


# --- zones ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrueStay:
    """Stay of one object in one zone."""

    actor: int  # number of the actor in the scene, from 1
    zone: str  # name of the zone
    entered_s: float
    left_s: float

    @property
    def duration_s(self) -> float:
        return self.left_s - self.entered_s


def true_stays(paths: Sequence[TruePath], section: CameraAnalytics, view: CameraView) -> Iterator[TrueStay]:
    """Yield the stays in all zones of `section`.

    An object keeps its previous state (inside or outside) while its distance from the border of the zone is at most a
    tenth of the object's size.
    """
    for path in paths:
        for zone in section.zones:
            for stay in _periods(_inside(view, path.boxes_xyxy, zone)):
                entered_s, left_s = path.times_s[[stay.start, stay.stop - 1]].tolist()
                yield TrueStay(path.actor, zone.name, entered_s, left_s)


def true_occupancy(stays: Sequence[TrueStay], section: CameraAnalytics, times_s: FloatArray) -> FloatArray:
    """Return the number of objects (T, Z) in each of the Z zones of `section` at the times `times_s` (T,)."""
    occupancy = np.zeros((len(times_s), len(section.zones)))
    names = [zone.name for zone in section.zones]
    for stay in stays:
        occupancy[:, names.index(stay.zone)] += (times_s >= stay.entered_s) & (times_s <= stay.left_s)
    return occupancy


def _inside(view: CameraView, boxes: FloatArray, zone: ZoneConfig) -> NDArray[np.bool_]:
    """Return a mask (N,) of the boxes (N, 4) of one path that are in a zone, according to the rule of `true_stays`."""
    size = np.array([view.width_px, view.height_px], np.float64)
    points = np.clip(anchor_points(boxes, zone.anchor), _EDGE_PX, size - _EDGE_PX)
    polygon = np.array(zone.polygon)
    inside = _contains(polygon, points)
    decided = _distance(polygon, points, size) > _BORDER * (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    decided[0] = True
    latest = np.maximum.accumulate(np.where(decided, np.arange(len(points)), 0))
    kept: NDArray[np.bool_] = inside[latest]
    return kept


def _contains(polygon: FloatArray, points: FloatArray) -> NDArray[np.bool_]:
    """Return a mask (N,) of the points (N, 2) inside a polygon (K, 2), by the even-odd rule."""
    x, y = points.T
    inside = np.zeros(len(points), np.bool_)
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y1 == y2:
            continue
        inside ^= ((y1 <= y) != (y2 <= y)) & (x < x1 + (y - y1) / (y2 - y1) * (x2 - x1))
    return inside


def _distance(polygon: FloatArray, points: FloatArray, size: FloatArray) -> FloatArray:
    """Return the distances (N,) of points (N, 2) from the border of a polygon (K, 2), all in px.

    Ignore sides on the edge of the frame, because no object crosses these sides. `size` (2,) is the frame's width and
    height.
    """
    ends = np.roll(polygon, -1, axis=0)
    on_edge = ((polygon <= 0) & (ends <= 0)) | ((polygon >= size) & (ends >= size))
    starts, ends = polygon[~on_edge.any(axis=1)], ends[~on_edge.any(axis=1)]
    sides, offsets = ends - starts, points[:, None] - starts
    shares = np.clip((offsets * sides).sum(axis=2) / np.maximum((sides**2).sum(axis=1), 1e-9), 0.0, 1.0)
    distances: FloatArray = np.linalg.norm(offsets - shares[..., None] * sides, axis=2).min(axis=1)
    return distances


def _in_frame(view: CameraView, boxes: FloatArray) -> NDArray[np.bool_]:
    """Return a mask (N,) of the boxes (N, 4) with at least the part `LEAST_VISIBLE` of their area in the frame."""
    size = boxes[:, 2:] - boxes[:, :2]
    shown = np.minimum(boxes[:, 2:], (view.width_px, view.height_px)) - np.maximum(boxes[:, :2], 0.0)
    enough = np.prod(shown, axis=1) >= LEAST_VISIBLE * np.prod(size, axis=1)
    visible: NDArray[np.bool_] = (shown > 0).all(axis=1) & enough
    return visible


# --- speeds -----------------------------------------------------------------------------------------------------------


def true_speed_kmh(actor: Actor, time_s: float) -> float:
    """Return the speed of an actor in km/h, computed from its positions at `time_s` and 1 s before `time_s`."""
    before, now = actor.places(np.array([time_s - _SPEED_S, time_s]))
    return 3.6 * float(np.hypot(*(now - before))) / _SPEED_S
