"""`Analytics`: tracks of one camera become events and counts.

`LineWatch`, `ZoneWatch` and `CrowdDetector` find what happened. `Analytics` turns it into events and counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from vision.analytics.counting import ShapeCounters
from vision.analytics.crowding import CrowdDetector
from vision.analytics.frame_clock import FrameClock
from vision.analytics.geometry import BoolArray
from vision.analytics.lines import Crossing, LineWatch
from vision.analytics.motion import SAMPLES, TrackHistory, velocity
from vision.analytics.placement import BoxTransform, Placement
from vision.analytics.track_snapshot import TrackSnapshot
from vision.analytics.track_table import TrackColumn, TrackTable
from vision.analytics.zones import ZoneWatch
from vision.config.analytics import CameraAnalytics, LineConfig, ZoneConfig
from vision.state.counters import CameraCounters
from vision.types import Event, Tracks

Shape: TypeAlias = LineConfig | ZoneConfig

_MARGIN: Final = 0.1  # of the longer side of the object's box: twice the jitter of a detector's boxes
_MOVING: Final = 0.1  # object sizes per second from which a direction of travel is reported
_CLOCK_GRAIN_S: Final = 1e-3  # capture times are no more exact than this
_GROUND_ANCHOR: Final = "bottom-center"


class Analytics:
    """Lines, zones and speeds of one camera. Not thread-safe.

    Args:
        config: the lines and zones of the camera.
        camera_id: camera of the events.
        class_names: classes of the model, by class id. `config` names only classes among them.
        width_px: width of the frame that boxes refer to.
        height_px: height of the same frame.
        forget_s: seconds after which an object that is no longer detected has left; the tracker's `lost_s`.
        counters: stores the counters. None: they are kept in memory only.
    """

    def __init__(
        self,
        config: CameraAnalytics,
        camera_id: str,
        class_names: Sequence[str],
        width_px: int,
        height_px: int,
        *,
        forget_s: float = 1.5,
        counters: CameraCounters | None = None,
    ) -> None:
        self._config = config
        self._camera_id = camera_id
        self._class_names = tuple(class_names)
        self._forget_s = forget_s
        self._lines, self._zones = config.lines, config.zones
        shapes: tuple[Shape, ...] = (*config.lines, *config.zones)
        self._anchors = [_GROUND_ANCHOR, *sorted({shape.anchor for shape in shapes} - {_GROUND_ANCHOR})]
        self._line_watch = LineWatch(self._lines, self._anchors, _allowed(self._lines, self._class_names))
        self._zone_watch = ZoneWatch(self._zones, self._anchors, _allowed(self._zones, self._class_names))
        self._counters = ShapeCounters(config, counters)
        self._begin(width_px, height_px)

    # --- the interface ------------------------------------------------------------------------------------------------

    def update(self, tracks: Tracks, captured_ns: int) -> tuple[Event, ...]:
        """Take one frame's tracks. Return the events, in the order of the configuration."""
        step_s = self._time.advance(captured_ns)
        now_s, memory_s = self._time.now_s, self._time.memory_s(self._forget_s)
        events: list[Event] = []
        if self._oldest_s < now_s - memory_s - _CLOCK_GRAIN_S:
            events += self._forget(captured_ns, now_s - memory_s)
        if len(tracks):
            seen = self._see(tracks)
            if self._lines:
                for crossing in self._line_watch.look(self._memory, seen):
                    events.append(self._crossed(crossing, captured_ns))
            if self._zones:
                events += self._visit(seen, captured_ns)
            self._memory["points"][seen.rows] = seen.points
        for zone, data in self._crowds.update(now_s, unobserved=step_s > memory_s):
            events.append(self._event("crowded", self._zones[zone], None, captured_ns, data))
        self._counters.flush()
        return tuple(events)

    def restart(self, width_px: int, height_px: int, at_ns: int) -> tuple[Event, ...]:
        """Begin a new epoch, possibly with another frame size. Return the ends of all states. Counters continue."""
        events = [*self._forget(at_ns, math.inf)]
        for zone, data in self._crowds.end(self._time.now_s):
            events.append(self._event("crowded", self._zones[zone], None, at_ns, data))
        self._counters.flush()
        self._begin(width_px, height_px)
        return tuple(events)

    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Return ``in`` and ``out``, or ``entered`` and ``left``, by line or zone: in total and by class."""
        return self._counters.snapshot()

    def occupancy(self) -> Mapping[str, int]:
        """Return the number of objects in each zone, including those that were lost less than `forget_s` ago."""
        return {zone.name: inside for zone, inside in zip(self._zones, self._crowds.occupants, strict=True)}

    @property
    def frame_size(self) -> tuple[int, int]:
        """Width and height of the frame in pixels."""
        return self._placement.width_px, self._placement.height_px

    @property
    def outside(self) -> tuple[str, ...]:
        """Names of lines and zones with no part in the frame."""
        return self._placement.outside

    def motion_of(self, track_id: int) -> tuple[float, float]:
        """Return an object's speed in km/h and its direction of travel in degrees; NaN if unknown.

        Directions are those of the frame: 0 up, 90 right, 180 down, 270 left. Speeds need a `ground` section.
        """
        row = int(np.searchsorted(self._memory.ids, track_id))
        if row == len(self._memory) or self._memory.ids[row] != track_id:
            return math.nan, math.nan
        return self._motion(row)

    def __len__(self) -> int:
        """Return the number of objects in memory."""
        return len(self._memory)

    # --- an epoch -----------------------------------------------------------------------------------------------------

    def _begin(self, width_px: int, height_px: int) -> None:
        self._placement = Placement.on(self._config, width_px, height_px)
        self._boxes = BoxTransform(self._anchors, self._line_watch.place(self._placement.lines))
        self._zone_watch.place(self._placement.zones)
        columns = {
            "class_id": TrackColumn(np.int32),
            "seen_s": TrackColumn(np.float64),
            "size": TrackColumn(np.float64),
            "points": TrackColumn(np.complex128, (len(self._anchors),)),
            "trail": TrackColumn(np.complex128, (SAMPLES,), math.nan),
        }
        self._memory = TrackTable({**columns, **self._line_watch.columns, **self._zone_watch.columns})
        self._time = FrameClock()
        self._trails = TrackHistory()
        self._crowds = CrowdDetector(self._zones)
        self._oldest_s = math.inf  # no object was last seen before this

    # --- objects ------------------------------------------------------------------------------------------------------

    def _see(self, tracks: Tracks) -> TrackSnapshot:
        """Store the present state of each object. `points` keeps the last state until lines and zones have used it."""
        memory, now_s, end = self._memory, self._time.now_s, len(self._anchors)
        rows, fresh = memory.rows_of(tracks.track_ids)
        if fresh is not None:
            self._oldest_s = min(self._oldest_s, now_s)
        columns = self._boxes.apply(tracks.boxes_xyxy.astype(np.float64))
        points = columns.view(np.complex128)[:, :end]
        size = np.maximum(columns[:, 2 * end], columns[:, 2 * end + 1])
        memory["seen_s"][rows] = now_s
        memory["size"][rows] = size
        memory["class_id"][rows] = tracks.class_ids
        self._trails.observe(now_s, rows, points[:, 0], memory["trail"])
        return TrackSnapshot(now_s, rows, fresh, points, columns[:, 2 * end + 2 :], _MARGIN * size)

    def _forget(self, at_ns: int, before_s: float) -> Iterator[Event]:
        """Forget objects last seen before `before_s`. Yield their exits from every zone they were in."""
        memory = self._memory
        seen_s = memory["seen_s"]
        kept = seen_s >= before_s - _CLOCK_GRAIN_S
        for row in (~kept).nonzero()[0].tolist():
            if self._lines:
                for crossing in self._line_watch.lost(memory, row):
                    yield self._crossed(crossing, at_ns)
            for zone in memory["inside"][row].nonzero()[0].tolist():
                yield from self._left(row, zone, "lost", float(seen_s[row]), at_ns)
        self._oldest_s = float(seen_s[kept].min(initial=math.inf))
        if not kept.all():
            memory.keep(kept)

    # --- data of an object ------------------------------------------------------------------------------------

    def _motion(self, row: int) -> tuple[float, float]:
        """Return speed in km/h and direction in degrees; NaN if unknown."""
        times_s, points = self._trails.of(self._time.now_s, self._memory["trail"][row])
        speed_kmh = heading_deg = math.nan
        moves = velocity(times_s, points)
        if moves is None:
            return speed_kmh, heading_deg
        if abs(moves) >= _MOVING * self._memory["size"][row]:
            heading_deg = math.degrees(math.atan2(moves.real, -moves.imag)) % 360.0
        if (ground := self._placement.ground) is not None:
            places = [complex(*ground.to_metres(point.real, point.imag)) for point in points]
            visible = [at for at, place in enumerate(places) if not math.isnan(place.real)]
            on_ground = velocity([times_s[at] for at in visible], [places[at] for at in visible])
            speed_kmh = math.nan if on_ground is None else 3.6 * abs(on_ground)
        return speed_kmh, heading_deg

    def _about(self, row: int) -> dict[str, Any]:
        """Return the data that every event of an object carries."""
        class_id = int(self._memory["class_id"][row])
        about: dict[str, Any] = {"class": self._class_name(class_id), "class_id": class_id}
        speed_kmh, heading_deg = self._motion(row)
        if not math.isnan(speed_kmh):
            about["speed_kmh"] = round(speed_kmh, 1)
        if not math.isnan(heading_deg):
            about["heading_deg"] = round(heading_deg) % 360
        return about

    def _class_name(self, class_id: int) -> str:
        return self._class_names[class_id] if 0 <= class_id < len(self._class_names) else str(class_id)

    # --- events -------------------------------------------------------------------------------------------------------

    def _crossed(self, crossing: Crossing, at_ns: int) -> Event:
        row, line, direction = crossing
        about = self._about(row)
        counts = self._counters.add(self._lines[line].name, direction, about["class"])
        data = {
            "phase": "instant",
            "direction": direction,
            **about,
            "total_in": counts["in"],
            "total_out": counts["out"],
        }
        return self._event("line_crossed", self._lines[line], row, at_ns, data)

    def _entered(self, row: int, zone: int, how: str, at_ns: int) -> Event:
        self._zone_watch.enter(self._memory, row, zone, self._time.now_s)
        self._crowds.occupants[zone] += 1
        about = self._about(row)
        self._counters.add(self._zones[zone].name, "entered", about["class"])
        data = {"phase": "instant", "how": how, **about, "occupancy": self._crowds.occupants[zone]}
        return self._event("zone_entered", self._zones[zone], row, at_ns, data)

    def _left(self, row: int, zone: int, how: str, until_s: float, at_ns: int) -> Iterator[Event]:
        memory, shape = self._memory, self._zones[zone]
        stayed_s = round(until_s - float(memory["entered_s"][row, zone]), 2)
        about = self._about(row)
        if memory["dwelling"][row, zone]:
            yield self._event("dwelling", shape, row, at_ns, {"phase": "end", **about, "stayed_s": stayed_s})
        self._zone_watch.leave(memory, row, zone)
        self._crowds.occupants[zone] -= 1
        self._counters.add(shape.name, "left", about["class"])
        data = {
            "phase": "instant",
            "how": how,
            **about,
            "stayed_s": stayed_s,
            "occupancy": self._crowds.occupants[zone],
        }
        yield self._event("zone_left", shape, row, at_ns, data)

    def _visit(self, seen: TrackSnapshot, at_ns: int) -> Iterator[Event]:
        now_s = self._time.now_s
        for row, zone, is_inside, appeared in self._zone_watch.look(self._memory, seen):
            if is_inside:
                yield self._entered(row, zone, "appeared" if appeared else "crossed", at_ns)
            else:
                yield from self._left(row, zone, "crossed", now_s, at_ns)
        for row, zone in self._zone_watch.dwellers(self._memory, now_s):
            stayed_s = round(now_s - float(self._memory["entered_s"][row, zone]), 2)
            data = {"phase": "begin", **self._about(row), "stayed_s": stayed_s}
            yield self._event("dwelling", self._zones[zone], row, at_ns, data)

    # --- common -------------------------------------------------------------------------------------------------------

    def _event(self, kind: str, shape: Shape, row: int | None, at_ns: int, data: Mapping[str, Any]) -> Event:
        track_id = None if row is None else self._memory.id_of(row)
        return Event(kind, shape.name, self._camera_id, track_id, at_ns, data)


def _allowed(shapes: Sequence[Shape], class_names: Sequence[str]) -> BoolArray | None:
    """Return (C + 1, S): True where objects of a class count. The last row is for unnamed ids. None: all count."""
    allowed = np.ones((len(class_names) + 1, len(shapes)), np.bool_)
    for column, shape in enumerate(shapes):
        if shape.classes is not None:
            allowed[:-1, column] = np.isin(class_names, shape.classes)
            allowed[-1, column] = False
    return None if allowed.all() else allowed
