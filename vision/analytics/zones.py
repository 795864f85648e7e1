"""`ZoneWatch`: which objects are in which zones, and for how long.

An object enters or leaves when its anchor is a margin beyond the border. It also enters by appearing inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from vision.analytics.geometry import BoolArray, ZoneSet, pairs
from vision.analytics.lines import class_rows
from vision.analytics.track_snapshot import TrackSnapshot
from vision.analytics.track_table import TrackColumn, TrackTable
from vision.config.analytics import ZoneConfig

_CLOCK_GRAIN_S: Final = 1e-3  # capture times are no more exact than this


class Passage(NamedTuple):
    """Passage of one object over the border of one zone."""

    row: int  # in the track table
    zone: int
    is_inside: bool
    appeared: bool


class ZoneWatch:
    """The zones of one camera. The state of each object is in the `columns` of the camera's `TrackTable`."""

    def __init__(self, zones: Sequence[ZoneConfig], anchors: Sequence[str], allowed: BoolArray | None) -> None:
        """
        Args:
            anchors: names of the columns of `TrackSnapshot.points`.
            allowed: (C + 1, Z) True where objects of a class count; None: all do.
        """
        number = len(zones)
        self.columns: Mapping[str, TrackColumn] = {
            "inside": TrackColumn(np.bool_, (number,)),
            "entered_s": TrackColumn(np.float64, (number,)),
            "dwells_s": TrackColumn(
                np.float64, (number,), math.inf
            ),  # time at which it will have been inside for `dwell_s`
            "dwelling": TrackColumn(np.bool_, (number,)),
        }
        places = [anchors.index(zone.anchor) for zone in zones]
        # Columns of the zones' anchors; an anchor that all zones share is taken once.
        self._places = slice(places[0], places[0] + 1) if len(set(places)) == 1 else np.array(places, np.intp)
        self._dwell_s = [zone.dwell_s or math.inf for zone in zones]
        self._allowed = allowed
        self._next_dwell_s = math.inf  # no object reaches its `dwell_s` before this

    def place(self, polygons: Sequence[Sequence[tuple[float, float]]]) -> None:
        """Set the pixels of the corners of each zone."""
        self._set = ZoneSet(polygons)
        self._next_dwell_s = math.inf

    def look(self, memory: TrackTable, seen: TrackSnapshot) -> list[Passage]:
        """Return the passages in this frame, by object and then by zone. `enter` and `leave` store them."""
        points = seen.points[:, self._places]
        inside = self._set.contain(points)
        if self._allowed is not None:
            inside &= self._allowed[class_rows(self._allowed, memory["class_id"][seen.rows])]
        changed = inside != memory["inside"].take(seen.rows, axis=0)
        if not changed.any():
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

    def enter(self, memory: TrackTable, row: int, zone: int, now_s: float) -> None:
        memory["inside"][row, zone] = True
        memory["entered_s"][row, zone] = now_s
        dwells_s = now_s + self._dwell_s[zone] - _CLOCK_GRAIN_S
        memory["dwells_s"][row, zone] = dwells_s
        self._next_dwell_s = min(self._next_dwell_s, dwells_s)

    def leave(self, memory: TrackTable, row: int, zone: int) -> None:
        memory["inside"][row, zone] = memory["dwelling"][row, zone] = False
        memory["dwells_s"][row, zone] = math.inf

    def dwellers(self, memory: TrackTable, now_s: float) -> list[tuple[int, int]]:
        """Return row and zone of each object that has now been in a zone for its `dwell_s`.

        An object that is hidden at that time is returned when it is detected again.
        """
        if now_s < self._next_dwell_s:
            return []
        rows, zones = pairs(memory["dwells_s"] <= now_s)
        seen = memory["seen_s"][rows] == now_s
        rows, zones = rows[seen], zones[seen]
        memory["dwelling"][rows, zones] = True
        memory["dwells_s"][rows, zones] = math.inf
        self._next_dwell_s = float(memory["dwells_s"].min(initial=math.inf))
        return list(zip(rows.tolist(), zones.tolist(), strict=True))
