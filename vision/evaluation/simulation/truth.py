"""Ground truth of a scene: visible objects in each frame, crossings of lines, and objects in zones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.config.analytics import CameraAnalytics, LineConfig, ZoneConfig
from vision.evaluation.crossings import anchor_points, crossings_of_path
from vision.evaluation.simulation.actors import KINDS, Actor
from vision.evaluation.simulation.projection import CameraView, FloatArray
from vision.evaluation.simulation.scenes import Place, Scene

_SAMPLES: Final = 16  # visibility is sampled on a grid of this many points in each direction of a box
_BODY: Final = 0.8  # fraction of the width of its box that a round object fills
_LEAST_VISIBLE: Final = 0.1  # visible fraction from which an object is part of the ground truth
_LEAST_SIDE_PX: Final = 6.0
_ORACLE_HZ: Final = 120.0  # sampling rate of the true paths, at any frame rate


@dataclass(frozen=True, slots=True)
class TrueFrame:
    """M visible objects of one frame, nearest first."""

    time_s: float
    ids: NDArray[np.int64]  # (M,) positions in `Scene.actors`, from 1
    boxes_xyxy: FloatArray  # (M, 4) whole objects in pixels, clipped to the frame
    visible_xyxy: FloatArray  # (M, 4) boxes around the parts that nothing hides, in pixels
    visible: FloatArray  # (M,) visible fraction of the whole object; parts outside the frame are not visible


def observe(scene: Scene, times_s: FloatArray) -> list[TrueFrame]:
    """Return the visible objects of the frame at each of the times `times_s` (T,)."""
    solids = _solids(scene, times_s)
    return [_observe(float(time_s), solids, index, scene) for index, time_s in enumerate(times_s)]


@dataclass(frozen=True, slots=True)
class _Solids:
    """Boxes of everything that hides objects behind it: all actors, then all obstacles."""

    boxes: FloatArray  # (S, T, 4) in pixels
    distances: FloatArray  # (S, T) in meters
    bodies: FloatArray  # (S,) fraction of the width of the box that is filled


def _solids(scene: Scene, times_s: FloatArray) -> _Solids:
    boxes, distances, bodies = [], [], []
    for actor in scene.actors:
        box, distance = actor.boxes(scene.view, times_s)
        boxes.append(box)
        distances.append(distance)
        bodies.append(_BODY if actor.kind.is_round else 1.0)
    for obstacle in scene.obstacles:
        box, distance = scene.view.boxes(np.array([obstacle.place_m]), np.zeros(1), obstacle.size_m, is_round=False)
        boxes.append(np.repeat(box, len(times_s), axis=0))
        distances.append(np.repeat(distance, len(times_s)))
        bodies.append(1.0)
    return _Solids(np.array(boxes), np.array(distances), np.array(bodies))


def _observe(time_s: float, solids: _Solids, index: int, scene: Scene) -> TrueFrame:
    boxes = solids.boxes[:, index]
    size = np.array([scene.view.width_px, scene.view.height_px], np.float64)
    clipped = np.clip(boxes.reshape(-1, 2, 2), 0.0, size).reshape(-1, 4)
    sides = clipped[:, 2:] - clipped[:, :2]
    present = np.flatnonzero((sides > 1.0).all(axis=1))  # comparisons with NaN are false
    order = present[np.argsort(solids.distances[present, index], kind="stable")]
    rows: list[tuple[int, FloatArray, FloatArray, float]] = []
    for rank, solid in enumerate(order.tolist()):
        if solid >= len(scene.actors):
            continue
        nearer = order[:rank]
        seen, part = _unhidden(clipped[solid], boxes[nearer], solids.bodies[nearer])
        part *= float(np.prod(sides[solid]) / np.prod(boxes[solid, 2:] - boxes[solid, :2]))
        if part >= _LEAST_VISIBLE and sides[solid].max() >= _LEAST_SIDE_PX:
            rows.append((solid + 1, clipped[solid], seen, part))
    return TrueFrame(
        time_s,
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows]).reshape(-1, 4),
        np.array([row[2] for row in rows]).reshape(-1, 4),
        np.array([row[3] for row in rows]),
    )


def _unhidden(box: FloatArray, nearer: FloatArray, bodies: FloatArray) -> tuple[FloatArray, float]:
    """Return the box (4,) around the parts of `box` that no nearer box (K, 4) hides, and the fraction not hidden."""
    middle = (nearer[:, 0] + nearer[:, 2]) / 2
    half = (nearer[:, 2] - nearer[:, 0]) / 2 * bodies
    near_x1, near_x2, near_y1, near_y2 = middle - half, middle + half, nearer[:, 1], nearer[:, 3]
    touching = (near_x1 < box[2]) & (near_x2 > box[0]) & (near_y1 < box[3]) & (near_y2 > box[1])
    if not touching.any():
        return box, 1.0
    share = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    x = (box[0] + share * (box[2] - box[0]))[:, None]
    y = (box[1] + share * (box[3] - box[1]))[:, None]
    in_x = (x >= near_x1[touching]) & (x < near_x2[touching])  # (columns, K)
    in_y = (y >= near_y1[touching]) & (y < near_y2[touching])  # (rows, K)
    free = ~(in_y[:, None] & in_x[None]).any(axis=2)  # (rows, columns)
    if not free.any():
        return box, 0.0
    rows, columns = np.flatnonzero(free.any(axis=1)), np.flatnonzero(free.any(axis=0))
    cell = (box[2:] - box[:2]) / _SAMPLES
    seen = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) * np.tile(cell, 2) + np.tile(box[:2], 2)
    return seen, float(free.mean())


# --- lines and zones --------------------------------------------------------------------------------------------------


def camera_analytics(scene: Scene) -> CameraAnalytics:
    """Return the analytics configuration of a scene: its lines and zones, in pixels of the camera's frame."""
    ends = {name: _on_frame(scene.view, places) for name, places in scene.lines_m.items()}
    lines = tuple(LineConfig(name=name, points=(first, second)) for name, (first, second) in ends.items())
    zones = tuple(
        ZoneConfig(name=name, polygon=_on_frame(scene.view, corners), dwell_s=5.0)
        for name, corners in scene.zones_m.items()
    )
    return CameraAnalytics(lines=lines, zones=zones)


def _on_frame(view: CameraView, places_m: Sequence[Place]) -> tuple[Place, ...]:
    points, _ = view.project(np.array([(x, y, 0.0) for x, y in places_m]))
    points = np.clip(points, 0.0, (view.width_px, view.height_px))
    return tuple((round(float(x), 1), round(float(y), 1)) for x, y in points)


@dataclass(frozen=True, slots=True)
class TrueCrossing:
    """Passage of one object across one line."""

    actor: int  # position in `Scene.actors`, from 1
    line: str
    direction: str  # "in" or "out"


def true_crossings(scene: Scene, section: CameraAnalytics) -> Iterator[TrueCrossing]:
    """Yield the crossings of all lines by the exact paths of all objects while they are in the frame."""
    for number, actor in enumerate(scene.actors, start=1):
        for boxes, times_s in _paths(scene, actor):
            for line in section.lines:
                for direction in crossings_of_path(boxes, times_s, line):
                    yield TrueCrossing(number, line.name, direction)


def _paths(scene: Scene, actor: Actor) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield boxes (N, 4) of an actor, not clipped, and their times (N,), for each of its periods in the frame."""
    view, end_s = scene.view, min(float(actor.times_s[-1]), scene.duration_s)
    times_s = np.arange(float(actor.times_s[0]), end_s, 1.0 / _ORACLE_HZ)
    boxes, _ = actor.boxes(view, times_s)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], _in_frame(view, boxes), [False]])))
    for start, end in edges.reshape(-1, 2).tolist():
        if end - start > 1:
            yield boxes[start:end], times_s[start:end]


def true_occupancy(scene: Scene, section: CameraAnalytics, times_s: FloatArray) -> FloatArray:
    """Return the number of objects in each zone at each time, (T, Z), including hidden objects."""
    view = scene.view
    occupancy = np.zeros((len(times_s), len(section.zones)))
    for actor in scene.actors:
        boxes, _ = actor.boxes(view, times_s)
        visible = _in_frame(view, boxes)
        for column, zone in enumerate(section.zones):
            points = np.clip(anchor_points(boxes, zone.anchor), 0.0, (view.width_px, view.height_px))
            occupancy[:, column] += visible & _contains(np.array(zone.polygon), points)
    return occupancy


def _contains(polygon: FloatArray, points: FloatArray) -> NDArray[np.bool_]:
    """Return a mask (N,) of the points (N, 2) that are inside a polygon (K, 2), by the even-odd rule."""
    x, y = points.T
    inside = np.zeros(len(points), np.bool_)
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y1 == y2:
            continue
        inside ^= ((y1 <= y) != (y2 <= y)) & (x < x1 + (y - y1) / (y2 - y1) * (x2 - x1))
    return inside


def _in_frame(view: CameraView, boxes: FloatArray) -> NDArray[np.bool_]:
    """Return a mask (N,) of the boxes (N, 4) of which at least a tenth of the area is in the frame."""
    size = boxes[:, 2:] - boxes[:, :2]
    shown = np.minimum(boxes[:, 2:], (view.width_px, view.height_px)) - np.maximum(boxes[:, :2], 0.0)
    enough = np.prod(shown, axis=1) >= _LEAST_VISIBLE * np.prod(size, axis=1)
    visible: NDArray[np.bool_] = (shown > 0).all(axis=1) & enough
    return visible


def class_names() -> tuple[str, ...]:
    """Return the names of all classes that a simulated detector reports, in the order of class IDs."""
    names = [name for kind in KINDS.values() for name in (kind.class_name, *kind.confused_with)]
    return tuple(dict.fromkeys(names))


def class_ids(scene: Scene) -> Mapping[int, int]:
    """Return the true class ID of each actor, by its position in `Scene.actors`, from 1."""
    names = class_names()
    return {number: names.index(actor.kind.class_name) for number, actor in enumerate(scene.actors, start=1)}


def confused_class_ids(scene: Scene) -> Mapping[int, Sequence[int]]:
    """Return the class IDs that a detector sometimes reports instead, by position in `Scene.actors`, from 1."""
    names = class_names()
    return {
        number: [names.index(name) for name in actor.kind.confused_with]
        for number, actor in enumerate(scene.actors, start=1)
    }
