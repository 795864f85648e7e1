"""`LineRounds` finds the crossings in many archived frames. It uses `LineWatch`, as the live analytics do.

Each round evaluates one detection of every object: the next detection that can change the state of the object. The
detections of a round can be in different frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from vision.analytics.geometry import BoolArray, FloatArray, IndexArray
from vision.analytics.lines import Ahead, LineWatch
from vision.analytics.recorded_objects import RecordedObjects
from vision.analytics.tracked_objects import MARGIN, TrackSnapshot, packed

_WIDTH: Final = 8
"""Number of rows per object in which the first search looks for a change. It doubles with each search."""
_MOST_WIDTH: Final = 128  # limit of this number


class RecordedCrossing(NamedTuple):
    """Crossing of a line by an object in archived frames."""

    row: int  # row of the detection; the last row of the object if `is_lost`
    line: int  # index of the line
    direction: str  # "in" or "out"
    is_lost: bool  # True if the crossing counts because the object was lost


class LineRounds:
    """Search for the crossings in the frames that `objects` loaded most recently. Use each instance only once."""

    def __init__(self, objects: RecordedObjects, watch: LineWatch, fresh: IndexArray) -> None:
        """Prepare the rounds.

        Args:
            objects: the archived objects, with the frames to search.
            watch: detector of crossings, with the configured lines.
            fresh: rows of `objects` in which new objects appear, ascending.
        """
        self._objects, self._watch, self._fresh = objects, watch, fresh
        self._is_fresh: BoolArray = np.zeros(len(objects.rows.frames), np.bool_)
        self._is_fresh[fresh] = True
        self._first_columns = objects.first_columns(fresh)
        self._right: BoolArray = objects.distances > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            self._sizes_away: FloatArray = np.abs(objects.distances) / objects.rows.sizes[:, None]
        turns = self._is_fresh.copy()
        turns[1:] |= (self._right[1:] != self._right[:-1]).any(axis=1)
        turns &= objects.rows.frames >= objects.first
        self._turns = np.append(turns.nonzero()[0], len(turns))  # rows that change sides, or appear

    def run(self) -> list[RecordedCrossing]:
        """Return all crossings, in no particular order."""
        crossings: list[RecordedCrossing] = []
        rows = self._first_rows()
        appear = self._is_fresh[rows]
        rows = np.concatenate([rows[appear], self._following(rows[~appear], crossings)])
        while len(rows):
            crossings += self._judge(rows)
            rows = self._following(rows, crossings)
        return crossings

    def _first_rows(self) -> IndexArray:
        """Return, for each track in the new frames, the row of `objects.rows` from which its search starts.

        This is the last row before the new frames, or the row in which the track first appears.
        """
        objects, lives = self._objects, self._objects.lives
        (present,) = (lives.gone >= objects.first).nonzero()
        starts = lives.starts[present]
        track_ids = objects.rows.track_ids[starts]
        is_first = np.ones(len(present), np.bool_)
        is_first[1:] = track_ids[1:] != track_ids[:-1]
        new = objects.rows_at(present, np.full(len(present), objects.first))
        first: IndexArray = np.maximum(starts, new - 1)[is_first]
        return first

    def _following(self, rows: IndexArray, crossings: list[RecordedCrossing]) -> IndexArray:
        """Return, for each row of an object that was just evaluated, the next row of this object to evaluate.

        Omit objects without such a row. If an object is lost before its next row, add its last crossings to
        `crossings`.
        """
        objects, lives, table = self._objects, self._objects.lives, self._objects.table
        life, track_ids = lives.of_row[rows], objects.rows.track_ids
        at, ends = table.ids.searchsorted(track_ids[rows]), lives.ends[life]
        following = np.minimum(ends, self._turns[self._turns.searchsorted(rows, "right")])
        (open_,) = self._watch.unsettled(table, at).nonzero()
        if len(open_):
            following[open_] = self._changes(rows[open_] + 1, following[open_], at[open_])
        (lost,) = ((following == ends) & (lives.gone[life] < len(objects.now_s))).nonzero()
        if len(lost):
            self._place(ends[lost] - 1, at[lost])
        for number, end in zip(lost.tolist(), ends[lost].tolist(), strict=True):
            for _, line, direction in self._watch.lost(table, int(at[number])):
                crossings.append(RecordedCrossing(end - 1, line, direction, is_lost=True))
        returned = lost[ends[lost] < len(track_ids)]
        returned = returned[track_ids[ends[returned]] == track_ids[rows[returned]]]
        return np.concatenate([following[following < ends], ends[returned]])

    def _changes(self, starts: IndexArray, ends: IndexArray, at: IndexArray) -> IndexArray:
        """Return, for each of M objects, the first row in a range that can change the state of the object.

        If there is no such row, the result is the end of the range. In its range, each object must stay on the same
        sides of all lines.

        Args:
            starts: first row (M,) of each range.
            ends: row (M,) after the last row of each range.
            at: rows (M,) of the objects in the table.
        """
        objects, found, width, left = self._objects, ends + 0, _WIDTH, np.arange(len(starts))
        while len(left):
            rows = starts[left, None] + np.arange(width)
            known = rows < ends[left, None]
            rows = np.minimum(rows, len(self._right) - 1)
            times_s = objects.now_s[objects.rows.frames[rows]]
            ahead = Ahead(self._right[rows], self._sizes_away[rows], objects.rows.cut[rows], times_s)
            changes = self._watch.changes(objects.table, at[left], ahead)
            changes &= known
            has_change = changes.any(axis=1)
            found[left[has_change]] = starts[left[has_change]] + changes[has_change].argmax(axis=1)
            starts = starts + width
            left, width = left[~has_change & (starts[left] < ends[left])], min(2 * width, _MOST_WIDTH)
        return found

    def _place(self, rows: IndexArray, at: IndexArray) -> None:
        """Store the state of objects at the detections `rows` (M,) in the rows `at` (M,) of the track table."""
        table, found = self._objects.table, self._objects.rows
        table["seen_s"][at] = self._objects.now_s[found.frames[rows]]
        table["size"][at] = found.sizes[rows]
        table["class_id"][at] = found.class_ids[rows]
        table["cut"][at] = packed(found.cut[rows])
        table["points"][at] = self._objects.points_of(found.columns[rows])
        table["jitter"][at] = self._objects.jitter_at(rows)[:, 0]

    def _judge(self, rows: IndexArray) -> Iterator[RecordedCrossing]:
        """Evaluate one detection of each of several objects. Yield the crossings at these detections.

        `rows` contains the row of each detection in `objects.rows`.
        """
        objects, table, found = self._objects, self._objects.table, self._objects.rows
        at = table.ids.searchsorted(found.track_ids[rows])
        self._place(rows, at)
        columns, fresh = found.columns[rows], self._is_fresh[rows]
        table["points"][at] = objects.points_of(found.columns[rows - 1])
        first = self._first_columns[self._fresh.searchsorted(rows[fresh])]
        for name, column in self._watch.columns.items():
            table[name][at[fresh]] = column.blank
        table["points"][at[fresh]] = objects.points_of(first)
        seen = TrackSnapshot(
            np.nan,
            at,
            fresh if fresh.any() else None,
            objects.distances_of(first),
            objects.points_of(columns),
            objects.distances_of(columns),
            MARGIN * found.sizes[rows],
            found.cut[rows],
        )
        row_of = dict(zip(at.tolist(), rows.tolist(), strict=True))
        for place, line, direction in self._watch.look(table, seen, objects.now_s[found.frames[rows]].tolist()):
            yield RecordedCrossing(row_of[place], line, direction, is_lost=False)
        table["points"][at] = seen.points
