"""Tracks become events: `Analytics`, one per camera.

What happened is found by `LineWatch`, `ZoneWatch` and `CrowdDetector`; here it becomes events and counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from vision.analytics.crowding import CrowdDetector
from vision.analytics.frame_clock import FrameClock
from vision.analytics.geometry import BoolArray, FloatArray, GroundPlane, places_of_anchors
from vision.analytics.lines import Crossing, LineWatch
from vision.analytics.motion import SAMPLES, TrackHistory, velocity
from vision.analytics.track_snapshot import TrackSnapshot
from vision.analytics.track_table import TrackColumn, TrackTable
from vision.analytics.zones import ZoneWatch
from vision.config.analytics import CameraAnalytics, LineConfig, ZoneConfig, pixels_per_unit
from vision.config.wording import did_you_mean_class
from vision.errors import ConfigError
from vision.state.counters import CounterJournal
from vision.types import Event, Tracks

Shape: TypeAlias = LineConfig | ZoneConfig
Counts: TypeAlias = dict[str, int]

_MARGIN: Final = 0.1  # of the longer side of the object's box: twice what a detector's boxes jitter by
_MOVING: Final = 0.1  # object sizes per second from which a direction of travel is said
_CLOCK_GRAIN_S: Final = 1e-3  # capture times are no more exact than this
_GROUND_ANCHOR: Final = "bottom-center"


class Analytics:
    """Lines, zones and speeds of one camera. Not thread-safe.

    Args:
        config: what to watch.
        camera_id: for the events.
        class_names: the model's, by class id.
        width_px: of the frame that boxes are in.
        height_px: of the same.
        forget_s: seconds after which an object that is no longer seen has left; the tracker's `lost_s`.
        journal: where counters live on; in memory only where None.

    Raises:
        ConfigError: a class name that the model does not have.
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
        journal: CounterJournal | None = None,
    ) -> None:
        self._config = config
        self._camera_id = camera_id
        self._class_names = tuple(class_names)
        self._forget_s = forget_s
        self._journal = journal
        self._lines, self._zones = config.lines, config.zones
        shapes: tuple[Shape, ...] = (*self._lines, *self._zones)
        anchors = sorted({_GROUND_ANCHOR, *(shape.anchor for shape in shapes)})
        self._line_watch = LineWatch(self._lines, anchors, _allowed(self._lines, self._class_names))
        self._zone_watch = ZoneWatch(self._zones, anchors, _allowed(self._zones, self._class_names))
        self._anchors, self._foot = anchors, anchors.index(_GROUND_ANCHOR)
        self._counts = self._counts_at_start()
        self.width_px = self.height_px = 0
        self._place(width_px, height_px)
        self._begin()

    # --- what the runtime calls ---------------------------------------------------------------------------------------

    def update(self, tracks: Tracks, captured_ns: int) -> tuple[Event, ...]:
        """Take one frame's tracks; returns what happened, in the order of the configuration."""
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
        if self._journal is not None:
            self._journal.flush()
        return tuple(events)

    def restart(self, width_px: int, height_px: int, at_ns: int) -> tuple[Event, ...]:
        """Begin a new epoch, perhaps with another frame size: whatever lasts ends. Counters go on."""
        events = [*self._forget(at_ns, math.inf)]
        for zone, data in self._crowds.end(self._time.now_s):
            events.append(self._event("crowded", self._zones[zone], None, at_ns, data))
        if self._journal is not None:
            self._journal.flush()
        self._place(width_px, height_px)
        self._begin()
        return tuple(events)

    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """By line and zone: ``in`` and ``out``, or ``entered`` and ``left``; in all and, as ``in:person``, by class."""
        return {name: dict(counts) for name, counts in self._counts.items()}

    def occupancy(self) -> Mapping[str, int]:
        """Objects in each zone now, with those that were seen there and are not yet forgotten."""
        return {zone.name: inside for zone, inside in zip(self._zones, self._crowds.occupants, strict=True)}

    def motion_of(self, track_id: int) -> tuple[float, float]:
        """Speed in km/h and direction of travel in degrees of one object; NaN where unknown.

        Directions are the frame's: 0 up, 90 right, 180 down, 270 left. Speeds need a `ground` section.
        """
        row = int(np.searchsorted(self._memory.ids, track_id))
        if row == len(self._memory) or self._memory.ids[row] != track_id:
            return math.nan, math.nan
        return self._motion(row)

    def __len__(self) -> int:
        """Objects that are remembered."""
        return len(self._memory)

    # --- parts of the constructor -------------------------------------------------------------------------------------

    def _counts_at_start(self) -> dict[str, Counts]:
        counts: dict[str, Counts] = {line.name: {"in": 0, "out": 0} for line in self._lines}
        counts |= {zone.name: {"entered": 0, "left": 0} for zone in self._zones}
        if self._journal is not None:
            for (name, key), value in self._journal.counts().items():
                if name in counts and key.partition(":")[0] in counts[name]:
                    counts[name][key] = value
        return counts

    def _place(self, width_px: int, height_px: int) -> None:
        """Lay the shapes on a frame of this size."""
        self.width_px, self.height_px = width_px, height_px
        scale_x, scale_y = pixels_per_unit(self._config.units, width_px, height_px)

        def placed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
            return [(x * scale_x, y * scale_y) for x, y in points]

        line_set = self._line_watch.place([placed(line.points) for line in self._lines])
        self._zone_watch.place([placed(zone.polygon) for zone in self._zones])
        places = places_of_anchors(self._anchors)
        distances, offset = line_set.of_places(places)
        # One product gives all that is needed of the boxes.
        size = ((-1.0, 0.0), (0.0, -1.0), (1.0, 0.0), (0.0, 1.0))
        self._of_boxes = np.concatenate([places, size, distances, distances], axis=1)
        self._offset = np.concatenate([np.zeros(places.shape[1] + 2), offset, offset])
        ground = self._config.ground
        self._ground = GroundPlane(placed(ground.points), ground.metres) if ground else None
        # Whether anything of a shape lies in the frame: configured for another resolution it never sees anything.
        shapes = [(line.name, placed(line.points)) for line in self._lines]
        shapes += [(zone.name, placed(zone.polygon)) for zone in self._zones]
        self.outside = tuple(
            name
            for name, points in shapes
            if min(x for x, _ in points) >= width_px or min(y for _, y in points) >= height_px
        )

    def _begin(self) -> None:
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
        self._oldest_s = math.inf  # nobody was last seen before this

    # --- objects ------------------------------------------------------------------------------------------------------

    def _see(self, tracks: Tracks) -> TrackSnapshot:
        """Note what everybody is like now; where everybody was is needed until lines and zones have been looked at."""
        memory, now_s, anchors = self._memory, self._time.now_s, len(self._anchors)
        rows, fresh = memory.rows_of(tracks.track_ids)
        if fresh is not None:
            self._oldest_s = min(self._oldest_s, now_s)
        of_boxes: FloatArray = tracks.boxes_xyxy.astype(np.float64) @ self._of_boxes
        of_boxes += self._offset
        points = of_boxes.view(np.complex128)[:, :anchors]
        size = np.maximum(of_boxes[:, 2 * anchors], of_boxes[:, 2 * anchors + 1])
        memory["seen_s"][rows] = now_s
        memory["size"][rows] = size
        memory["class_id"][rows] = tracks.class_ids
        self._trails.observe(now_s, rows, points[:, self._foot], memory["trail"])
        first = 2 * anchors + 2
        return TrackSnapshot(now_s, rows, fresh, points, of_boxes[:, first:], _MARGIN * size)

    def _forget(self, at_ns: int, before_s: float) -> Iterator[Event]:
        """Objects last seen before `before_s` have left every zone they were in."""
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

    # --- what is said of an object ------------------------------------------------------------------------------------

    def _motion(self, row: int) -> tuple[float, float]:
        """Speed in km/h and direction in degrees, NaN where unknown."""
        times_s, points = self._trails.of(self._time.now_s, self._memory["trail"][row])
        speed_kmh = heading_deg = math.nan
        moves = velocity(times_s, points)
        if moves is None:
            return speed_kmh, heading_deg
        if abs(moves) >= _MOVING * self._memory["size"][row]:
            heading_deg = math.degrees(math.atan2(moves.real, -moves.imag)) % 360.0
        if self._ground is not None:
            places = [complex(*self._ground.to_metres(point.real, point.imag)) for point in points]
            known = [at for at, place in enumerate(places) if not math.isnan(place.real)]
            on_ground = velocity([times_s[at] for at in known], [places[at] for at in known])
            speed_kmh = math.nan if on_ground is None else 3.6 * abs(on_ground)
        return speed_kmh, heading_deg

    def _about(self, row: int) -> dict[str, Any]:
        """What every event of an object says about it."""
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
        counts = self._count(self._lines[line].name, direction, about["class"])
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
        self._count(self._zones[zone].name, "entered", about["class"])
        data = {"phase": "instant", "how": how, **about, "occupancy": self._crowds.occupants[zone]}
        return self._event("zone_entered", self._zones[zone], row, at_ns, data)

    def _left(self, row: int, zone: int, how: str, until_s: float, at_ns: int) -> Iterator[Event]:
        memory, shape = self._memory, self._zones[zone]
        stayed_s = round(until_s - float(memory["entered_s"][row, zone]), 3)
        about = self._about(row)
        if memory["dwelling"][row, zone]:
            yield self._event("dwelling", shape, row, at_ns, {"phase": "end", **about, "stayed_s": stayed_s})
        self._zone_watch.leave(memory, row, zone)
        self._crowds.occupants[zone] -= 1
        self._count(shape.name, "left", about["class"])
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
            stayed_s = round(now_s - float(self._memory["entered_s"][row, zone]), 3)
            data = {"phase": "begin", **self._about(row), "stayed_s": stayed_s}
            yield self._event("dwelling", self._zones[zone], row, at_ns, data)

    # --- common -------------------------------------------------------------------------------------------------------

    def _event(self, kind: str, shape: Shape, row: int | None, at_ns: int, data: Mapping[str, Any]) -> Event:
        track_id = None if row is None else self._memory.id_of(row)
        return Event(kind, shape.name, self._camera_id, track_id, at_ns, data)

    def _count(self, name: str, key: str, class_name: str) -> Counts:
        counts = self._counts[name]
        keys = (key, f"{key}:{class_name}")
        for counted in keys:
            counts[counted] = counts.get(counted, 0) + 1
        if self._journal is not None:
            self._journal.add(name, keys)
        return counts


def _allowed(shapes: Sequence[Shape], class_names: Sequence[str]) -> BoolArray | None:
    """(C + 1, S) whether objects of each class count; the last row is for ids that have no name. None: all count.

    Raises:
        ConfigError: a name that is not among `class_names`.
    """
    allowed = np.ones((len(class_names) + 1, len(shapes)), np.bool_)
    for column, shape in enumerate(shapes):
        if shape.classes is None:
            continue
        allowed[:, column] = False
        for name in shape.classes:
            if name not in class_names:
                advice = did_you_mean_class(name, class_names)
                raise ConfigError(
                    f"{shape.name}: the model has no class '{name}'", hint=advice or "`vision models` lists its classes"
                )
            allowed[class_names.index(name), column] = True
    return None if allowed.all() else allowed
