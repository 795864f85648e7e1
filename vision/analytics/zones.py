"""`ZoneWatch` detects when objects enter, leave, and stay in zones. `CrowdDetector` detects when zones are crowded.

An object enters or leaves a zone when its anchor is beyond the border by a margin. An object that appears inside a zone
also enters the zone.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy import count_nonzero  # several times faster than any() on small arrays
from numpy.typing import NDArray

from vision.analytics.frame_clock import CLOCK_GRAIN_S
from vision.analytics.geometry import BoolArray, Corners, FloatArray, IndexArray, Points, ZoneSet, pairs
from vision.analytics.lines import ClassFilter
from vision.analytics.tracked_objects import TrackColumn, TrackSnapshot, TrackTable
from vision.config.analytics import ZoneConfig


class Passage(NamedTuple):
    """Passage of one object into or out of one zone."""

    row: int  # row of the object in the track table
    zone: int  # index of the zone
    is_inside: bool  # True if the object is inside the zone after the passage
    appeared: bool  # True if the object is new, so it did not cross the border


class ZoneWatch:
    """Detector of entries, exits, and long stays in zones. `columns` defines the state that a `TrackTable` stores."""

    def __init__(self, zones: Sequence[ZoneConfig], anchors: Sequence[str], class_names: Sequence[str]) -> None:
        number = len(zones)
        self.columns: Mapping[str, TrackColumn] = {
            "inside": TrackColumn(np.bool_, (number,)),
            "entered_s": TrackColumn(np.float64, (number,)),
            # When the object will have been inside for `dwell_s`; infinite if no long stay will be reported.
            "dwells_s": TrackColumn(np.float64, (number,), math.inf),
            "dwelling": TrackColumn(np.bool_, (number,)),
        }
        places = [anchors.index(zone.anchor) for zone in zones]
        # Columns of the zones' anchors in `TrackSnapshot.points`: only one column if all zones share an anchor.
        self._places = slice(places[0], places[0] + 1) if len(set(places)) == 1 else np.array(places, np.intp)
        self._dwell_s = [zone.dwell_s or math.inf for zone in zones]
        self._classes = ClassFilter(zones, class_names)
        self._next_dwell_s = math.inf  # no object reaches its `dwell_s` before this time

    def place(self, zones: Sequence[Sequence[Corners]], frame_size_px: tuple[int, int]) -> None:
        """Set the outline and the holes of each zone, in pixels of a frame of this size."""
        self._set = ZoneSet(zones, frame_size_px)
        self._next_dwell_s = math.inf

    @staticmethod
    def places(kept: IndexArray) -> dict[str, IndexArray]:
        """Return the argument `places` of `TrackTable.adopt`, which moves the state of each zone to its new column.

        `kept` is the index of each zone in the previous configuration, or -1 if the zone is new or has moved.
        """
        return dict.fromkeys(("inside", "entered_s", "dwells_s", "dwelling"), kept)

    def adopt(self, table: TrackTable, kept: IndexArray) -> list[tuple[int, int]]:
        """Continue the stays of the objects in `table`. Call this after `TrackTable.adopt`.

        Return the row and the zone of each object in a new or changed zone, for which `kept` is -1.
        """
        stays = table["inside"] & ~table["dwelling"]
        due_s = table["entered_s"] + (np.array(self._dwell_s) - CLOCK_GRAIN_S)
        table["dwells_s"] = np.where(stays, due_s, math.inf)
        self._next_dwell_s = float(table["dwells_s"].min(initial=math.inf))
        inside = self._set.contain(table["points"][:, self._places])
        allowed = self._classes.allowed(table["class_id"], np.arange(len(inside)))
        if allowed is not None:
            inside &= allowed
        rows, zones = (inside & (kept < 0)).nonzero()
        return list(zip(rows.tolist(), zones.tolist(), strict=True))

    def look(self, table: TrackTable, seen: TrackSnapshot) -> list[Passage]:
        """Return the passages in this frame, ordered by object and then by zone.

        The caller must call `enter` or `leave` for each passage.
        """
        points = seen.points[:, self._places]
        inside = self.inside(seen.points, table["class_id"], seen.rows)
        changed = inside != table["inside"].take(seen.rows, axis=0)
        if not count_nonzero(changed):
            return []
        objects, zones = pairs(changed)
        of_anchor = points[objects, zones if points.shape[1] > 1 else 0]
        far = self._set.distances_to_border(of_anchor, zones) > seen.margin[objects]
        if seen.fresh is not None:
            far |= seen.fresh[objects]
        passages = []
        for at, zone in zip(objects[far].tolist(), zones[far].tolist(), strict=True):
            appeared = seen.fresh is not None and bool(seen.fresh[at])
            passages.append(Passage(int(seen.rows[at]), zone, bool(inside[at, zone]), appeared))
        return passages

    def inside(self, points: Points, class_ids: NDArray[np.int32], rows: IndexArray) -> BoolArray:
        """Return a mask (M, Z) that is True if the object is inside the zone and the zone counts its class.

        Args:
            points: positions (M, A) of the anchors.
            class_ids: class ids of all objects.
            rows: rows (M,) of the objects in `class_ids`.
        """
        inside = self._set.contain(points[:, self._places])
        allowed = self._classes.allowed(class_ids, rows)
        if allowed is not None:
            inside &= allowed
        return inside

    def first_far(
        self, points: Points, margins: FloatArray, starts: IndexArray, ends: IndexArray, zones: IndexArray
    ) -> list[tuple[int, int]]:
        """Return, for each range of rows, the first row in which the object is far from the border, and the zone.

        Far means farther than the margin of the row. The result omits ranges without such a row.

        Args:
            points: positions (N, A) of the anchors, by row.
            margins: margins (N,) in pixels, by row.
            starts: first row (R,) of each range.
            ends: row (R,) after the last row of each range.
            zones: zone (R,) of each range.
        """
        found: list[tuple[int, int]] = []
        width = 4
        places = points[:, self._places]
        while len(starts):
            rows = starts[:, None] + np.arange(width)
            known = rows < ends[:, None]
            rows, of = rows[known], np.repeat(zones, width).reshape(-1, width)[known]
            is_far = np.zeros(known.shape, np.bool_)
            distances = self._set.distances_to_border(places[rows, of if places.shape[1] > 1 else 0], of)
            is_far[known] = distances > margins[rows]
            has_far = is_far.any(axis=1)
            first = starts[has_far] + is_far[has_far].argmax(axis=1)
            found += zip(first.tolist(), zones[has_far].tolist(), strict=True)
            left = ~has_far & (starts + width < ends)
            starts, ends, zones, width = starts[left] + width, ends[left], zones[left], min(2 * width, 256)
        return found

    def enter(self, table: TrackTable, row: int, zone: int, now_s: float) -> None:
        """Record that an object has entered a zone at `now_s`."""
        table["inside"][row, zone] = True
        table["entered_s"][row, zone] = now_s
        dwells_s = self.dwells_s(zone, now_s)
        table["dwells_s"][row, zone] = dwells_s
        self._next_dwell_s = min(self._next_dwell_s, dwells_s)

    def dwells_s(self, zone: int, entered_s: float) -> float:
        """Return the time in seconds at which a stay that starts at `entered_s` reaches the zone's `dwell_s`."""
        return entered_s + self._dwell_s[zone] - CLOCK_GRAIN_S

    def leave(self, table: TrackTable, row: int, zone: int) -> None:
        """Record that an object has left a zone."""
        table["inside"][row, zone] = table["dwelling"][row, zone] = False
        table["dwells_s"][row, zone] = math.inf

    def dwell(self, table: TrackTable, row: int, zone: int) -> None:
        """Record that an object has been in a zone for the zone's `dwell_s`."""
        table["dwelling"][row, zone] = True
        table["dwells_s"][row, zone] = math.inf

    def dwellers(self, table: TrackTable, now_s: float) -> list[tuple[int, int]]:
        """Return the row and the zone of each object that has been in a zone for the zone's `dwell_s` at `now_s`.

        Return each stay only once. If an object is not detected, return its stay when the object is detected again.
        """
        if now_s < self._next_dwell_s:
            return []
        rows, zones = pairs(table["dwells_s"] <= now_s)
        seen = table["seen_s"][rows] == now_s
        rows, zones = rows[seen], zones[seen]
        table["dwelling"][rows, zones] = True
        table["dwells_s"][rows, zones] = math.inf
        self._next_dwell_s = float(table["dwells_s"].min(initial=math.inf))
        return list(zip(rows.tolist(), zones.tolist(), strict=True))


@dataclass(slots=True)
class _Crowd:
    """Crowding of one zone that has a `crowd_threshold`."""

    above: int  # the threshold
    for_s: float  # time in seconds for which the occupancy must contradict `is_crowded` before `is_crowded` changes
    is_crowded: bool = False
    change_since_s: float | None = None  # when the occupancy began to contradict `is_crowded`; None if it does not
    from_s: float = 0.0  # start of the crowding
    most: int = 0  # maximum number of objects since `from_s`


class CrowdDetector:
    """Detector of the start and the end of crowding in each zone. A change must last for `crowded_for_s`."""

    def __init__(self, zones: Sequence[ZoneConfig]) -> None:
        self.occupants = [0] * len(zones)  # number of objects in each zone
        self._crowds = {
            zone: _Crowd(config.crowd_threshold, config.crowded_for_s)
            for zone, config in enumerate(zones)
            if config.crowd_threshold is not None
        }

    def adopt(self, earlier: CrowdDetector, kept: IndexArray) -> None:
        """Continue with the occupancy and the crowding of the zones that the detector `earlier` observed.

        `kept` contains, for each zone, its index in `earlier`, or -1 if the zone is new.
        """
        for zone, before in enumerate(kept.tolist()):
            if before < 0:
                continue
            self.occupants[zone] = earlier.occupants[before]
            crowd, old = self._crowds.get(zone), earlier._crowds.get(before)
            if crowd is not None and old is not None:
                self._crowds[zone] = replace(old, above=crowd.above, for_s=crowd.for_s)

    def update(self, now_s: float, *, unobserved: bool) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Update the crowding of each zone. Yield the index of the zone and the data of each event.

        `unobserved` is True after a long gap without frames. After such a gap, the measurement of `crowded_for_s`
        restarts.
        """
        for zone, crowd in self._crowds.items():
            occupants = self.occupants[zone]
            if crowd.is_crowded:
                crowd.most = max(crowd.most, occupants)
            if (occupants > crowd.above) is crowd.is_crowded:
                crowd.change_since_s = None
                continue
            if unobserved or crowd.change_since_s is None:
                crowd.change_since_s = now_s
            if now_s - crowd.change_since_s < crowd.for_s - CLOCK_GRAIN_S:
                continue
            if crowd.is_crowded:
                yield zone, self._end(zone, crowd, now_s)
            else:
                crowd.is_crowded, crowd.from_s, crowd.most = True, crowd.change_since_s, occupants
                yield zone, {"phase": "begin", "occupancy": occupants, "above": crowd.above}
            crowd.change_since_s = None

    def due_s(self) -> float:
        """Return the earliest time in seconds at which crowding can start or end without a change of the occupancy.

        The time is infinite if no such change is pending.
        """
        pending = [
            crowd.change_since_s + crowd.for_s - CLOCK_GRAIN_S
            for crowd in self._crowds.values()
            if crowd.change_since_s is not None
        ]
        return min(pending, default=math.inf)

    def end(self, now_s: float, zones: Container[int] | None = None) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """End the crowding in `zones`, or in every zone if `zones` is None.

        Yield the index of the zone and the data of each event.
        """
        for zone, crowd in self._crowds.items():
            if crowd.is_crowded and (zones is None or zone in zones):
                yield zone, self._end(zone, crowd, now_s)

    def _end(self, zone: int, crowd: _Crowd, now_s: float) -> Mapping[str, Any]:
        crowd.is_crowded = False
        return {
            "phase": "end",
            "occupancy": self.occupants[zone],
            "above": crowd.above,
            "most": crowd.most,
            "lasted_s": round(now_s - crowd.from_s, 3),
        }
