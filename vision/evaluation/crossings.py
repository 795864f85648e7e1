"""True crossings of each line, from the true paths alone.

This code is independent of the stage that counts. It uses each path as a whole, with its real beginning and end. In
between, an object within a tenth of its size of the line stays on its side. A change of sides counts if the path goes
between the ends of the line.
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

_JITTER: Final = 0.1  # of the longer side of an object's box
_MAX_GAP_S: Final = 2.0  # after a longer gap an object can have come back another way


@dataclass(frozen=True, slots=True)
class LineScore:
    """One line and one direction that it reports."""

    line: str
    direction: str
    true: int
    counted: int

    @property
    def error(self) -> float:
        """Return the error of the count as a part of the true number; infinite if nothing is true."""
        wrong = abs(self.counted - self.true)
        return wrong / self.true if self.true else (float("inf") if wrong else 0.0)


def score_lines(
    section: CameraAnalytics, truth: Boxes, events: Sequence[tuple[int, Event]], class_name: str, video: Video
) -> list[LineScore]:
    """Compare the crossings that the pipeline counted for a class with the true ones."""
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
    """Return the lines for which objects of this class count."""
    return [line for line in section.lines if line.classes is None or class_name in line.classes]


def true_crossings(line: LineConfig, units: Units, truth: Boxes, video: Video) -> Iterator[str]:
    """Yield ``in`` or ``out`` for every crossing of the line."""
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
    """Yield ``in`` or ``out`` for each crossing of a line by one object with boxes (N, 4), both in pixels."""
    sizes_px = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).max(axis=1)
    return _crossings(anchor_points(boxes_xyxy, line.anchor), sizes_px * _JITTER, np.array(line.points, np.float64))


def anchor_points(boxes_xyxy: NDArray[np.float64], anchor: str) -> NDArray[np.float64]:
    """Return the anchor point of each box, (N, 2)."""
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    return low + (high - low) * ANCHORS[anchor]


def _crossings(path: NDArray[np.float64], jitter_px: NDArray[np.float64], ends: NDArray[np.float64]) -> Iterator[str]:
    """Yield the crossings of one path (N, 2) through the line from ``ends[0]`` to ``ends[1]``."""
    along = ends[1] - ends[0]
    length = float(np.hypot(*along))
    offset = path - ends[0]
    right_px = (along[0] * offset[:, 1] - along[1] * offset[:, 0]) / length  # distance to the right of the line
    place = offset @ along / length**2  # 0 at the first end, 1 at the second
    decided = np.abs(right_px) > jitter_px
    decided[[0, -1]] = True
    is_right = right_px > 0
    for start, end in pairwise(np.flatnonzero(decided)):
        if is_right[start] != is_right[end] and _passes(right_px[start : end + 1], place[start : end + 1]):
            yield "in" if is_right[end] else "out"


def _passes(right_px: NDArray[np.float64], place: NDArray[np.float64]) -> bool:
    """Return True if a path that changes sides does so between the ends of the line, all jitter taken together."""
    is_right = (right_px > 0).astype(int)
    steps = np.flatnonzero(np.diff(is_right))
    share = right_px[steps] / (right_px[steps] - right_px[steps + 1])
    met = place[steps] + share * (place[steps + 1] - place[steps])
    between = (met >= 0) & (met <= 1)
    return bool(np.diff(is_right)[steps[between]].sum() != 0) if len(steps) else False
