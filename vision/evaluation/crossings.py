"""True crossings of each line, computed from the ground truth alone.

This code is independent of the stage that counts. It evaluates each true path as a whole, from its first to its last
position. While an object is closer to the line than a tenth of its size, it keeps its side. A change of sides counts
if the path passes between the end points of the line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.analytics.geometry import ANCHORS
from vision.config import CameraAnalytics, LineConfig
from vision.config.analytics import Units, pixels_per_unit
from vision.evaluation.mot import Boxes
from vision.evaluation.passes import Video
from vision.types import Event

_JITTER: Final = 0.1  # distance within which an object keeps its side, as a part of the longer side of its box
_MAX_GAP_S: Final = 2.0  # a longer gap splits a path, because the object can have passed around the line


@dataclass(frozen=True, slots=True)
class LineScore:
    """True and counted crossings of one line in one direction."""

    line: str
    direction: str
    true: int
    counted: int

    @property
    def error(self) -> float:
        """Error of the count divided by the number of true crossings; infinite if only false ones were counted."""
        wrong = abs(self.counted - self.true)
        return wrong / self.true if self.true else (float("inf") if wrong else 0.0)


def score_lines(
    section: CameraAnalytics, truth: Boxes, events: Sequence[tuple[int, Event]], class_name: str, video: Video
) -> list[LineScore]:
    """Compare the crossings that the pipeline counted with the true ones. Return a score per line and direction."""
    counted = Counter(
        (event.name, event.data.get("direction"))
        for _, event in events
        if event.kind == "line_crossed" and event.data.get("class", class_name) == class_name
    )
    scores = []
    for line in lines_of_class(section, class_name):
        true = Counter(true_crossings(line, section.units, truth, video))
        directions = ("in", "out") if line.direction == "both" else (line.direction,)
        scores += [LineScore(line.name, name, true[name], counted[line.name, name]) for name in directions]
    return scores


def lines_of_class(section: CameraAnalytics, class_name: str) -> list[LineConfig]:
    """Return the lines that count objects of the class `class_name`."""
    return [line for line in section.lines if line.classes is None or class_name in line.classes]


def true_crossings(line: LineConfig, units: Units, truth: Boxes, video: Video) -> Iterator[str]:
    """Yield ``in`` or ``out`` for each true crossing of one line."""
    ends = np.array(line.points, np.float64) * pixels_per_unit(units, video.width_px, video.height_px)
    points = anchor_points(truth.boxes_xyxy, line.anchor)
    sizes_px = (truth.boxes_xyxy[:, 2:] - truth.boxes_xyxy[:, :2]).max(axis=1)
    max_gap = max(1, round(_MAX_GAP_S / video.interval_s))
    for object_id in np.unique(truth.ids):
        rows = np.flatnonzero(truth.ids == object_id)
        gaps = np.flatnonzero(np.diff(truth.frames[rows]) > max_gap) + 1
        for path in np.split(rows, gaps):
            yield from _crossings(points[path], sizes_px[path] * _JITTER, ends)


def crossings_of_path(boxes_xyxy: NDArray[np.float64], line: LineConfig) -> Iterator[str]:
    """Yield ``in`` or ``out`` for each crossing of a line by one object. Boxes (N, 4) and line are in pixels."""
    sizes_px = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).max(axis=1)
    return _crossings(anchor_points(boxes_xyxy, line.anchor), sizes_px * _JITTER, np.array(line.points, np.float64))


def anchor_points(boxes_xyxy: NDArray[np.float64], anchor: str) -> NDArray[np.float64]:
    """Return the anchor point of each box (N, 4) as an array (N, 2)."""
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    return low + (high - low) * ANCHORS[anchor]


def _crossings(path: NDArray[np.float64], jitter_px: NDArray[np.float64], ends: NDArray[np.float64]) -> Iterator[str]:
    """Yield ``in`` or ``out`` for each crossing of the line from ``ends[0]`` to ``ends[1]`` by one path (N, 2)."""
    along = ends[1] - ends[0]
    length = float(np.hypot(*along))
    offset = path - ends[0]
    right_px = (along[0] * offset[:, 1] - along[1] * offset[:, 0]) / length  # distance from the line; right is positive
    place = offset @ along / length**2  # 0 at the first end, 1 at the second
    decided = np.abs(right_px) > jitter_px
    decided[[0, -1]] = True
    is_right = right_px > 0
    for start, end in pairwise(np.flatnonzero(decided)):
        if is_right[start] != is_right[end] and _passes(right_px[start : end + 1], place[start : end + 1]):
            yield "in" if is_right[end] else "out"


def _passes(right_px: NDArray[np.float64], place: NDArray[np.float64]) -> bool:
    """Return whether a path that changes sides passes between the ends of the line. Opposite crossings cancel out."""
    is_right = (right_px > 0).astype(int)
    steps = np.flatnonzero(np.diff(is_right))
    share = right_px[steps] / (right_px[steps] - right_px[steps + 1])
    met = place[steps] + share * (place[steps + 1] - place[steps])
    between = (met >= 0) & (met <= 1)
    return bool(np.diff(is_right)[steps[between]].sum() != 0) if len(steps) else False
