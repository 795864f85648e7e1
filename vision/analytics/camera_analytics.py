"""`Analytics` turns the tracks of one camera into events and counts.

`LineWatch`, `ZoneWatch`, and `CrowdDetector` detect crossings, passages, and crowding. `Analytics` reports these as
events.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from vision.analytics.frame_clock import CLOCK_GRAIN_S
from vision.analytics.geometry import GroundPlane, IndexArray
from vision.analytics.lines import Crossing, LineWatch
from vision.analytics.tracked_objects import TableLayout, TrackedObjects, TrackSnapshot
from vision.analytics.zones import CrowdDetector, ZoneWatch
from vision.config.analytics import CameraAnalytics, LineConfig, ZoneConfig, pixels_per_unit
from vision.state.counters import CameraCounters
from vision.types import Counts, Event, Tracks

Shape: TypeAlias = LineConfig | ZoneConfig

_GROUND_ANCHOR: Final = "bottom-center"


class Analytics:
    """Converter of one camera's tracks to the events and counts of its lines and zones. It is not thread-safe."""

    _objects_type: type[TrackedObjects] = TrackedObjects

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
        """Create the analytics of one camera, for the first epoch.

        Args:
            class_names: class names of the model, by class id. `config` must use only these names.
            width_px: width of the source frame in pixels. The boxes refer to this frame.
            height_px: height of the source frame in pixels.
            forget_s: time in seconds after which an undetected object counts as gone, which is `lost_s` of the tracker.
                If 2.5 times the usual frame interval is longer, the longer time applies.
            counters: persistent storage of the counters. If None, the counts exist in memory only.
        """
        self._camera_id = camera_id
        self._class_names = tuple(class_names)
        self._forget_s = forget_s
        self._counters = _ShapeCounters(config, counters)
        self._facts: dict[int, dict[str, Any]] = {}  # event data of objects in this frame, by row
        self._watch(config)
        self._begin(width_px, height_px)

    # --- public methods -----------------------------------------------------------------------------------------------

    def update(self, tracks: Tracks, captured_ns: int) -> tuple[Event, ...]:
        """Process the tracks of the frame captured at `captured_ns`. Return the events of this frame.

        The events of lost objects come first, then the events of lines, of zones, and of crowds.
        """
        objects, clock = self._objects, self._objects.clock
        step_s = clock.advance(captured_ns)
        now_s, memory_s = clock.now_s, clock.memory_s(self._forget_s)
        events: list[Event] = []
        self._facts.clear()
        if objects.oldest_s < now_s - memory_s - CLOCK_GRAIN_S:
            events += self._forget(captured_ns, now_s - memory_s)
        if len(tracks):
            seen = objects.see(tracks)
            if self._config.lines:
                for crossing in self._line_watch.look(objects.table, seen):
                    events.append(self._crossed(crossing, captured_ns))
            if self._config.zones:
                events += self._visit(seen, captured_ns)
            objects.table["points"][seen.rows] = seen.points
        for zone, data in self._crowds.update(now_s, unobserved=step_s > memory_s):
            events.append(self._event("crowded", self._config.zones[zone], None, captured_ns, data))
        self._counters.flush()
        return tuple(events)

    def restart(self, width_px: int, height_px: int, at_ns: int) -> tuple[Event, ...]:
        """Start a new epoch at the capture time `at_ns`, possibly with a new frame size. Keep the counters.

        Return the events that end the previous epoch: crossings, exits, and the ends of dwelling and crowding.
        """
        self._facts.clear()
        events = [*self._forget(at_ns, math.inf)]
        for zone, data in self._crowds.end(self._objects.clock.now_s):
            events.append(self._event("crowded", self._config.zones[zone], None, at_ns, data))
        self._begin(width_px, height_px)
        return tuple(events)

    def reconfigure(self, config: CameraAnalytics, forget_s: float, at_ns: int) -> tuple[Event, ...]:
        """Continue with the lines and zones of a new configuration. Unchanged lines and zones cause no event.

        A line or zone whose name is in the previous configuration keeps its counts. If a zone has changed, the objects
        in the zone leave the old zone and enter the new zone. Return the events of these exits and entries, and of the
        ends of dwelling and crowding.
        """
        self._forget_s = forget_s
        if config == self._config:
            return ()
        self._facts.clear()
        earlier, known = self._config, [anchor in self._anchors for anchor in _anchors(config)]
        lines, zones = _kept(earlier, config, "lines"), _kept(earlier, config, "zones")
        anchors = [self._anchors.index(name) if name in self._anchors else 0 for name in _anchors(config)]
        events = list(self._end_zones(config, zones, at_ns))
        objects, line_watch, crowds = self._objects, self._line_watch, self._crowds
        self._counters = _ShapeCounters(config, self._counters.stored, self._counters)
        self._watch(config)
        self._begin(*self._frame_size)
        places = {**LineWatch.places(lines, len(earlier.lines)), **ZoneWatch.places(zones), "points": np.array(anchors)}
        self._objects.adopt(objects, places)
        self._line_watch.adopt(line_watch, self._objects.table, places, known)
        self._crowds.adopt(crowds, zones)
        if config.zones:
            for row, zone in self._zone_watch.adopt(self._objects.table, zones):
                events.append(self._entered(row, zone, "appeared", at_ns))
        self._counters.flush()
        return tuple(events)

    def start_period(self, period_s: int, at_ns: int) -> tuple[Event, ...]:
        """Set all counters to zero. Return an event for each line and zone, with its totals of the previous period.

        If there was no previous period, keep the counters, and return no events.

        Args:
            period_s: start of the new period, in seconds since 1970.
            at_ns: capture time of the first frame of the period.
        """
        shapes: tuple[Shape, ...] = (*self._config.lines, *self._config.zones)
        totals = self._counters.start_period(period_s)
        if totals is None:
            return ()
        return tuple(
            self._event("counters_reset", shape, None, at_ns, {"phase": "instant", **totals[shape.name]})
            for shape in shapes
        )

    @property
    def period_s(self) -> int | None:
        """Start of the period of the counters, in seconds since 1970, or None if no period has started yet."""
        return self._counters.period_s

    def counts(self) -> Counts:
        """Return a copy of all counters.

        The occupancy of a zone includes undetected objects until they count as gone (`forget_s`).
        """
        names = (zone.name for zone in self._config.zones)
        return self._counters.snapshot(dict(zip(names, self._crowds.occupants, strict=True)))

    # --- epochs -------------------------------------------------------------------------------------------------------

    def _watch(self, config: CameraAnalytics) -> None:
        self._config = config
        self._anchors = _anchors(config)
        self._line_watch = LineWatch(config.lines, self._anchors, self._class_names)
        self._zone_watch = ZoneWatch(config.zones, self._anchors, self._class_names)

    def _begin(self, width_px: int, height_px: int) -> None:
        self._frame_size = width_px, height_px
        config, (scale_x, scale_y) = self._config, pixels_per_unit(self._config.units, width_px, height_px)

        def to_pixels(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
            return [(x * scale_x, y * scale_y) for x, y in points]

        zones = [[to_pixels(ring) for ring in zone.rings] for zone in config.zones]
        self._zone_watch.place(zones, (width_px, height_px))
        layout = TableLayout(
            self._anchors,
            self._line_watch.place([to_pixels(line.points) for line in config.lines]),
            GroundPlane(to_pixels(config.ground.points), config.ground.metres) if config.ground else None,
            {**self._line_watch.columns, **self._zone_watch.columns},
            (width_px, height_px),
        )
        self._objects = self._objects_type(layout)
        self._crowds = CrowdDetector(config.zones)

    def _forget(self, at_ns: int, before_s: float) -> Iterator[Event]:
        """Forget objects last detected before `before_s`. Yield the resulting crossings, exits, and dwelling ends."""
        table = self._objects.table
        seen_s = table["seen_s"]
        kept = seen_s >= before_s - CLOCK_GRAIN_S
        for row in (~kept).nonzero()[0].tolist():
            if self._config.lines:
                for crossing in self._line_watch.lost(table, row):
                    yield self._crossed(crossing, at_ns)
            for zone in table["inside"][row].nonzero()[0].tolist():
                yield from self._left(row, zone, "lost", float(seen_s[row]), at_ns)
        self._objects.keep(kept)
        self._facts.clear()  # the rows now belong to different objects

    def _end_zones(self, config: CameraAnalytics, kept: IndexArray, at_ns: int) -> Iterator[Event]:
        """End the stays in zones that are missing or different in `config`, and crowding that `config` does not detect.

        Yield the events. `kept` is the result of `_kept` for zones.
        """
        now_s, inside = self._objects.clock.now_s, self._objects.table["inside"]
        ended = set(range(len(self._config.zones))) - set(kept.tolist())
        for row, zone in zip(*(places.tolist() for places in inside.nonzero()), strict=True):
            if zone in ended:
                yield from self._left(row, zone, "changed", now_s, at_ns)
        without = {at for zone, at in zip(config.zones, kept.tolist(), strict=True) if zone.crowd_threshold is None}
        for zone, data in self._crowds.end(now_s, ended | without):
            yield self._event("crowded", self._config.zones[zone], None, at_ns, data)

    # --- events -------------------------------------------------------------------------------------------------------

    def _crossed(self, crossing: Crossing, at_ns: int) -> Event:
        row, line, direction = crossing
        about, shape = self._about(row), self._config.lines[line]
        totals = self._count_crossing(shape.name, direction, about["class"])
        data = {"phase": "instant", "direction": direction, **about, **totals}
        return self._event("line_crossed", shape, row, at_ns, data)

    def _visit(self, seen: TrackSnapshot, at_ns: int) -> Iterator[Event]:
        table, now_s = self._objects.table, seen.now_s
        for row, zone, is_inside, appeared in self._zone_watch.look(table, seen):
            if is_inside:
                yield self._entered(row, zone, "appeared" if appeared else "crossed", at_ns)
            else:
                yield from self._left(row, zone, "crossed", now_s, at_ns)
        for row, zone in self._zone_watch.dwellers(table, now_s):
            yield self._dwells(row, zone, now_s, at_ns)

    def _dwells(self, row: int, zone: int, now_s: float, at_ns: int) -> Event:
        stayed_s = round(now_s - float(self._objects.table["entered_s"][row, zone]), 2)
        data = {"phase": "begin", **self._about(row), "stayed_s": stayed_s}
        return self._event("dwelling", self._config.zones[zone], row, at_ns, data)

    def _entered(self, row: int, zone: int, how: str, at_ns: int) -> Event:
        self._zone_watch.enter(self._objects.table, row, zone, self._objects.clock.now_s)
        about, shape = self._about(row), self._config.zones[zone]
        data = {"phase": "instant", "how": how, **about, **self._count_passage(zone, "entered", about["class"])}
        return self._event("zone_entered", shape, row, at_ns, data)

    def _left(self, row: int, zone: int, how: str, until_s: float, at_ns: int) -> Iterator[Event]:
        table, shape, about = self._objects.table, self._config.zones[zone], self._about(row)
        stayed_s = round(until_s - float(table["entered_s"][row, zone]), 2)
        if table["dwelling"][row, zone]:
            yield self._event("dwelling", shape, row, at_ns, {"phase": "end", **about, "stayed_s": stayed_s})
        self._zone_watch.leave(table, row, zone)
        values = {"stayed_s": stayed_s, **self._count_passage(zone, "left", about["class"])}
        yield self._event("zone_left", shape, row, at_ns, {"phase": "instant", "how": how, **about, **values})

    def _count_crossing(self, name: str, direction: str, class_name: str) -> Mapping[str, int]:
        """Count a crossing of the line called `name`. Return the totals of the line, as event data."""
        counts = self._counters.add(name, direction, class_name)
        return {"total_in": counts["in"], "total_out": counts["out"]}

    def _count_passage(self, zone: int, key: Literal["entered", "left"], class_name: str) -> Mapping[str, int]:
        """Count an entry or an exit. Return the occupancy of the zone, as event data."""
        self._crowds.occupants[zone] += 1 if key == "entered" else -1
        self._counters.add(self._config.zones[zone].name, key, class_name)
        return {"occupancy": self._crowds.occupants[zone]}

    def _about(self, row: int) -> dict[str, Any]:
        """Return the event data of the object in a row of the track table: its class and, if known, its motion."""
        about = self._facts.get(row)
        if about is None:
            class_id, motion = int(self._objects.table["class_id"][row]), self._objects.motion(row)
            about = self._facts[row] = self._description(class_id, motion)
        return about

    def _description(self, class_id: int, motion: tuple[float, float]) -> dict[str, Any]:
        """Return the event data of an object: its class and, if known, its `motion` (see `TrackedObjects.motion`)."""
        is_named = 0 <= class_id < len(self._class_names)
        about = {"class": self._class_names[class_id] if is_named else str(class_id), "class_id": class_id}
        speed_kmh, heading_deg = motion
        if not math.isnan(speed_kmh):
            about["speed_kmh"] = round(speed_kmh, 1)
        if not math.isnan(heading_deg):
            about["heading_deg"] = round(heading_deg) % 360
        return about

    def _event(self, kind: str, shape: Shape, row: int | None, at_ns: int, data: Mapping[str, Any]) -> Event:
        track_id = None if row is None else int(self._objects.table.ids[row])
        return Event(kind, shape.name, self._camera_id, track_id, at_ns, data)


def _anchors(config: CameraAnalytics) -> list[str]:
    """Return the names of the anchors of all lines and zones: the points of a box that show an object's position.

    The first anchor is always the point on the ground.
    """
    shapes: tuple[Shape, ...] = (*config.lines, *config.zones)
    return [_GROUND_ANCHOR, *sorted({shape.anchor for shape in shapes} - {_GROUND_ANCHOR})]


_PLACE: Final = {"lines": ("points", "anchor"), "zones": ("polygon", "holes", "anchor", "classes")}
"""The keys that determine where a line or zone counts objects. If one of them changes, paths or stays start again."""


def _kept(earlier: CameraAnalytics, config: CameraAnalytics, kind: Literal["lines", "zones"]) -> IndexArray:
    """Return, for each line or zone of `config`, its index in `earlier`, or -1 for a new or moved shape."""
    before: Sequence[Shape] = earlier.lines if kind == "lines" else earlier.zones
    now: Sequence[Shape] = config.lines if kind == "lines" else config.zones
    index = {shape.name: number for number, shape in enumerate(before)}
    kept = []
    for shape in now:
        at = index.get(shape.name, -1)
        same = earlier.units == config.units and all(
            getattr(shape, key) == getattr(before[at], key) for key in _PLACE[kind]
        )
        kept.append(at if at >= 0 and same else -1)
    return np.array(kept, np.intp)


class _ShapeCounters:
    """Counters of the crossings, entries, and exits of each line and zone, in total and by class (``in:person``)."""

    def __init__(
        self, config: CameraAnalytics, stored: CameraCounters | None, earlier: _ShapeCounters | None = None
    ) -> None:
        """Create the counters.

        `stored` supplies the initial values, and saves changes. If `stored` is None, each counter starts at its value
        in `earlier`, or at 0 if `earlier` has no value for the counter.
        """
        self._stored = stored
        self._lines = {line.name: {"in": 0, "out": 0} for line in config.lines}
        self._zones = {zone.name: {"entered": 0, "left": 0} for zone in config.zones}
        self._counts = {**self._lines, **self._zones}
        self._period_s = None if earlier is None else earlier.period_s
        counts: Mapping[tuple[str, str], int] = {}
        if stored is not None:
            self._period_s, counts = stored.period_s, stored.counts()
        elif earlier is not None:
            counts = {(name, key): value for name, keys in earlier._counts.items() for key, value in keys.items()}
        for (name, key), value in counts.items():
            if key.partition(":")[0] in self._counts.get(name, ()):
                self._counts[name][key] = value

    @property
    def stored(self) -> CameraCounters | None:
        """Persistent storage of the counters, or None if there is no such storage."""
        return self._stored

    def add(self, name: str, key: str, class_name: str) -> Mapping[str, int]:
        """Count one object under `key`, such as ``in``. Return all counters of the line or zone called `name`."""
        counts, key_of_class = self._counts[name], f"{key}:{class_name}"
        counts[key] += 1
        counts[key_of_class] = counts.get(key_of_class, 0) + 1
        if self._stored is not None:
            self._stored.add(name, (key, key_of_class))
        return counts

    @property
    def period_s(self) -> int | None:
        """Start of the period of the counts, in seconds since 1970, or None if no period has started yet."""
        return self._period_s

    def start_period(self, period_s: int) -> Mapping[str, Mapping[str, int]] | None:
        """Set all counters to zero, and return their previous values, by the name of the line or zone, and by key.

        If there was no previous period, keep the counters, and return None.
        """
        is_first, self._period_s = self._period_s is None, period_s
        if self._stored is not None:
            self._stored.start_period(period_s, keep=is_first)
        if is_first:
            return None
        totals = {name: dict(counts) for name, counts in self._counts.items()}
        for counts in self._counts.values():
            for key in [*counts]:
                if ":" in key:
                    del counts[key]
                else:
                    counts[key] = 0
        return totals

    def flush(self) -> None:
        """Save all counts that changed since the previous call, if there is persistent storage."""
        if self._stored is not None:
            self._stored.flush()

    def snapshot(self, occupancy: Mapping[str, int]) -> Counts:
        lines = {name: dict(counts) for name, counts in self._lines.items()}
        return Counts(lines, {name: dict(counts) for name, counts in self._zones.items()}, occupancy)
