"""Ground truth of the frames of a scene: the visible objects, their boxes, and their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.evaluation.simulation.actors import KINDS
from vision.evaluation.simulation.projection import FloatArray
from vision.evaluation.simulation.scenes import Scene

LEAST_VISIBLE: Final = 0.1  # minimum visible part of an object in the ground truth

_SAMPLES: Final = 16  # visibility is sampled on a grid with this number of points in each direction of a box
_BODY: Final = 0.8  # part of the width of its box that a round object fills
_LEAST_SIDE_PX: Final = 6.0  # minimum length of the longer side of the box of an object in the ground truth


@dataclass(frozen=True, slots=True)
class TrueFrame:
    """M visible objects of one frame, nearest first."""

    time_s: float
    ids: NDArray[np.int64]  # (M,) numbers of the actors in the scene, from 1
    boxes_xyxy: FloatArray  # (M, 4) boxes of the whole objects in pixels, clipped to the frame
    visible_xyxy: FloatArray  # (M, 4) boxes around the parts of the objects that nothing hides, in pixels
    visible: FloatArray  # (M,) visible part of each object; the part outside the frame counts as hidden


def observe(scene: Scene, times_s: FloatArray) -> list[TrueFrame]:
    """Return the visible objects in the frames at the times `times_s` (T,).

    Omit an object if the visible fraction of its box is less than `LEAST_VISIBLE`, or if both sides of its clipped box
    are shorter than `_LEAST_SIDE_PX`.
    """
    solids = Solids(scene, times_s)
    return [_observe(float(time_s), solids, index, scene) for index, time_s in enumerate(times_s)]


class Solids:
    """S solids of a scene at T times: first the actors, then the obstacles. Each solid hides the solids behind it."""

    def __init__(self, scene: Scene, times_s: FloatArray) -> None:
        boxes, distances, bodies = [], [], []
        for actor in scene.actors:
            box, distance = actor.boxes(scene.view, times_s)
            boxes.append(box)
            distances.append(distance)
            bodies.append(_BODY if actor.kind.is_round else 1.0)
        for obstacle in scene.obstacles:
            place = np.array([obstacle.place_m])
            box, distance = scene.view.boxes(place, np.zeros(1), obstacle.size_m, is_round=False)
            boxes.append(np.repeat(box, len(times_s), axis=0))
            distances.append(np.repeat(distance, len(times_s)))
            bodies.append(1.0)
        self.boxes: FloatArray = np.array(boxes)  # (S, T, 4) not clipped
        self.bodies: FloatArray = np.array(bodies)  # (S,) part of the width of the box that is filled
        self._distances: FloatArray = np.array(distances)  # (S, T) meters
        size = np.array([scene.view.width_px, scene.view.height_px], np.float64)
        self.clipped: FloatArray = np.clip(self.boxes.reshape(*self.boxes.shape[:2], 2, 2), 0.0, size)
        self.clipped = self.clipped.reshape(self.boxes.shape)

    def nearest_first(self, index: int) -> NDArray[np.intp]:
        """Return the indices of the solids in the frame with the 0-based index `index`, nearest first.

        Omit a solid if a side of its clipped box is at most one pixel long.
        """
        sides = self.clipped[:, index, 2:] - self.clipped[:, index, :2]
        present = np.flatnonzero((sides > 1.0).all(axis=1))  # comparisons with NaN are false
        return present[np.argsort(self._distances[present, index], kind="stable")]


def _observe(time_s: float, solids: Solids, index: int, scene: Scene) -> TrueFrame:
    boxes, clipped = solids.boxes[:, index], solids.clipped[:, index]
    sides = clipped[:, 2:] - clipped[:, :2]
    order = solids.nearest_first(index)
    rows: list[tuple[int, FloatArray, FloatArray, float]] = []
    for rank, solid in enumerate(order.tolist()):
        if solid >= len(scene.actors):
            continue
        nearer = order[:rank]
        seen, part = unhidden(clipped[solid], boxes[nearer], solids.bodies[nearer])
        part *= float(np.prod(sides[solid]) / np.prod(boxes[solid, 2:] - boxes[solid, :2]))
        if part >= LEAST_VISIBLE and sides[solid].max() >= _LEAST_SIDE_PX:
            rows.append((solid + 1, clipped[solid], seen, part))
    return TrueFrame(
        time_s,
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows]).reshape(-1, 4),
        np.array([row[2] for row in rows]).reshape(-1, 4),
        np.array([row[3] for row in rows]),
    )


def unhidden(box: FloatArray, nearer: FloatArray, bodies: FloatArray) -> tuple[FloatArray, float]:
    """Return the box (4,) around the visible part of `box`, and the visible part as a fraction of the area of `box`.

    If nearer boxes hide the whole box, return the box itself and 0. The function samples the box on a grid of points.

    Args:
        box: the box to observe, (4,).
        nearer: the boxes in front of `box`, (K, 4).
        bodies: the part of the width of each nearer box that is filled, (K,). The filled part is in the middle.
    """
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


def class_names() -> tuple[str, ...]:
    """Return the names of all classes that a simulated detector reports, by class id."""
    names = [name for kind in KINDS.values() for name in (kind.class_name, *kind.confused_with)]
    return tuple(dict.fromkeys(names))


def class_ids(scene: Scene) -> Mapping[int, int]:
    """Return the true class id of each actor, by actor number from 1."""
    names = class_names()
    return {number: names.index(actor.kind.class_name) for number, actor in enumerate(scene.actors, start=1)}


def confused_class_ids(scene: Scene) -> Mapping[int, Sequence[int]]:
    """Return the wrong class ids that a detector sometimes reports for each actor, by actor number from 1."""
    names = class_names()
    return {
        number: [names.index(name) for name in actor.kind.confused_with]
        for number, actor in enumerate(scene.actors, start=1)
    }
