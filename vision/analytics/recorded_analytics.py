"""`RecordedAnalytics` judges archived frames, with the same results as `Analytics`, but many frames at once.

The state of an object at lines and zones depends on no other object, and seldom changes. Therefore, `load` finds all
detections in which it can change, and judges those of different objects together, although they are in different
frames. The events are then created in the order of frames, because they contain counts.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

import numpy as np

from vision.analytics.camera_analytics import Analytics
from vision.analytics.geometry import BoolArray, GroundPlane, IndexArray, LineSet
from vision.analytics.line_rounds import LineRounds
from vision.analytics.lines import Crossing
from vision.analytics.recorded_objects import RecordedObjects, RecordedTracks
from vision.analytics.tracked_objects import MARGIN, TrackColumn
from vision.types import Event, Tracks

_LOST: Final = 0
_CROSSED: Final = 1
_PASSED: Final = 2
_DWELLS: Final = 3
_ROUNDING_S: Final = 1e-6


class _Change(NamedTuple):
    """A change of the state of an object in a frame. Changes are in the order in which `Analytics` reports events."""

    frame: int
    kind: int  # `_LOST`, `_CROSSED`, `_PASSED`, or `_DWELLS`
    order: int  # of the objects of a frame: track id, or place in the frame
    shape: int  # index of the line or zone
    row: int  # last detection of the object
    direction: str = ""  # of a crossing


class RecordedAnalytics(Analytics):
    """Analytics of archived frames. Frames are numbered from 0 in each `load`.

    After `load`, call `seek` and `update` for each frame that `next_frame` returns, and then `finish`.
    """

    def _make_objects(
        self,
        anchors: Sequence[str],
        lines: LineSet,
        ground: GroundPlane | None,
        columns: Mapping[str, TrackColumn],
        frame_size_px: tuple[int, int],
    ) -> RecordedObjects:
        self._recorded = RecordedObjects(anchors, lines, ground, columns, frame_size_px)
        return self._recorded

    def load(self, tracks: RecordedTracks) -> None:
        """Add the next frames. Once they are judged, call `finish`, before the next `load` and before a new epoch."""
        objects = self._recorded
        objects.load(tracks, self._forget_s)
        fresh, continued = objects.new_rows()
        self._fresh = frozenset(fresh.tolist())
        self._changes: list[_Change] = []  # as a heap
        self._frames: list[int] = []  # frames to judge although they have no change, as a heap
        self._lost: dict[int, list[Crossing]] = {}  # crossings of lost objects, by their last row
        lives = objects.lives
        for start, end, gone in zip(lives.starts, lives.ends, lives.gone, strict=True):
            if objects.first <= gone < len(objects.now_s):
                self._changes.append(_Change(gone, _LOST, int(objects.rows.track_ids[start]), 0, end - 1))
        if self._config.lines:
            self._changes += self._crossings(fresh)
        if self._config.zones:
            self._changes += self._passages(fresh, continued)
            self._await_dwellers(continued)
            self._await_pauses()
            self._await_crowds(objects.first - 1)
        heapify(self._changes)

    def next_frame(self) -> int | None:
        """Return the next frame to judge; None if there is none."""
        frames = [*self._frames[:1], *(change.frame for change in self._changes[:1])]
        return min(frames) - self._recorded.first if frames else None

    def add_frame(self, frame: int) -> None:
        """Make `next_frame` also return this frame, which must not be before the present one."""
        heappush(self._frames, self._recorded.first + frame)

    def seek(self, frame: int) -> None:
        """Go to a frame, which the next `update` judges."""
        self._at = self._recorded.first + frame
        while self._frames and self._frames[0] <= self._at:
            heappop(self._frames)
        self._recorded.seek(self._at)

    def update(self, tracks: Tracks, captured_ns: int) -> tuple[Event, ...]:  # noqa: ARG002 - as in `Analytics`
        """Judge the frame of the latest `seek`. Return its events. `tracks` is not used."""
        events: list[Event] = []
        clock = self._objects.clock
        step_s = clock.advance(captured_ns)
        memory_s = clock.memory_s(self._forget_s)
        self._facts.clear()
        kind = _LOST
        while self._changes and self._changes[0].frame == self._at:
            change = heappop(self._changes)
            if kind == _LOST != change.kind:
                self._facts.clear()  # a lost object can return at once, with the same track id
            kind = change.kind
            events += self._apply(change, captured_ns)
        for zone, data in self._crowds.update(clock.now_s, unobserved=step_s > memory_s):
            events.append(self._event("crowded", self._config.zones[zone], None, captured_ns, data))
        self._counters.flush()
        self._await_crowds(self._at)
        return tuple(events)

    def finish(self) -> None:
        """Update all objects to the end of the frames of the latest `load`, and forget those that are gone."""
        self._recorded.finish()
        self._line_watch.forget_absent(self._recorded.clock.now_s)

    # --- finding changes ----------------------------------------------------------------------------------------------

    def _crossings(self, fresh: IndexArray) -> Iterator[_Change]:
        rows, names = self._recorded.rows, self._recorded.lives.frames
        for row, line, direction, is_lost in LineRounds(self._recorded, self._line_watch, fresh).run():
            if is_lost:
                self._lost.setdefault(row, []).append(Crossing(-1, line, direction))
            else:
                yield _Change(names[row], _CROSSED, int(rows.places[row]), line, row, direction)

    def _passages(self, fresh: IndexArray, continued: IndexArray) -> Iterator[_Change]:
        """Yield the detections in which an object can enter or leave a zone.

        When an object appears, or is far from the border, the zone counts it where it is. Therefore, an object can only
        enter or leave in two kinds of detections: in the one in which it appears, and, each time after it crosses the
        border, in the first one that is far from the border.
        """
        objects, number = self._recorded, len(self._recorded.rows.frames)
        self._inside: BoolArray = self._zone_watch.inside(objects.points, objects.rows.class_ids, np.arange(number))
        is_new = objects.rows.frames >= objects.first
        changes = np.zeros_like(self._inside)
        changes[1:] = self._inside[1:] != self._inside[:-1]
        changes[fresh] = changes[continued] = True
        changes[~is_new] = True
        zones, starts = changes.T.nonzero()
        ends = np.append(starts[1:], number)
        ends[:-1][zones[1:] != zones[:-1]] = number
        wanted = is_new[starts]
        wanted[np.isin(starts, fresh)] = False
        margins, ranges = MARGIN * objects.rows.sizes, (starts[wanted], ends[wanted], zones[wanted])
        appeared, inside = self._inside[fresh].nonzero()
        places, frames = objects.rows.places, objects.lives.frames
        for row, zone in (
            *self._zone_watch.first_far(objects.points, margins, *ranges),
            *zip(fresh[appeared].tolist(), inside.tolist(), strict=True),
        ):
            yield _Change(frames[row], _PASSED, int(places[row]), zone, row)

    def _await_dwellers(self, continued: IndexArray) -> None:
        """Add the changes for stays that started before the latest `load` and reach the zone's `dwell_s`."""
        table, rows = self._objects.table, self._recorded.rows
        for row in continued.tolist():
            at = int(table.ids.searchsorted(rows.track_ids[row]))
            for zone in (table["dwells_s"][at] < math.inf).nonzero()[0].tolist():
                self._await_dweller(row, at, zone)

    def _await_dweller(self, row: int, at: int, zone: int) -> None:
        """Add the first detection from `row` on in which an object's stay in a zone reaches `dwell_s`, if any."""
        objects = self._recorded
        due = objects.row_at(row, float(self._objects.table["dwells_s"][at, zone]))
        if due < objects.lives.ends[objects.lives.of_row[row]]:
            change = _Change(objects.lives.frames[due], _DWELLS, int(objects.rows.track_ids[row]), zone, due)
            heappush(self._changes, change)

    def _await_pauses(self) -> None:
        """Add the first frame after each long pause, because the observation of crowding starts again there."""
        times = self._recorded.times
        for frame, (step_s, memory_s) in enumerate(zip(times.steps_s, times.memory_s(self._forget_s), strict=True)):
            if step_s > memory_s:
                self.add_frame(frame)

    def _await_crowds(self, frame: int) -> None:
        """Add the next frame after `frame` in which crowding can start or end, if there is one."""
        due_s, now_s = self._crowds.due_s(), self._recorded.now_s
        if due_s < math.inf:
            due = max(frame + 1, bisect_left(now_s, due_s - _ROUNDING_S))
            if due < len(now_s):
                heappush(self._frames, due)

    # --- events -------------------------------------------------------------------------------------------------------

    def _apply(self, change: _Change, at_ns: int) -> Iterator[Event]:
        """Yield the events of a change, and update the state of the object in zones."""
        frame, kind, _, shape, row, direction = change
        objects, table, now_s = self._recorded, self._objects.table, self._objects.clock.now_s
        at = objects.look_at(row, frame - 1 if kind == _LOST else frame)
        if kind == _LOST:
            for _, line, towards in self._lost.get(row, ()):
                yield self._crossed(Crossing(at, line, towards), at_ns)
            for zone in table["inside"][at].nonzero()[0].tolist():
                yield from self._left(at, zone, "lost", float(objects.now_s[objects.rows.frames[row]]), at_ns)
        elif kind == _CROSSED:
            yield self._crossed(Crossing(at, shape, direction), at_ns)
        elif kind == _DWELLS:
            if table["dwells_s"][at, shape] <= now_s:
                self._zone_watch.dwell(table, at, shape)
                yield self._dwells(at, shape, now_s, at_ns)
        elif self._inside[row, shape] and not table["inside"][at, shape]:
            yield self._entered(at, shape, "appeared" if row in self._fresh else "crossed", at_ns)
            self._await_dweller(row, at, shape)
        elif not self._inside[row, shape] and table["inside"][at, shape]:
            yield from self._left(at, shape, "crossed", now_s, at_ns)
