"""True crossings of each line, computed from the ground truth alone, and a comparison with the counted crossings.

This code is independent of the stage that counts crossings, but uses the same definition of a crossing
(docs/analytics.md). An object establishes a side of the line only at a minimum distance from the line. This code uses
the minimum distance for boxes that do not jitter. It evaluates each true path as a whole: it splits the path into
visits to either side of the line, and finds the visits that establish a side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.analytics.geometry import ANCHORS
from vision.config import CameraAnalytics, LineConfig
from vision.config.analytics import Units, pixels_per_unit
from vision.evaluation.mot import Boxes
from vision.evaluation.passes import Video
from vision.types import Event

_MARGIN: Final = 0.04  # minimum distance that establishes a side, as a fraction of the longer side of the object's box
_CUT_MARGIN: Final = 0.02  # the same for an object that the edge of the frame cuts off beyond the line
_EDGE_PX: Final = 1.5  # distance from the edge of the frame up to which a side of a box counts as cut off
_SLIGHT: Final = 1e-6  # smaller changes of a distance are rounding errors
_CLEAR: Final = 0.08  # distance that establishes a side at once, as a fraction of the longer side of the object's box
_HOLD_S: Final = 0.5  # time that establishes a side after the distance has exceeded `_MARGIN`
_LOST_S: Final = 1.5  # `track.lost_s`, unless configured otherwise
_MAX_GAP_S: Final = 60.0  # a longer gap between two boxes splits a path
_GRAIN_S: Final = 1e-3  # precision of times
_FRAMES_KEPT: Final = 2.5  # frame intervals for which an object is kept even if `lost_s` is shorter


@dataclass(frozen=True, slots=True)
class LineScore:
    """True and counted crossings of one line in one direction."""

    line: str  # name of the line
    direction: str  # "in" or "out"
    true: int  # number of true crossings
    counted: int  # number of counted crossings

    @property
    def error(self) -> float:
        """Error of the count as a fraction of the true crossings.

        If there are no true crossings, the error is infinite with counted crossings, and 0 without counted crossings.
        """
        wrong = abs(self.counted - self.true)
        return wrong / self.true if self.true else (float("inf") if wrong else 0.0)


def score_lines(
    section: CameraAnalytics,
    truth: Boxes,
    events: Sequence[tuple[int, Event]],
    class_name: str,
    video: Video,
    *,
    lost_s: float = _LOST_S,
) -> list[LineScore]:
    """Return the numbers of true and of counted crossings of one class, for each line and direction.

    Args:
        section: lines of the camera.
        truth: labeled boxes of the class.
        events: events of the pipeline, with their frame numbers.
        class_name: class of the labeled objects.
        video: the labeled video.
        lost_s: the setting `lost_s` of the tracker, in seconds.
    """
    counted = Counter(
        (event.name, event.data.get("direction"))
        for _, event in events
        if event.kind == "line_crossed" and event.data.get("class", class_name) == class_name
    )
    scores = []
    for line in lines_of_class(section, class_name):
        true = Counter(true_crossings(line, section.units, truth, video, lost_s))
        directions = ("in", "out") if line.direction == "both" else (line.direction,)
        scores += [LineScore(line.name, name, true[name], counted[line.name, name]) for name in directions]
    return scores


def lines_of_class(section: CameraAnalytics, class_name: str) -> list[LineConfig]:
    """Return the lines that count objects of the class `class_name`."""
    return [line for line in section.lines if line.classes is None or class_name in line.classes]


def true_crossings(
    line: LineConfig, units: Units, truth: Boxes, video: Video, lost_s: float = _LOST_S
) -> Iterator[str]:
    """Yield ``in`` or ``out`` for each true crossing of one line."""
    for _, direction in timed_crossings(line, units, truth, video, lost_s):
        yield direction


def timed_crossings(
    line: LineConfig, units: Units, truth: Boxes, video: Video, lost_s: float = _LOST_S
) -> Iterator[tuple[float, str]]:
    """Yield the time in seconds and the direction (``in`` or ``out``) of each true crossing of one line.

    An object is lost after `lost_s` without a box, but not before `_FRAMES_KEPT` frame intervals.
    """
    ends = np.array(line.points, np.float64) * pixels_per_unit(units, video.width_px, video.height_px)
    lost_s = max(lost_s, _FRAMES_KEPT * video.interval_s)
    for object_id in np.unique(truth.ids):
        rows = np.flatnonzero(truth.ids == object_id)
        times_s = truth.frames[rows].astype(np.float64) * video.interval_s
        size_px = video.width_px, video.height_px
        for at, direction in _crossings(_Path.of(truth.boxes_xyxy[rows], times_s, line.anchor, ends, size_px), lost_s):
            yield float(times_s[at]), direction


def crossings_of_path(
    boxes_xyxy: NDArray[np.float64],
    times_s: NDArray[np.float64],
    line: LineConfig,
    *,
    lost_s: float = _LOST_S,
    frame_size_px: tuple[int, int] | None = None,
) -> Iterator[str]:
    """Yield ``in`` or ``out`` for each crossing of a line by one object.

    Args:
        boxes_xyxy: boxes of the object, (N, 4), in pixels.
        times_s: times of the boxes, (N,), ascending.
        line: a line with points in pixels.
        lost_s: time in seconds without a box after which the object is lost.
        frame_size_px: width and height of the frame that cuts off boxes, or None if no box is cut off.
    """
    ends = np.array(line.points, np.float64)
    path = _Path.of(boxes_xyxy, times_s, line.anchor, ends, frame_size_px)
    return (direction for _, direction in _crossings(path, lost_s))


def anchor_points(boxes_xyxy: NDArray[np.float64], anchor: str) -> NDArray[np.float64]:
    """Return the anchor points (N, 2) of boxes (N, 4). `anchor` is a key of `ANCHORS`."""
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    return low + (high - low) * ANCHORS[anchor]


def cut_sides(boxes_xyxy: NDArray[np.float64], frame_size_px: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a mask (N, 4) that shows on which sides (left, top, right, bottom) the frame cuts off boxes (N, 4)."""
    low, high = boxes_xyxy[:, :2] <= _EDGE_PX, boxes_xyxy[:, 2:] >= np.array(frame_size_px) - _EDGE_PX
    return np.concatenate([low, high], axis=1)


@dataclass(frozen=True, slots=True)
class _Path:
    """N positions of one object relative to one line."""

    times_s: NDArray[np.float64]  # (N,)
    right: NDArray[np.float64]  # (N,) distance from the line in object sizes; positive on the right
    place: NDArray[np.float64]  # (N,) 0 at the first end of the line, 1 at the second
    sizes: NDArray[np.float64]  # (N,) longer side of the box, in pixels
    outside: NDArray[np.bool_]  # (N,) True if the frame cuts off the box, so the whole object is farther from the line

    @classmethod
    def of(
        cls,
        boxes_xyxy: NDArray[np.float64],
        times_s: NDArray[np.float64],
        anchor: str,
        ends: NDArray[np.float64],
        frame_size_px: tuple[int, int] | None,
    ) -> _Path:
        """Compute the path from boxes (N, 4), for the line from ``ends[0]`` to ``ends[1]``."""
        sizes = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).max(axis=1)
        along = ends[1] - ends[0]
        length = float(np.hypot(*along))
        offset = anchor_points(boxes_xyxy, anchor) - ends[0]
        right_px = (along[0] * offset[:, 1] - along[1] * offset[:, 0]) / length
        outside = np.zeros(len(boxes_xyxy), np.bool_)
        if frame_size_px is not None:
            cut = cut_sides(boxes_xyxy, frame_size_px)
            # How the anchor moves if a cut side moves outward, and how much this increases the distance from the line.
            share_x, share_y = ANCHORS[anchor]
            moves = np.array([(share_x - 1, 0), (0, share_y - 1), (share_x, 0), (0, share_y)])
            change = cut * (along[0] * moves[:, 1] - along[1] * moves[:, 0]) * np.sign(right_px)[:, None] / length
            outside = (change > _SLIGHT).any(axis=1) & ~(change < -_SLIGHT).any(axis=1)
        return cls(times_s, right_px / sizes, offset @ along / length**2, sizes, outside)


def _crossings(path: _Path, lost_s: float) -> Iterator[tuple[int, str]]:
    """Yield (0-based index of the first position beyond the line, ``in`` or ``out``) for each crossing of the line."""
    gaps_s = np.diff(path.times_s)
    is_right = path.right > 0
    changes: NDArray[np.intp] = np.flatnonzero((is_right[1:] != is_right[:-1]) | (gaps_s > _MAX_GAP_S)) + 1
    starts = [0, *changes.tolist()]
    established: bool | None = None  # True if the established side is the right side; None if no side is established
    for start, end in zip(starts, [*starts[1:], len(is_right)], strict=True):
        if start and gaps_s[start - 1] > _MAX_GAP_S:
            established = None
        leaves = end == len(is_right) or gaps_s[end - 1] > lost_s + _GRAIN_S
        visit = slice(start, end)
        if not _establishes(path, visit, is_first=established is None, is_last=leaves):
            continue
        side = bool(is_right[start])
        if established is not None and side != established and 0 <= _meeting(path, start) <= 1:
            yield int(start), "in" if side else "out"
        established = side


def _establishes(path: _Path, visit: slice, *, is_first: bool, is_last: bool) -> bool:
    """Return True if a visit to one side of the line establishes this side.

    Args:
        path: the path of an object.
        visit: the positions of the path during the visit.
        is_first: True if no side is established before the visit. In this case, a smaller distance establishes the
            side.
        is_last: True if the object is lost after the visit. In this case, a smaller distance establishes the side.
    """
    distance, times_s, outside = np.abs(path.right[visit]), path.times_s[visit], path.outside[visit]
    beyond, enters = np.flatnonzero(distance > _MARGIN), outside & (distance > _CUT_MARGIN)
    if (is_first and enters.any()) or (is_last and enters[-1]):
        return True
    if not len(beyond):
        return False
    stays = times_s[-1] - times_s[beyond[0]] >= _HOLD_S - _GRAIN_S
    return bool(is_first or is_last or stays or distance.max() > _CLEAR)


def _meeting(path: _Path, later: int) -> float:
    """Return the place on the extended line at which the path steps across it, before the position `later`.

    The place is 0 at the first end of the line, and 1 at the second end, as in `_Path.place`.
    """
    before, after = path.right[later - 1 : later + 1] * path.sizes[later - 1 : later + 1]
    share = before / (before - after)
    return float(path.place[later - 1] + share * (path.place[later] - path.place[later - 1]))
