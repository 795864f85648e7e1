"""`LineWatch` detects crossings of lines by objects.

Boxes jitter, so a crossing needs a margin in space and in time: an object has crossed when its anchor is clearly beyond
the line, or slightly beyond it for some time. The side of each object is stored. Where the path meets the line, the
position between its ends is checked. So a jump across the line between two frames counts, but a path around its end
does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision.analytics.frame_clock import CLOCK_GRAIN_S
from vision.analytics.geometry import BoolArray, FloatArray, IndexArray, LineSet, pairs
from vision.analytics.tracked_objects import TrackColumn, TrackSnapshot, TrackTable
from vision.config.analytics import LineConfig, ZoneConfig

_CLEARLY: Final = 2.0  # margins beyond a line: crossed at once
_STAYS_S: Final = 0.5  # this long more than a margin beyond a line: crossed too


class Crossing(NamedTuple):
    """Crossing of one line by one object."""

    row: int  # in the track table
    line: int
    direction: str  # "in": from the left to the right


class LineWatch:
    """The lines of one camera. The state of each object is in the `columns` of the camera's `TrackTable`."""

    def __init__(self, lines: Sequence[LineConfig], anchors: Sequence[str], class_names: Sequence[str]) -> None:
        """
        Args:
            anchors: names of the columns of `TrackSnapshot.points`.
        """
        number = len(lines)
        self.columns: Mapping[str, TrackColumn] = {
            # The side of each line that it is on, and the side that it counts on.
            "right": TrackColumn(np.bool_, (2 * number,)),
            "unknown": TrackColumn(np.bool_, (number,)),  # on the line since it appeared
            "passed": TrackColumn(np.bool_, (number,)),  # the path last met the line between its ends
            # Since when it has been beyond the line without being counted.
            "beyond_s": TrackColumn(np.float64, (number,), math.inf),
        }
        self._anchors = [anchors.index(line.anchor) for line in lines]
        self._reported = [(line.direction != "in", line.direction != "out") for line in lines]
        self._classes = ClassFilter(lines, class_names)

    def place(self, points: Sequence[Sequence[tuple[float, float]]]) -> LineSet:
        """Set the pixel coordinates of the end points of each line. Return the lines."""
        self._set = LineSet(points, self._anchors)
        return self._set

    def look(self, memory: TrackTable, seen: TrackSnapshot) -> list[Crossing]:
        """Return the crossings in this frame, in the order of objects and then of lines.

        Few objects are near a line, so they are handled one by one. The columns for paths that meet a line come first.
        """
        memory_right, is_right = memory["right"], seen.distances > 0
        if seen.fresh is not None:
            appeared = seen.rows[seen.fresh]
            memory_right[appeared] = is_right[seen.fresh]
            memory["unknown"][appeared] = seen.distances[seen.fresh, : len(self._anchors)] == 0
        objects, columns = pairs(memory_right.take(seen.rows, axis=0) != is_right)
        if not len(objects):
            return []
        candidates = (objects, seen.rows[objects], columns, seen.distances[objects, columns], seen.margin[objects])
        crossings = []
        for at, row, column, distance, margin in zip(*(values.tolist() for values in candidates), strict=True):
            line = column - len(self._anchors)
            if line < 0:
                self._meet(memory, seen, at, row, column)
            elif self._is_sure(memory["beyond_s"][row], line, abs(distance) / margin, seen.now_s):
                if self._counts(memory, row, line, distance > 0):
                    crossings.append(Crossing(row, line, "in" if distance > 0 else "out"))
                memory_right[row, column] = distance > 0
                memory["unknown"][row, line] = False
        return crossings

    def lost(self, memory: TrackTable, row: int) -> list[Crossing]:
        """Return the crossings of an object that is no longer tracked: the lines that it was last slightly beyond."""
        lines = (memory["beyond_s"][row] < math.inf).nonzero()[0].tolist()
        ended = [(line, bool(memory["right"][row, line])) for line in lines]
        return [
            Crossing(row, line, "in" if to_right else "out")
            for line, to_right in ended
            if self._counts(memory, row, line, to_right)
        ]

    def _meet(self, memory: TrackTable, seen: TrackSnapshot, at: int, row: int, line: int) -> None:
        """Record the meeting of a path and the infinite line, and if it lies between the ends of the line."""
        anchor = self._set.anchors[line]
        before, now = complex(memory["points"][row, anchor]), complex(seen.points[at, anchor])
        memory["passed"][row, line] = self._set.is_passed(before, now, line)
        memory["beyond_s"][row, line] = math.inf
        memory["right"][row, line] = not memory["right"][row, line]

    @staticmethod
    def _is_sure(beyond_s: FloatArray, line: int, margins: float, now_s: float) -> bool:
        """Return True if an object is far enough, or has been long enough, beyond the line to have left its side."""
        if margins > 1.0 and beyond_s[line] == math.inf:
            beyond_s[line] = now_s
        if margins <= _CLEARLY and now_s - beyond_s[line] < _STAYS_S - CLOCK_GRAIN_S:
            return False
        beyond_s[line] = math.inf
        return True

    def _counts(self, memory: TrackTable, row: int, line: int, to_right: bool) -> bool:
        """Return True if a change of side is a crossing to report."""
        if not memory["passed"][row, line] or memory["unknown"][row, line] or not self._reported[line][to_right]:
            return False
        return self._classes.allows(int(memory["class_id"][row]), line)


class ClassFilter:
    """The classes of objects that each of S lines or zones counts."""

    def __init__(self, shapes: Sequence[LineConfig | ZoneConfig], class_names: Sequence[str]) -> None:
        allowed = np.ones((len(class_names) + 1, len(shapes)), np.bool_)  # the last row is for ids without a name
        for column, shape in enumerate(shapes):
            if shape.classes is not None:
                allowed[:-1, column] = np.isin(class_names, shape.classes)
                allowed[-1, column] = False
        self._allowed = None if allowed.all() else allowed

    def allows(self, class_id: int, shape: int) -> bool:
        """Return True if a line or zone counts objects of this class."""
        if self._allowed is None:
            return True
        unnamed = len(self._allowed) - 1
        return bool(self._allowed[class_id if 0 <= class_id < unnamed else unnamed, shape])

    def allowed(self, class_ids: NDArray[np.int32], rows: IndexArray) -> BoolArray | None:
        """Return a mask, (M, S), of the objects in `rows`, (M,), that each shape counts; None if all count."""
        if self._allowed is None:
            return None
        return self._allowed[np.minimum(class_ids[rows].view(np.uint32), len(self._allowed) - 1)]
