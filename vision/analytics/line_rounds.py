"""`LineRounds` finds the crossings in many archived frames. It uses `LineWatch`, as the live analytics do.

Each round judges one detection of every object: the next one in which the state of the object can change. The
detections of a round can be in different frames.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vision.analytics.geometry import BoolArray, FloatArray, IndexArray
from vision.analytics.lines import LineWatch
from vision.analytics.recorded_objects import RecordedObjects
from vision.analytics.tracked_objects import MARGIN, TrackSnapshot, packed


class RecordedCrossing(NamedTuple):
    """A crossing in archived frames."""

    row: int  # the detection; the last one if the object was lost
    line: int
    direction: str
    is_lost: bool  # True if the crossing counts because the object was lost


class LineRounds:
    """Finds the crossings in the frames that `objects` loaded last. Use each instance only once."""

    def __init__(self, objects: RecordedObjects, watch: LineWatch, fresh: IndexArray) -> None:
        """Prepare the rounds. `fresh` contains the rows in which objects appear, in ascending order."""
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
        self._turns: list[int] = [*turns.nonzero()[0].tolist(), len(turns)]  # rows that change sides, or appear

    def run(self) -> Iterator[RecordedCrossing]:
        """Yield all crossings, in no particular order."""
        rows: list[int] = []
        known: list[int] = []
        crossings: list[RecordedCrossing] = []
        for row in self._first_rows():
            (rows if self._is_fresh[row] else known).append(row)
        rows += self._following(known, crossings)
        while rows:
            crossings += self._judge(rows)
            rows = self._following(rows, crossings)
        yield from crossings

    def _first_rows(self) -> Iterator[int]:
        """Yield, for each track, its last row before the new frames, or else the row in which it appears."""
        objects, lives, started = self._objects, self._objects.lives, set()
        for start, end, gone in zip(lives.starts, lives.ends, lives.gone, strict=True):
            track_id = int(objects.rows.track_ids[start])
            if gone >= objects.first and track_id not in started:
                started.add(track_id)
                yield max(start, bisect_left(lives.frames, objects.first, start, end) - 1)

    def _following(self, rows: Sequence[int], crossings: list[RecordedCrossing]) -> list[int]:
        """Return the next row to judge after each of `rows`, if there is one. Add the crossings of lost objects."""
        table, selected = self._objects.table, np.array(rows, np.intp)
        at = table.ids.searchsorted(self._objects.rows.track_ids[selected])
        unsettled = self._watch.unsettled(table, at).tolist()
        values = zip(rows, at.tolist(), self._objects.lives.of_row[selected].tolist(), unsettled, strict=True)
        found = [self._next(*each, crossings) for each in values]
        return [row for row in found if row is not None]

    def _next(self, row: int, at: int, life: int, unsettled: bool, crossings: list[RecordedCrossing]) -> int | None:
        """Return the next row of a track to judge after `row`; None if there is none.

        `at` is the row of the track in the table. If the object was lost, add its crossings to `crossings`.
        """
        objects, lives = self._objects, self._objects.lives
        end = lives.ends[life]
        following = min(end, self._turns[bisect_left(self._turns, row + 1)])
        if unsettled:
            ahead = slice(row + 1, following)
            state = {name: objects.table[name][at] for name in ("right", "reach", "beyond_s")}
            now_s, cut = objects.now_s[objects.rows.frames[ahead]], objects.rows.cut[ahead]
            change = self._watch.next_change(state, self._right[ahead], self._sizes_away[ahead], cut, now_s)
            following = following if change is None else row + 1 + change
        if following < end:
            return following
        if lives.gone[life] == len(objects.now_s):
            return None
        self._place([end - 1], np.array([at]))
        for _, line, direction in self._watch.lost(objects.table, at):
            crossings.append(RecordedCrossing(end - 1, line, direction, is_lost=True))
        is_same = end < len(lives.frames) and objects.rows.track_ids[end] == objects.rows.track_ids[row]
        return end if is_same else None

    def _place(self, rows: Sequence[int], at: IndexArray) -> None:
        """Store the state of objects at the detections `rows` in the rows `at` of the table."""
        table, found = self._objects.table, self._objects.rows
        table["seen_s"][at] = self._objects.now_s[found.frames[rows]]
        table["size"][at] = found.sizes[rows]
        table["class_id"][at] = found.class_ids[rows]
        table["cut"][at] = packed(found.cut[rows])
        table["points"][at] = self._objects.points_of(found.columns[rows])
        table["jitter"][at] = [self._objects.jitter_at(row)[0] for row in rows]

    def _judge(self, rows: Sequence[int]) -> Iterator[RecordedCrossing]:
        """Judge one row of each of several tracks. Yield their crossings."""
        objects, selected = self._objects, np.array(rows, np.intp)
        table, found = objects.table, objects.rows
        at = table.ids.searchsorted(found.track_ids[selected])
        self._place(rows, at)
        columns, fresh = found.columns[selected], self._is_fresh[selected]
        table["points"][at] = objects.points_of(found.columns[selected - 1])
        first = self._first_columns[self._fresh.searchsorted(selected[fresh])]
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
            MARGIN * found.sizes[selected],
            found.cut[selected],
        )
        row_of = dict(zip(at.tolist(), rows, strict=True))
        for place, line, direction in self._watch.look(table, seen, objects.now_s[found.frames[selected]].tolist()):
            yield RecordedCrossing(row_of[place], line, direction, is_lost=False)
        table["points"][at] = seen.points
