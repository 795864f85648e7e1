"""`ObjectAnalytics` finds the events of single objects in archived frames, many frames together.

The state of an object at lines and zones depends on no other object, and rarely changes. Therefore, `judge` finds all
detections in which the state can change. It evaluates the detections of different objects together, although they are
in different frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from vision.analytics.camera_analytics import Analytics
from vision.analytics.geometry import BoolArray, FloatArray, IndexArray
from vision.analytics.line_rounds import LineRounds
from vision.analytics.lines import Crossing
from vision.analytics.recorded_objects import RecordedObjects, RecordedTracks
from vision.analytics.tracked_objects import MARGIN
from vision.types import Event

_LOST: Final = 0
_CROSSED: Final = 1
_PASSED: Final = 2
_DWELLS: Final = 3


class ObjectEvent(NamedTuple):
    """Event of one object, without the counts of the line or zone."""

    frame: int  # from 0 in each `judge`
    kind: str  # as in `Event`
    name: str  # name of the line or zone
    track_id: int
    data: dict[str, Any]  # as in `Event`


class _Change(NamedTuple):
    """Possible change of the state of an object in a frame. Sorted changes have the order of the live events."""

    frame: int
    kind: int  # `_LOST`, `_CROSSED`, `_PASSED`, or `_DWELLS`
    order: int  # track id, or place of the object in the frame
    shape: int  # index of the line or zone
    row: int  # last detection of the object
    direction: str = ""  # of a crossing; otherwise empty


class ObjectAnalytics(Analytics):
    """Analytics that find the events of objects in archived frames, but count nothing, and find no crowds."""

    _objects_type = RecordedObjects
    _present: tuple[int, tuple[float, float]] | None = None
    """Class id and motion of the object of the present change; None while no change is applied."""

    @property
    def _recorded(self) -> RecordedObjects:
        assert isinstance(self._objects, RecordedObjects)
        return self._objects

    def judge(self, tracks: RecordedTracks) -> list[ObjectEvent]:
        """Return the events of the objects in the next frames, in the order in which `Analytics` reports them."""
        self._load(tracks)
        objects, found, frame, kind = self._recorded, list[ObjectEvent](), -1, _LOST
        changes = sorted(self._changes)
        rows = np.array([change.row for change in changes], np.intp)
        table_rows = objects.table.ids.searchsorted(objects.rows.track_ids[rows]).tolist()
        presents = zip(objects.rows.class_ids[rows].tolist(), self._motions(changes), strict=True)
        for change, at, self._present in zip(changes, table_rows, presents, strict=True):
            if change.frame != frame:
                frame = change.frame
                captured_ns = tracks.captured_ns[frame - objects.first]
                objects.seek(frame)
                self._facts.clear()
            elif kind == _LOST != change.kind:
                self._facts.clear()  # a lost object can return at once, with the same track id
            kind = change.kind
            for event in self._apply(change, at, captured_ns):
                found.append(_without_counts(event, frame - objects.first))
        self._present = None
        objects.finish()
        self._line_watch.forget_absent(objects.clock.now_s)
        return found

    def _motions(self, changes: Sequence[_Change]) -> list[tuple[float, float]]:
        """Return, for each change, the speed in km/h and the direction in degrees of its object, or NaN if unknown."""
        values = [(change.row, change.frame, change.frame - (change.kind == _LOST)) for change in changes]
        return self._recorded.motions(*np.array(values, np.intp).reshape(-1, 3).T)

    def end_epoch(self, frame_size_px: tuple[int, int], at_ns: int) -> list[ObjectEvent]:
        """Start a new epoch at `at_ns`. Return the events that end the previous epoch, in the order of track ids."""
        return [_without_counts(event, 0) for event in self.restart(*frame_size_px, at_ns)]

    def _load(self, tracks: RecordedTracks) -> None:
        """Add the next frames, and find the detections in which the state of an object at a line or zone can change."""
        objects = self._recorded
        objects.load(tracks, self._forget_s)
        fresh, continued = objects.new_rows()
        self._fresh = frozenset(fresh.tolist())
        self._lost: dict[int, list[Crossing]] = {}  # crossings of lost objects, by their last row
        lives = objects.lives
        (gone,) = ((lives.gone >= objects.first) & (lives.gone < len(objects.now_s))).nonzero()
        track_ids = objects.rows.track_ids[lives.starts[gone]].tolist()
        values = lives.gone[gone].tolist(), repeat(_LOST), track_ids, repeat(0), (lives.ends[gone] - 1).tolist()
        self._changes = [*map(_Change, *values)]
        if self._config.lines:
            self._changes += self._crossings(fresh)
        if self._config.zones:
            self._changes += self._passages(fresh, continued)
            self._changes += self._stays_of(continued)

    def _count_crossing(self, name: str, direction: str, class_name: str) -> Mapping[str, int]:  # noqa: ARG002
        return {}

    def _count_passage(
        self,
        zone: int,  # noqa: ARG002
        key: Literal["entered", "left"],  # noqa: ARG002
        class_name: str,  # noqa: ARG002
    ) -> Mapping[str, int]:
        return {}

    # --- finding changes ----------------------------------------------------------------------------------------------

    def _crossings(self, fresh: IndexArray) -> Iterator[_Change]:
        rows = self._recorded.rows
        for row, line, direction, is_lost in LineRounds(self._recorded, self._line_watch, fresh).run():
            if is_lost:
                self._lost.setdefault(row, []).append(Crossing(-1, line, direction))
            else:
                yield _Change(int(rows.frames[row]), _CROSSED, int(rows.places[row]), line, row, direction)

    def _passages(self, fresh: IndexArray, continued: IndexArray) -> Iterator[_Change]:
        """Yield the detections in which an object can enter or leave a zone, or reach the zone's `dwell_s`.

        An object can enter or leave only in two kinds of detections:

        * the detection in which the object appears
        * the first detection far from the border after each time that the object crosses the border
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
        passed = [
            *self._zone_watch.first_far(objects.points, margins, *ranges),
            *zip(fresh[appeared].tolist(), inside.tolist(), strict=True),
        ]
        rows, zones = np.array(passed, np.intp).reshape(-1, 2).T
        values = objects.rows.frames[rows].tolist(), repeat(_PASSED), objects.rows.places[rows].tolist()
        yield from map(_Change, *values, zones.tolist(), rows.tolist())
        entered = self._inside[rows, zones]
        times_s = objects.now_s[objects.rows.frames[rows[entered]]].tolist()
        due_s = [*map(self._zone_watch.dwells_s, zones[entered].tolist(), times_s)]
        yield from self._dwellers(rows[entered], zones[entered], np.array(due_s, np.float64))

    def _stays_of(self, continued: IndexArray) -> Iterator[_Change]:
        """Yield the detections at which a stay that started before the latest `load` can reach the zone's `dwell_s`."""
        due_s = self._objects.table["dwells_s"][
            self._objects.table.ids.searchsorted(self._recorded.rows.track_ids[continued])
        ]
        at, zones = (due_s < math.inf).nonzero()
        return self._dwellers(continued[at], zones, due_s[at, zones])

    def _dwellers(self, rows: IndexArray, zones: IndexArray, due_s: FloatArray) -> Iterator[_Change]:
        """Yield, for each of M stays, the first detection in which the object can have been in the zone for `dwell_s`.

        Args:
            rows: row (M,) from which each search starts.
            zones: zone (M,) of each stay.
            due_s: time (M,) in seconds at which each stay reaches the zone's `dwell_s`.
        """
        objects, lives = self._recorded, self._recorded.lives
        of_row = lives.of_row[rows]
        due = np.maximum(rows, objects.rows_at(of_row, objects.now_s.searchsorted(due_s)))
        is_seen = due < lives.ends[of_row]
        due, zones = due[is_seen], zones[is_seen]
        values = objects.rows.frames[due].tolist(), repeat(_DWELLS), objects.rows.track_ids[due].tolist()
        return map(_Change, *values, zones.tolist(), due.tolist())

    # --- events -------------------------------------------------------------------------------------------------------

    def _apply(self, change: _Change, at: int, at_ns: int) -> Iterator[Event]:
        """Yield the events of a possible change, and update the object's state in zones.

        `at` is the row of the object in the track table.
        """
        _, kind, _, shape, row, direction = change
        objects, table, now_s = self._recorded, self._objects.table, self._objects.clock.now_s
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
        elif not self._inside[row, shape] and table["inside"][at, shape]:
            yield from self._left(at, shape, "crossed", now_s, at_ns)

    def _about(self, row: int) -> dict[str, Any]:
        if self._present is None:
            return super()._about(row)
        about = self._facts.get(row)
        if about is None:
            about = self._facts[row] = self._description(*self._present)
        return about


def _without_counts(event: Event, frame: int) -> ObjectEvent:
    assert event.track_id is not None and isinstance(event.data, dict)
    return ObjectEvent(frame, event.kind, event.name, event.track_id, event.data)
