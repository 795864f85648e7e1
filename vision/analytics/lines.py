"""`LineWatch` detects when objects cross lines. docs/analytics.md defines a crossing.

Boxes jitter, so a side counts only with a margin: an object is established on a side of a line when its anchor is far
beyond the line, or has been slightly beyond the line for some time. The first side of an object, and the last side of a
lost object, are established even if the anchor is only briefly and slightly beyond the line.

A crossing is a change from one established side to the other side. The change counts only if the most recent
intersection of the anchor's path with the line lies between the ends of the line. Therefore, a jump across the line
between two frames counts, but a path around an end of the line does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy import count_nonzero  # several times faster than any() on small arrays
from numpy.typing import NDArray

from vision.analytics.frame_clock import CLOCK_GRAIN_S
from vision.analytics.geometry import BoolArray, FloatArray, IndexArray, LineSet, pairs, places_of_anchors
from vision.analytics.tracked_objects import (
    MARGIN,
    STEADY_MARGIN,
    TrackColumn,
    TrackSnapshot,
    TrackTable,
    line_margin_px,
)
from vision.config.analytics import LineConfig, ZoneConfig

_CLEARLY: Final = 2.0  # distance beyond a line, in margins, at which an object has crossed
_STAYS_S: Final = 0.5  # time, more than one margin beyond a line, after which an object has crossed
_CUT: Final = 0.5  # minimum distance from a line, in margins, of a path that starts or ends at the edge of the frame
_SLIGHT: Final = 1e-6  # smaller effects of a side of a box on a distance are rounding errors
_ROUNDING: Final = 1.0 + 1e-9  # larger than the rounding errors of a distance
_ZERO: Final = np.array(0.0)  # NumPy compares faster with an array than with a Python number
_REMEMBERED_S: Final = 60.0  # a lost object that returns with its track id within this time continues its path


class Crossing(NamedTuple):
    """Crossing of one line by one object."""

    row: int  # row of the object in the track table
    line: int  # index of the line
    direction: str  # "in" (from left to right) or "out"


class Ahead(NamedTuple):
    """Next K detections of M objects, and the positions of these detections relative to L lines."""

    right: BoolArray  # (M, K, L) True if the object is on the right side of the line
    sizes_away: FloatArray  # (M, K, L) distances from the lines in object sizes, not negative
    cut: BoolArray  # (M, K, 4) sides of the boxes that the edge of the frame cuts off
    now_s: FloatArray  # (M, K) times of the detections


class _Absent(NamedTuple):
    """State of a lost object, from which its path continues if the object returns."""

    seen_s: float  # time of its last detection
    columns: Mapping[str, NDArray[Any]]  # its row of the track table: the columns of `LineWatch`, and "points"


class LineWatch:
    """Detector of crossings of one camera's lines. A `TrackTable` stores its state per object, as `columns` defines."""

    def __init__(self, lines: Sequence[LineConfig], anchors: Sequence[str], class_names: Sequence[str]) -> None:
        """Create the detector of crossings. `anchors` are the names of the columns of `TrackSnapshot.points`."""
        number = len(lines)
        self.columns: Mapping[str, TrackColumn] = {
            # First, for each line, True if the object is on the right side. Then the same for its established side.
            "right": TrackColumn(np.bool_, (2 * number,)),
            # Largest distance in sizes on the first side, which is established above the margin; later infinite.
            "reach": TrackColumn(np.float64, (number,)),
            "passed": TrackColumn(np.bool_, (number,)),  # the path last met the line between its ends
            # When the object went beyond the line, while its crossing is open; otherwise infinite.
            "beyond_s": TrackColumn(np.float64, (number,), math.inf),
        }
        self._anchors = [anchors.index(line.anchor) for line in lines]
        self._places = places_of_anchors(anchors)
        self._reported = [(line.direction != "in", line.direction != "out") for line in lines]
        self._classes = ClassFilter(lines, class_names)
        self._absent: dict[int, _Absent] = {}  # by track id, in the order in which they were lost

    def place(self, points: Sequence[Sequence[tuple[float, float]]]) -> LineSet:
        """Set the pixel coordinates of the end points of each line. Forget all lost objects. Return the lines."""
        self._absent.clear()
        self._set = LineSet(points, self._anchors)
        if points:
            factors, _ = self._set.of_places(self._places)
            grows = factors * ((-1.0,), (-1.0,), (1.0,), (1.0,))
            self._to_right, self._to_left = grows > _SLIGHT, grows < -_SLIGHT
        return self._set

    @staticmethod
    def places(kept: IndexArray, number: int) -> dict[str, IndexArray]:
        """Return the argument `places` of `TrackTable.adopt`, which moves the state of each line to its new column.

        Args:
            kept: index of each line in the previous configuration, or -1 if the line is new or has moved.
            number: number of lines in the previous configuration.
        """
        both = np.concatenate([kept, np.where(kept >= 0, kept + number, -1)])
        return {"right": both, "reach": kept, "passed": kept, "beyond_s": kept}

    def adopt(
        self, earlier: LineWatch, table: TrackTable, places: Mapping[str, IndexArray], known: Sequence[bool]
    ) -> None:
        """Continue the paths of the objects in `table`, and of lost objects. Call this after `TrackTable.adopt`.

        At a line that is new or has moved, a path starts at the last position of the object.

        Args:
            earlier: the instance that has detected the crossings until this call.
            table: the track table, with the rows of the previous table.
            places: the argument `places` of `TrackTable.adopt`.
            known: True for each anchor whose positions are known. The positions of the other anchors are estimates.
        """
        new = [line for line, at in enumerate(places["reach"].tolist()) if at < 0]
        self._start_paths(table, new, table["size"], known)
        columns = {**self.columns, "points": TrackColumn(np.complex128, (len(known),))}
        for track_id, absent in earlier._absent.items():
            state = {name: kind.carried(absent.columns[name][None], places[name]) for name, kind in columns.items()}
            self._start_paths(state, new, np.array([math.inf]), known)
            row = {name: values[0] for name, values in state.items()}
            self._absent[track_id] = _Absent(absent.seen_s, row)

    def _start_paths(
        self, columns: Mapping[str, NDArray[Any]], lines: Sequence[int], sizes: FloatArray, known: Sequence[bool]
    ) -> None:
        for line in lines:
            anchor = self._anchors[line]
            distances = [self._set.distance(point, line) for point in columns["points"][:, anchor].tolist()]
            for column in (line, line + len(self._anchors)):
                columns["right"][:, column] = np.array(distances) > 0
            columns["reach"][:, line] = np.abs(distances) / sizes if known[anchor] else 0.0

    def look(self, table: TrackTable, seen: TrackSnapshot, times_s: Sequence[float] | None = None) -> list[Crossing]:
        """Return the crossings in this frame, ordered by object and then by line.

        `times_s` (M,) are the times of the M objects in `seen`, if they are from different frames. If it is None, all
        objects have the time `seen.now_s`.

        Few objects change sides, so a loop handles them. `seen.distances` contains each of the L lines twice. A change
        of side in the first L columns shows where the path of an object meets a line, and in the other columns that the
        object crosses the line.
        """
        is_right = seen.distances > _ZERO
        if seen.fresh is not None:
            self._appear(table, seen, times_s)
        stored_right = table["right"]
        changed = stored_right.take(seen.rows, axis=0) != is_right
        crossings = []
        if count_nonzero(changed):
            objects, columns = pairs(changed)
            rows, distances = seen.rows[objects], seen.distances[objects, columns]
            margins = line_margin_px(table["jitter"][rows], table["size"][rows])
            candidates = (objects, rows, columns, distances, margins)
            for at, row, column, distance, margin in zip(*(values.tolist() for values in candidates), strict=True):
                line, now_s = column - len(self._anchors), seen.now_s if times_s is None else times_s[at]
                if line < 0:
                    self._meet(table, seen, at, row, column)
                elif self._is_sure(table["beyond_s"][row], line, abs(distance) / margin, now_s):
                    if self._counts(table, row, line, distance > 0, margin):
                        crossings.append(Crossing(row, line, "in" if distance > 0 else "out"))
                    stored_right[row, column] = distance > 0
                    table["reach"][row, line] = math.inf
        self._establish(table, seen, is_right)
        return crossings

    def lost(self, table: TrackTable, row: int) -> list[Crossing]:
        """Return the crossings that end the path of a lost object. Store the state of the object, in case it returns.

        A crossing counts if the object was last detected beyond the line, and had been farther beyond the line than the
        margin for jitter. A crossing also counts if the edge of the frame cut off the object beyond the line.
        """
        right, number = table["right"][row], len(self._anchors)
        margin = float(line_margin_px(table["jitter"][row], table["size"][row]))
        crossings = []
        for line in (right[:number] != right[number:]).nonzero()[0].tolist():
            if table["beyond_s"][row, line] == math.inf and not self._leaves_frame(table, row, line, margin):
                continue
            to_right = bool(right[line])
            if self._counts(table, row, line, to_right, margin):
                crossings.append(Crossing(row, line, "in" if to_right else "out"))
            right[number + line] = to_right
            table["reach"][row, line] = math.inf
        table["beyond_s"][row] = math.inf
        names = (*self.columns, "points")
        state = {name: table[name][row].copy() for name in names}
        self._absent[int(table.ids[row])] = _Absent(float(table["seen_s"][row]), state)
        return crossings

    def unsettled(self, table: TrackTable, rows: IndexArray) -> BoolArray:
        """Return a mask (M,) of the objects whose state can change while they stay on the same sides of all lines."""
        number, right = len(self._anchors), table["right"][rows]
        unsettled: BoolArray = ((right[:, :number] != right[:, number:]) | (table["reach"][rows] < MARGIN)).any(axis=1)
        return unsettled

    def changes(self, table: TrackTable, rows: IndexArray, ahead: Ahead) -> BoolArray:
        """Return a mask (M, K) of the next K detections of M objects that can change the state of their object.

        A marked detection need not change the state, but the first change of the state is always marked. Before this
        change, the object must stay on the same sides of all lines.

        Args:
            table: the track table, with the current state.
            rows: rows (M,) of the objects in the table.
            ahead: the next K detections of the objects.
        """
        right, sizes_away, cut, now_s = ahead
        number = len(self._anchors)
        is_cut = np.asarray(cut.any(axis=2))[..., None]
        away, sides = sizes_away * _ROUNDING, table["right"][rows, None]
        established, reach = sides[..., number:], table["reach"][rows, None]
        since_s = table["beyond_s"][rows, None]
        # `_is_sure`: the margin is at least `STEADY_MARGIN`
        is_sure = away > STEADY_MARGIN * np.where(since_s == math.inf, 1.0, _CLEARLY)
        is_sure |= now_s[..., None] >= since_s + (_STAYS_S - 2 * CLOCK_GRAIN_S)
        # `_establish`
        limit = np.where(right == established, reach, STEADY_MARGIN)
        is_established = np.where(is_cut, away / _CUT, away) > limit
        changes = (sides[..., :number] != established) & is_sure
        changes |= (reach < MARGIN) & is_established
        found: BoolArray = changes.any(axis=2)
        return found

    def forget_absent(self, now_s: float) -> None:
        """Forget the objects whose loss at `now_s` is too long ago for a continuation of their paths."""
        while self._absent:
            oldest = next(iter(self._absent))
            if self._absent[oldest].seen_s >= now_s - _REMEMBERED_S - CLOCK_GRAIN_S:
                break
            del self._absent[oldest]

    def _appear(self, table: TrackTable, seen: TrackSnapshot, times_s: Sequence[float] | None) -> None:
        """Set the first sides of new objects. An object that returns within `_REMEMBERED_S` continues its path instead.

        `times_s` is as in `look`.
        """
        appeared, number = seen.rows[seen.fresh], len(self._anchors)
        table["right"][appeared] = seen.first_distances > 0
        table["reach"][appeared] = np.abs(seen.first_distances[:, :number]) * _sizes_per_px(seen)[seen.fresh, None]
        if times_s is None:
            self.forget_absent(seen.now_s)
        for at in seen.fresh.nonzero()[0].tolist() if self._absent and seen.fresh is not None else ():
            row, now_s = int(seen.rows[at]), seen.now_s if times_s is None else times_s[at]
            absent = self._absent.pop(int(table.ids[row]), None)
            if absent is not None and absent.seen_s >= now_s - _REMEMBERED_S - CLOCK_GRAIN_S:
                for name, values in absent.columns.items():
                    table[name][row] = values

    def _meet(self, table: TrackTable, seen: TrackSnapshot, at: int, row: int, line: int) -> None:
        """Record that the path of an object meets a line, either between the ends of the line or on its extension.

        `at` is the index of the object in `seen`, and `row` is its row in `table`.
        """
        anchor = self._set.anchors[line]
        before, now = complex(table["points"][row, anchor]), complex(seen.points[at, anchor])
        table["passed"][row, line] = self._set.is_passed(before, now, line)
        table["beyond_s"][row, line] = math.inf
        table["right"][row, line] = not table["right"][row, line]

    def _establish(self, table: TrackTable, seen: TrackSnapshot, is_right: BoolArray) -> None:
        """Update the largest distance from the line (`reach`) of objects whose first side is not established yet.

        If an object goes beyond the line by a margin before its first side is established, the other side becomes its
        first side. `is_right` (M, 2 L) is True if the object is on the right side of the line. Each line occurs twice.
        """
        reach = table["reach"].take(seen.rows, axis=0)
        near = reach < MARGIN
        if not count_nonzero(near):
            return
        objects, lines = pairs(near)
        number = len(self._anchors)
        rows, reach, right = seen.rows[objects], reach[objects, lines], is_right[objects, lines]
        to_right, to_left = self._pushed(seen.cut)
        outside = np.where(right, to_right[objects, lines], to_left[objects, lines])
        sizes_per_px = _sizes_per_px(seen)[objects]
        far = np.abs(seen.distances[objects, lines]) * sizes_per_px / np.where(outside, _CUT, 1.0)
        margin = line_margin_px(table["jitter"][rows], 1.0)
        same = table["right"][rows, number + lines] == right
        changed = np.where(same, far > reach, (far > margin) & (reach <= margin))
        rows, lines = rows[changed], lines[changed]
        table["right"][rows, number + lines] = right[changed]
        table["reach"][rows, lines] = far[changed]
        table["beyond_s"][rows, lines] = math.inf

    def _leaves_frame(self, table: TrackTable, row: int, line: int, margin: float) -> bool:
        """Return True if the frame's edge cut off a lost object whose real anchor was certainly beyond the line."""
        distance = self._set.distance(complex(table["points"][row, self._set.anchors[line]]), line)
        outside = self._pushed(table["cut"][row : row + 1].view(np.bool_))[distance <= 0][line]
        return bool(outside) and abs(distance) > _CUT * margin

    def _pushed(self, cut: BoolArray) -> tuple[BoolArray, BoolArray]:
        """Compare the anchors of whole objects with the anchors of their boxes. `cut` (..., 4) marks the cut-off sides.

        Return two masks (..., L). The first mask is True if the object's anchor is certainly farther to the right of a
        line than the box's anchor. The second mask is True if the object's anchor is certainly farther to the left.
        """
        to_right, to_left = cut @ self._to_right, cut @ self._to_left
        return to_right & ~to_left, to_left & ~to_right

    @staticmethod
    def _is_sure(beyond_s: FloatArray, line: int, margins: float, now_s: float) -> bool:
        """Return True if an object is far beyond a line, or has been beyond the line long enough. Update `beyond_s`.

        `margins` is the distance of the object from the line, in margins.
        """
        if margins > 1.0 and beyond_s[line] == math.inf:
            beyond_s[line] = now_s
        if margins <= _CLEARLY and now_s - beyond_s[line] < _STAYS_S - CLOCK_GRAIN_S:
            return False
        beyond_s[line] = math.inf
        return True

    def _counts(self, table: TrackTable, row: int, line: int, to_right: bool, margin: float) -> bool:
        """Return True if the change of an object to the other side of a line must be reported as a crossing."""
        if not table["passed"][row, line] or not self._reported[line][to_right]:
            return False
        if table["reach"][row, line] * table["size"][row] <= margin:  # the first side is not established
            return False
        return self._classes.allows(int(table["class_id"][row]), line)


def _sizes_per_px(seen: TrackSnapshot) -> FloatArray:
    return MARGIN / seen.margin


class ClassFilter:
    """Selection, by class, of the objects that each of S lines or zones counts."""

    def __init__(self, shapes: Sequence[LineConfig | ZoneConfig], class_names: Sequence[str]) -> None:
        allowed = np.ones((len(class_names) + 1, len(shapes)), np.bool_)  # the last row is for ids without a name
        for column, shape in enumerate(shapes):
            if shape.classes is not None:
                allowed[:-1, column] = np.isin(class_names, shape.classes)
                allowed[-1, column] = False
        self._allowed = None if allowed.all() else allowed

    def allows(self, class_id: int, shape: int) -> bool:
        """Return True if the line or zone with the index `shape` counts objects of this class."""
        if self._allowed is None:
            return True
        unnamed = len(self._allowed) - 1
        return bool(self._allowed[class_id if 0 <= class_id < unnamed else unnamed, shape])

    def allowed(self, class_ids: NDArray[np.int32], rows: IndexArray) -> BoolArray | None:
        """Return the mask (M, S) of the objects that each line or zone counts, or None if all count every class.

        `rows` (M,) are the indices of the objects in `class_ids`.
        """
        if self._allowed is None:
            return None
        return self._allowed[np.minimum(class_ids[rows].view(np.uint32), len(self._allowed) - 1)]
