"""Tracks become events: `Analytics`, one per camera.

What jitters is decided with a margin: an object has crossed a line, or entered or left a zone, when its anchor is a
tenth of the object's size beyond it. Which side it was on is remembered per object, and whether it passed between
the line's ends is judged where its path met the line, so neither a step over the line between two pictures nor a walk
around its end is miscounted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vision.analytics.counters import CounterJournal
from vision.analytics.geometry import (
    BoolArray,
    FloatArray,
    GroundPlane,
    IndexArray,
    LineSet,
    ZoneSet,
    anchor_points,
    pairs,
)
from vision.analytics.memory import Memory
from vision.analytics.motion import SAMPLES, Trails, velocity
from vision.config.analytics import CameraAnalytics, LineConfig, ZoneConfig
from vision.config.wording import did_you_mean
from vision.elapsed import Elapsed
from vision.errors import ConfigError
from vision.types import Event, Tracks

Shape: TypeAlias = LineConfig | ZoneConfig
Counts: TypeAlias = dict[str, int]

_MARGIN: Final = 0.1  # of the longer side of the object's box: twice what a detector's boxes jitter by
_MOVING: Final = 0.1  # object sizes per second from which a direction of travel is said
_CLOCK_GRAIN_S: Final = 1e-3  # capture times are no more exact than this
_GROUND_ANCHOR: Final = "bottom-center"


@dataclass(frozen=True, slots=True)
class _Seen:
    """The M objects of one picture."""

    rows: IndexArray  # (M,) in the memory
    fresh: BoolArray  # (M,) never seen before
    any_fresh: bool
    x: FloatArray  # (M, A) of each anchor
    y: FloatArray
    margin: FloatArray  # (M,) pixels


class Analytics:
    """Lines, zones and speeds of one camera. Not thread-safe.

    Args:
        config: what to watch.
        camera_id: for the events.
        class_names: the model's, by class id.
        width_px: of the picture that boxes are in.
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
        self._line_classes = _allowed(self._lines, self._class_names)
        self._zone_classes = _allowed(self._zones, self._class_names)
        shapes: tuple[Shape, ...] = (*self._lines, *self._zones)
        names = sorted({_GROUND_ANCHOR, *(shape.anchor for shape in shapes)})
        self._anchors = names
        self._anchor_of_line = np.array([names.index(line.anchor) for line in self._lines], np.intp)
        self._line_anchor = _columns([names.index(line.anchor) for line in self._lines])
        self._zone_anchor = _columns([names.index(zone.anchor) for zone in self._zones])
        self._foot = names.index(_GROUND_ANCHOR)
        self._dwell_s = np.array([zone.dwell_s or math.inf for zone in self._zones], np.float64)
        never = np.iinfo(np.int64).max
        limits = [never if zone.crowded_above is None else zone.crowded_above for zone in self._zones]
        self._crowded_above = np.array(limits, np.int64)
        self._crowded_for_s = np.array([zone.crowded_for_s for zone in self._zones], np.float64)
        self._counts = self._counts_at_start()
        self.width_px = self.height_px = 0
        self._place(width_px, height_px)
        self._begin()

    # --- what the runtime calls ---------------------------------------------------------------------------------------

    def update(self, tracks: Tracks, captured_ns: int) -> tuple[Event, ...]:
        """Take one picture's tracks; returns what happened, in the order of the configuration."""
        step_s = self._time.advance(captured_ns)
        memory_s = self._time.memory_s(self._forget_s)
        events = list(self._forget(captured_ns, self._time.now_s - memory_s)) if len(self._memory) else []
        if len(tracks):
            seen = self._see(tracks)
            if self._lines:
                events += self._cross(seen, captured_ns)
            if self._zones:
                events += self._visit(seen, captured_ns)
            self._memory["x"][seen.rows], self._memory["y"][seen.rows] = seen.x, seen.y
        events += self._crowds(captured_ns, unobserved=step_s > memory_s)
        if self._journal is not None:
            self._journal.flush()
        return tuple(events)

    def restart(self, width_px: int, height_px: int, at_ns: int) -> tuple[Event, ...]:
        """Begin a new epoch, perhaps with another picture size: whatever lasts ends. Counters go on."""
        events = [*self._forget(at_ns, math.inf)]
        events += [self._crowded_end(zone, at_ns) for zone in self._is_crowded.nonzero()[0].tolist()]
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
        return {zone.name: int(inside) for zone, inside in zip(self._zones, self._occupants, strict=True)}

    def motion_of(self, track_id: int) -> tuple[float, float]:
        """Speed in km/h and direction of travel in degrees of one object; NaN where unknown.

        Directions are the picture's: 0 up, 90 right, 180 down, 270 left. Speeds need a `ground` section.
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
        """Lay the shapes on a picture of this size."""
        self.width_px, self.height_px = width_px, height_px
        scale_x, scale_y = (width_px, height_px) if self._config.units == "fraction" else (1, 1)

        def placed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
            return [(x * scale_x, y * scale_y) for x, y in points]

        self._line_set = LineSet([placed(line.points) for line in self._lines])
        self._zone_set = ZoneSet([placed(zone.polygon) for zone in self._zones])
        ground = self._config.ground
        self._ground = GroundPlane(placed(ground.points), ground.metres) if ground else None
        # Whether anything of a shape lies in the picture: configured for another resolution it never sees anything.
        shapes = [(line.name, placed(line.points)) for line in self._lines]
        shapes += [(zone.name, placed(zone.polygon)) for zone in self._zones]
        self.outside = tuple(
            name
            for name, points in shapes
            if min(x for x, _ in points) >= width_px or min(y for _, y in points) >= height_px
        )

    def _begin(self) -> None:
        lines, zones, anchors = len(self._lines), len(self._zones), len(self._anchors)
        self._time = Elapsed()
        self._memory = Memory(
            {
                "class_id": (None, np.int32),
                "seen_s": (None, np.float64),
                "size": (None, np.float64),
                "x": (anchors, np.float64),
                "y": (anchors, np.float64),
                "trail_x": (SAMPLES, np.float64),
                "trail_y": (SAMPLES, np.float64),
                "side": (lines, np.int8),  # -1 left, 1 right, 0 on the line since it appeared
                "distance": (lines, np.float64),
                "passed": (lines, np.bool_),  # the path last met the line between its ends
                "inside": (zones, np.bool_),
                "entered_s": (zones, np.float64),
                "dwelling": (zones, np.bool_),
            }
        )
        self._trails = Trails()
        self._next_dwell_s = math.inf  # nobody has been anywhere for long before this
        self._occupants = np.zeros(zones, np.int64)
        self._is_crowded = np.zeros(zones, np.bool_)
        self._change_since_s = np.full(zones, np.nan)  # when a beginning or end of crowding began to last
        self._crowded_from_s = np.zeros(zones)
        self._most = np.zeros(zones, np.int64)

    # --- motion -------------------------------------------------------------------------------------------------------

    def _see(self, tracks: Tracks) -> _Seen:
        memory, now_s = self._memory, self._time.now_s
        rows, fresh = memory.rows_of(tracks.track_ids)
        boxes = tracks.boxes_xyxy.astype(np.float64)
        size = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
        x, y = anchor_points(boxes, self._anchors)
        memory["seen_s"][rows] = now_s
        memory["size"][rows] = size
        memory["class_id"][rows] = tracks.class_ids
        any_fresh = bool(fresh.any())
        if any_fresh:
            memory["trail_x"][rows[fresh]] = memory["trail_y"][rows[fresh]] = np.nan
        foot = (x[:, self._foot], y[:, self._foot])
        self._trails.observe(now_s, rows, foot, (memory["trail_x"], memory["trail_y"]))
        return _Seen(rows, fresh, any_fresh, x, y, _MARGIN * size)

    def _motion(self, row: int) -> tuple[float, float]:
        """Speed in km/h and direction in degrees, NaN where unknown."""
        trail = self._trails.of(self._time.now_s, self._memory["trail_x"][row], self._memory["trail_y"][row])
        speed_kmh = heading_deg = math.nan
        seen = velocity(trail)
        if seen is not None and math.hypot(*seen) >= _MOVING * self._memory["size"][row]:
            heading_deg = math.degrees(math.atan2(seen[0], -seen[1])) % 360.0
        if seen is not None and self._ground is not None:
            places = ((time_s, *self._ground.to_metres(x, y)) for time_s, x, y in trail)
            on_ground = velocity(place for place in places if not math.isnan(place[1]))
            speed_kmh = math.nan if on_ground is None else 3.6 * math.hypot(*on_ground)
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

    # --- lines --------------------------------------------------------------------------------------------------------

    def _cross(self, seen: _Seen, at_ns: int) -> Iterator[Event]:
        memory, rows = self._memory, seen.rows
        x, y = seen.x[:, self._line_anchor], seen.y[:, self._line_anchor]
        distance = self._line_set.distances(x, y)
        if seen.any_fresh:
            appeared = rows[seen.fresh]
            memory["distance"][appeared] = distance[seen.fresh]
            memory["side"][appeared] = np.sign(distance[seen.fresh])
        is_right = distance > 0
        met = is_right != (memory["distance"][rows] > 0)
        if met.any():
            self._meet(seen, distance, met)
        memory["distance"][rows] = distance
        old_side = memory["side"][rows]
        changed = (np.abs(distance) > seen.margin[:, None]) & (old_side != is_right * np.int8(2) - np.int8(1))
        if not changed.any():
            return
        objects, lines = pairs(changed)
        changed_rows = rows[objects]
        memory["side"][changed_rows, lines] = is_right[objects, lines] * np.int8(2) - np.int8(1)
        done = (old_side[objects, lines] != 0) & memory["passed"][changed_rows, lines]
        if self._line_classes is not None:
            done &= _watched(self._line_classes, memory["class_id"][changed_rows])[np.arange(len(lines)), lines]
        for at in done.nonzero()[0]:
            direction = "in" if is_right[objects[at], lines[at]] else "out"
            if self._lines[lines[at]].direction in (direction, "both"):
                yield self._crossed(int(changed_rows[at]), int(lines[at]), direction, at_ns)

    def _meet(self, seen: _Seen, distance: FloatArray, met: BoolArray) -> None:
        """Remember for each path that met an endless line whether that was between the line's ends."""
        memory = self._memory
        objects, lines = pairs(met)
        rows, anchor = seen.rows[objects], self._anchor_of_line[lines]
        before, now = memory["distance"][rows, lines], distance[objects, lines]
        share = before / (before - now)
        x, y = memory["x"][rows, anchor], memory["y"][rows, anchor]
        x = x + share * (seen.x[objects, anchor] - x)
        y = y + share * (seen.y[objects, anchor] - y)
        memory["passed"][rows, lines] = self._line_set.are_passed(x, y, lines)

    def _crossed(self, row: int, line: int, direction: str, at_ns: int) -> Event:
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

    # --- zones --------------------------------------------------------------------------------------------------------

    def _visit(self, seen: _Seen, at_ns: int) -> Iterator[Event]:
        memory, rows = self._memory, seen.rows
        x, y = seen.x[:, self._zone_anchor], seen.y[:, self._zone_anchor]
        inside = self._zone_set.contain(x, y)
        if self._zone_classes is not None:
            inside &= _watched(self._zone_classes, memory["class_id"][rows])
        changed = inside != memory["inside"][rows]
        if changed.any():
            objects, zones = pairs(changed)
            column = zones if x.shape[1] > 1 else np.zeros_like(zones)
            x, y = x[objects, column], y[objects, column]
            far = self._zone_set.distances_to_border(x, y, zones) > seen.margin[objects]
            far |= seen.fresh[objects]
            for at, zone in zip(objects[far].tolist(), zones[far].tolist(), strict=True):
                row = int(rows[at])
                if inside[at, zone]:
                    yield self._entered(row, zone, "appeared" if seen.fresh[at] else "crossed", at_ns)
                else:
                    yield from self._left(row, zone, "crossed", self._time.now_s, at_ns)
        if self._time.now_s >= self._next_dwell_s:
            yield from self._dwell(at_ns)

    def _dwell(self, at_ns: int) -> Iterator[Event]:
        """Objects that have been in a zone for its `dwell_s`. Who is hidden just then is reported when seen again."""
        memory, now_s = self._memory, self._time.now_s
        rows, zones = pairs(memory["inside"] & ~memory["dwelling"])
        begins_s = memory["entered_s"][rows, zones] + self._dwell_s[zones] - _CLOCK_GRAIN_S
        due = (begins_s <= now_s) & (memory["seen_s"][rows] == now_s)
        self._next_dwell_s = float(begins_s[~due].min(initial=math.inf))
        for row, zone in zip(rows[due].tolist(), zones[due].tolist(), strict=True):
            memory["dwelling"][row, zone] = True
            stayed_s = round(now_s - float(memory["entered_s"][row, zone]), 3)
            data = {"phase": "begin", **self._about(row), "stayed_s": stayed_s}
            yield self._event("dwelling", self._zones[zone], row, at_ns, data)

    def _entered(self, row: int, zone: int, how: str, at_ns: int) -> Event:
        memory = self._memory
        memory["inside"][row, zone] = True
        memory["entered_s"][row, zone] = self._time.now_s
        self._next_dwell_s = min(self._next_dwell_s, self._time.now_s + self._dwell_s[zone] - _CLOCK_GRAIN_S)
        self._occupants[zone] += 1
        about = self._about(row)
        self._count(self._zones[zone].name, "entered", about["class"])
        data = {"phase": "instant", "how": how, **about, "occupancy": int(self._occupants[zone])}
        return self._event("zone_entered", self._zones[zone], row, at_ns, data)

    def _left(self, row: int, zone: int, how: str, until_s: float, at_ns: int) -> Iterator[Event]:
        memory, shape = self._memory, self._zones[zone]
        stayed_s = round(float(until_s - memory["entered_s"][row, zone]), 3)
        about = self._about(row)
        if memory["dwelling"][row, zone]:
            memory["dwelling"][row, zone] = False
            yield self._event("dwelling", shape, row, at_ns, {"phase": "end", **about, "stayed_s": stayed_s})
        memory["inside"][row, zone] = False
        self._occupants[zone] -= 1
        self._count(shape.name, "left", about["class"])
        data = {
            "phase": "instant",
            "how": how,
            **about,
            "stayed_s": stayed_s,
            "occupancy": int(self._occupants[zone]),
        }
        yield self._event("zone_left", shape, row, at_ns, data)

    def _forget(self, at_ns: int, before_s: float) -> Iterator[Event]:
        """Objects last seen before `before_s` have left every zone they were in."""
        memory = self._memory
        kept = memory["seen_s"] >= before_s - _CLOCK_GRAIN_S
        if kept.all():
            return
        for row in (~kept).nonzero()[0].tolist():
            for zone in memory["inside"][row].nonzero()[0].tolist():
                yield from self._left(row, zone, "lost", float(memory["seen_s"][row]), at_ns)
        memory.keep(kept)

    # --- crowding -----------------------------------------------------------------------------------------------------

    def _crowds(self, at_ns: int, *, unobserved: bool) -> Iterator[Event]:
        """Begin and end of crowding, each when it has lasted `crowded_for_s` without a break."""
        now_s, crowded = self._time.now_s, self._is_crowded
        np.maximum(self._most, self._occupants, out=self._most, where=crowded)
        changing = (self._occupants > self._crowded_above) != crowded
        self._change_since_s[~changing] = np.nan
        if not changing.any():
            return
        begins = changing if unobserved else changing & np.isnan(self._change_since_s)
        self._change_since_s[begins] = now_s
        lasted = changing & (now_s - self._change_since_s >= self._crowded_for_s - _CLOCK_GRAIN_S)
        for zone in lasted.nonzero()[0].tolist():
            if crowded[zone]:
                yield self._crowded_end(zone, at_ns)
            else:
                crowded[zone] = True
                self._crowded_from_s[zone], self._most[zone] = self._change_since_s[zone], self._occupants[zone]
                above = self._zones[zone].crowded_above
                data = {"phase": "begin", "occupancy": int(self._occupants[zone]), "above": above}
                yield self._event("crowded", self._zones[zone], None, at_ns, data)
            self._change_since_s[zone] = np.nan

    def _crowded_end(self, zone: int, at_ns: int) -> Event:
        self._is_crowded[zone] = False
        data = {
            "phase": "end",
            "occupancy": int(self._occupants[zone]),
            "above": self._zones[zone].crowded_above,
            "most": int(self._most[zone]),
            "lasted_s": round(self._time.now_s - float(self._crowded_from_s[zone]), 3),
        }
        return self._event("crowded", self._zones[zone], None, at_ns, data)

    # --- common -------------------------------------------------------------------------------------------------------

    def _event(self, kind: str, shape: Shape, row: int | None, at_ns: int, data: Mapping[str, Any]) -> Event:
        track_id = None if row is None else int(self._memory.ids[row])
        return Event(kind, shape.name, self._camera_id, track_id, at_ns, data)

    def _count(self, name: str, key: str, class_name: str) -> Counts:
        counts = self._counts[name]
        keys = (key, f"{key}:{class_name}")
        for counted in keys:
            counts[counted] = counts.get(counted, 0) + 1
        if self._journal is not None:
            self._journal.add(name, keys)
        return counts


def _columns(anchors: list[int]) -> IndexArray | slice:
    """Columns to take for the shapes; one that all share is not repeated."""
    if len(set(anchors)) == 1:
        return slice(anchors[0], anchors[0] + 1)
    return np.array(anchors, np.intp)


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
                advice = did_you_mean(name, class_names)
                raise ConfigError(
                    f"{shape.name}: the model has no class '{name}'", hint=advice or "`vision models` lists its classes"
                )
            allowed[class_names.index(name), column] = True
    return None if allowed.all() else allowed


def _watched(allowed: BoolArray, class_ids: NDArray[np.int32]) -> BoolArray:
    """(M, S) rows of `allowed`; ids without a name get its last row."""
    named = np.minimum(class_ids.view(np.uint32), len(allowed) - 1)
    rows: BoolArray = allowed[named]
    return rows
