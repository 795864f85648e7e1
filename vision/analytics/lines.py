"""`LineWatch` detects when objects cross lines.

Boxes jitter, so a crossing needs a margin: an object has crossed a line when its anchor is far beyond the line, or
slightly beyond the line for some time. The crossing counts only if the path of the anchor met the line between the ends
of the line. So a jump across the line between two frames counts, but a path around an end of the line does not.
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

_CLEARLY: Final = 2.0  # distance beyond a line, in margins, at which an object has crossed
_STAYS_S: Final = 0.5  # time beyond a line by more than one margin after which an object has crossed


class Crossing(NamedTuple):
    """The crossing of one line by one object."""

    row: int  # in the track table
    line: int
    direction: str  # "in" (from left to right) or "out"


class LineWatch:
    """Detects crossings of one camera's lines. `columns` defines the state that a `TrackTable` stores per object."""

    def __init__(self, lines: Sequence[LineConfig], anchors: Sequence[str], class_names: Sequence[str]) -> None:
        """Create the detector of crossings. `anchors` are the names of the columns of `TrackSnapshot.points`."""
        number = len(lines)
        self.columns: Mapping[str, TrackColumn] = {
            # True if it is the right side: of each line, the side where the object is, then the side where it counts.
            "right": TrackColumn(np.bool_, (2 * number,)),
            "unknown": TrackColumn(np.bool_, (number,)),  # the object is on the line since it appeared
            "passed": TrackColumn(np.bool_, (number,)),  # the path last met the line between its ends
            # When the object went beyond the line, while its crossing is open; otherwise infinite.
            "beyond_s": TrackColumn(np.float64, (number,), math.inf),
        }
        self._anchors = [anchors.index(line.anchor) for line in lines]
        self._reported = [(line.direction != "in", line.direction != "out") for line in lines]
        self._classes = ClassFilter(lines, class_names)

    def place(self, points: Sequence[Sequence[tuple[float, float]]]) -> LineSet:
        """Set the pixel coordinates of the end points of each line. Return the lines."""
        self._set = LineSet(points, self._anchors)
        return self._set

    def look(self, table: TrackTable, seen: TrackSnapshot) -> list[Crossing]:
        """Return the crossings in this frame, ordered by object and then by line.

        Few objects change sides, so a loop handles them: for each object, first its meetings with lines (columns 0 to
        L - 1), then its crossings.
        """
        stored_right, is_right = table["right"], seen.distances > 0
        if seen.fresh is not None:
            appeared = seen.rows[seen.fresh]
            stored_right[appeared] = is_right[seen.fresh]
            table["unknown"][appeared] = seen.distances[seen.fresh, : len(self._anchors)] == 0
        objects, columns = pairs(stored_right.take(seen.rows, axis=0) != is_right)
        if not len(objects):
            return []
        candidates = (objects, seen.rows[objects], columns, seen.distances[objects, columns], seen.margin[objects])
        crossings = []
        for at, row, column, distance, margin in zip(*(values.tolist() for values in candidates), strict=True):
            line = column - len(self._anchors)
            if line < 0:
                self._meet(table, seen, at, row, column)
            elif self._is_sure(table["beyond_s"][row], line, abs(distance) / margin, seen.now_s):
                if self._counts(table, row, line, distance > 0):
                    crossings.append(Crossing(row, line, "in" if distance > 0 else "out"))
                stored_right[row, column] = distance > 0
                table["unknown"][row, line] = False
        return crossings

    def lost(self, table: TrackTable, row: int) -> list[Crossing]:
        """Return the crossings of a lost object, which are those of lines that it was last slightly beyond."""
        lines = (table["beyond_s"][row] < math.inf).nonzero()[0].tolist()
        ended = [(line, bool(table["right"][row, line])) for line in lines]
        return [
            Crossing(row, line, "in" if to_right else "out")
            for line, to_right in ended
            if self._counts(table, row, line, to_right)
        ]

    def _meet(self, table: TrackTable, seen: TrackSnapshot, at: int, row: int, line: int) -> None:
        """Record that an object's path meets the extension of a line, and whether they meet between the line's ends."""
        anchor = self._set.anchors[line]
        before, now = complex(table["points"][row, anchor]), complex(seen.points[at, anchor])
        table["passed"][row, line] = self._set.is_passed(before, now, line)
        table["beyond_s"][row, line] = math.inf
        table["right"][row, line] = not table["right"][row, line]

    @staticmethod
    def _is_sure(beyond_s: FloatArray, line: int, margins: float, now_s: float) -> bool:
        """Update `beyond_s`. Return True if an object is far enough beyond the line, or has been for long enough."""
        if margins > 1.0 and beyond_s[line] == math.inf:
            beyond_s[line] = now_s
        if margins <= _CLEARLY and now_s - beyond_s[line] < _STAYS_S - CLOCK_GRAIN_S:
            return False
        beyond_s[line] = math.inf
        return True

    def _counts(self, table: TrackTable, row: int, line: int, to_right: bool) -> bool:
        """Return True if the move of an object to the other side of a line must be reported as a crossing."""
        if not table["passed"][row, line] or table["unknown"][row, line] or not self._reported[line][to_right]:
            return False
        return self._classes.allows(int(table["class_id"][row]), line)


class ClassFilter:
    """Selects the objects that each of S lines or zones counts, by class."""

    def __init__(self, shapes: Sequence[LineConfig | ZoneConfig], class_names: Sequence[str]) -> None:
        allowed = np.ones((len(class_names) + 1, len(shapes)), np.bool_)  # the last row is for ids without a name
        for column, shape in enumerate(shapes):
            if shape.classes is not None:
                allowed[:-1, column] = np.isin(class_names, shape.classes)
                allowed[-1, column] = False
        self._allowed = None if allowed.all() else allowed

    def allows(self, class_id: int, shape: int) -> bool:
        """Return True if the line or zone of index `shape` counts objects of this class."""
        if self._allowed is None:
            return True
        unnamed = len(self._allowed) - 1
        return bool(self._allowed[class_id if 0 <= class_id < unnamed else unnamed, shape])

    def allowed(self, class_ids: NDArray[np.int32], rows: IndexArray) -> BoolArray | None:
        """Return the mask (M, S) of the objects in `rows` (M,) that each line or zone counts; None if all count."""
        if self._allowed is None:
            return None
        return self._allowed[np.minimum(class_ids[rows].view(np.uint32), len(self._allowed) - 1)]
