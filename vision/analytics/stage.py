"""Tracks become events: `Analytics`, one per camera.

What jitters is decided with a margin: an object has crossed a line, or entered or left a zone, when its anchor is a
twentieth of the object's size beyond it. Which side it was on is remembered per object, and whether it passed between
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

from vision.analytics import motion
from vision.analytics.counters import CounterJournal
from vision.analytics.geometry import (
    BoolArray,
    FloatArray,
    GroundPlane,
    IndexArray,
    LineSet,
    ZoneSet,
    anchor_points,
)
from vision.analytics.memory import Memory
from vision.config.analytics import CameraAnalytics, LineConfig, ZoneConfig
from vision.config.wording import did_you_mean
from vision.elapsed import Elapsed
from vision.errors import ConfigError
from vision.types import Event, Tracks

Shape: TypeAlias = LineConfig | ZoneConfig
Counts: TypeAlias = dict[str, int]

_MARGIN: Final = 0.05  # of the longer side of the object's box
_MOVING: Final = 0.1  # object sizes per second from which a direction of travel is said
_CLOCK_GRAIN_S: Final = 1e-3  # capture times are no more exact than this
_GROUND_ANCHOR: Final = "bottom-center"


@dataclass(frozen=True, slots=True)
class _Seen:
    """The M objects of one picture."""

    rows: IndexArray  # (M,) in the memory
    fresh: BoolArray  # (M,) never seen before
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
        self._line_anchor = np.array([names.index(line.anchor) for line in self._lines], np.intp)
        self._zone_anchor = _columns([names.index(zone.anchor) for zone in self._zones])
        self._foot = names.index(_GROUND_ANCHOR)
        self._dwell_s = np.array([zone.dwell_s or math.inf for zone in self._zones], np.float64)
        self._any_dwell = bool(np.isfinite(self._dwell_s).any())
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
        events += [self._crowded_end(zone, at_ns) for zone in self._crowded_since if self._is_crowded[zone]]
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

    def motion_of(self, track_ids: NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        """Speed in km/h and direction of travel in degrees, (M,) each, NaN where unknown.

        Directions are the picture's: 0 up, 90 right, 180 down, 270 left. Speeds need a `ground` section.
        """
        rows, _ = self._memory.rows_of(track_ids)
        return self._motion(rows)

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
                "sums": (motion.COLUMNS, np.float64),
                "side": (lines, np.int8),  # -1 left, 1 right, 0 on the line since it appeared
                "distance": (lines, np.float64),
                "passed": (lines, np.bool_),  # the path last met the line between its ends
                "inside": (zones, np.bool_),
                "entered_s": (zones, np.float64),
                "dwelling": (zones, np.bool_),
            }
        )
        self._motions: tuple[FloatArray, FloatArray] | None = None  # of every row, made when an event asks for it
        self._occupants = np.zeros(zones, np.int64)
        watched = [index for index, zone in enumerate(self._zones) if zone.crowded_above is not None]
        self._crowded_since: dict[int, float | None] = dict.fromkeys(watched)  # when the change began that may come
        self._is_crowded = dict.fromkeys(watched, False)
        self._crowded_from_s = dict.fromkeys(watched, 0.0)
        self._most = dict.fromkeys(watched, 0)

    # --- motion -------------------------------------------------------------------------------------------------------

    def _see(self, tracks: Tracks) -> _Seen:
        memory, now_s = self._memory, self._time.now_s
        rows, fresh = memory.rows_of(tracks.track_ids)
        boxes = tracks.boxes_xyxy.astype(np.float64)
        size = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
        x, y = anchor_points(boxes, self._anchors)
        elapsed_s = np.where(fresh, 0.0, now_s - memory["seen_s"][rows])
        memory["seen_s"][rows] = now_s
        memory["size"][rows] = size
        memory["class_id"][rows] = tracks.class_ids
        positions = np.empty((len(rows), motion.COORDINATES))
        positions[:, 0], positions[:, 1] = foot_x, foot_y = x[:, self._foot], y[:, self._foot]
        positions[:, 2], positions[:, 3] = self._ground.to_metres(foot_x, foot_y) if self._ground else (0.0, 0.0)
        sums = memory["sums"][rows]
        motion.observe(sums, elapsed_s, positions)
        memory["sums"][rows] = sums
        self._motions = None
        return _Seen(rows, fresh, x, y, _MARGIN * size)

    def _motion(self, rows: IndexArray) -> tuple[FloatArray, FloatArray]:
        x, y, ground_x, ground_y = motion.velocities(self._memory["sums"][rows]).T
        moving = np.hypot(x, y) >= _MOVING * self._memory["size"][rows]  # False where unknown
        heading_deg = np.where(moving, np.degrees(np.arctan2(x, -y)) % 360.0, np.nan)
        speed_kmh = np.hypot(ground_x, ground_y) * 3.6 if self._ground else np.full(len(rows), np.nan)
        return speed_kmh, heading_deg

    def _about(self, row: int) -> dict[str, Any]:
        """What every event of an object says about it."""
        class_id = int(self._memory["class_id"][row])
        about: dict[str, Any] = {"class": self._class_name(class_id), "class_id": class_id}
        if self._motions is None:
            self._motions = self._motion(np.arange(len(self._memory)))
        speed_kmh, heading_deg = float(self._motions[0][row]), float(self._motions[1][row])
        if not math.isnan(speed_kmh):
            about["speed_kmh"] = round(speed_kmh, 1)
        if not math.isnan(heading_deg):
            about["heading_deg"] = round(heading_deg) % 360
        return about

    def _class_name(self, class_id: int) -> str:
        return self._class_names[class_id] if 0 <= class_id < len(self._class_names) else str(class_id)

    # --- lines --------------------------------------------------------------------------------------------------------

    def _cross(self, seen: _Seen, at_ns: int) -> Iterator[Event]:
        memory, lines, rows, fresh = self._memory, self._line_set, seen.rows, seen.fresh
        x, y = seen.x[:, self._line_anchor], seen.y[:, self._line_anchor]
        distance = lines.distances(x, y)
        before = np.where(fresh[:, None], distance, memory["distance"][rows])
        side = np.where(fresh[:, None], np.sign(distance), memory["side"][rows]).astype(np.int8)
        passed = memory["passed"][rows]
        objects, crossed = ((before > 0) != (distance > 0)).nonzero()
        if len(objects):
            d0, d1 = before[objects, crossed], distance[objects, crossed]
            share = d0 / (d0 - d1)
            anchor = self._line_anchor[crossed]
            x0, y0 = memory["x"][rows[objects], anchor], memory["y"][rows[objects], anchor]
            met_x = x0 + share * (x[objects, crossed] - x0)
            met_y = y0 + share * (y[objects, crossed] - y0)
            passed[objects, crossed] = lines.are_passed(met_x, met_y, crossed)
        new_side = np.where(np.abs(distance) > seen.margin[:, None], np.sign(distance), side).astype(np.int8)
        memory["distance"][rows], memory["side"][rows], memory["passed"][rows] = distance, new_side, passed
        done = (new_side != side) & (side != 0) & passed
        if self._line_classes is not None:
            done &= _watched(self._line_classes, memory["class_id"][rows])
        for at, line in zip(*done.nonzero(), strict=True):
            direction = "in" if new_side[at, line] > 0 else "out"
            if self._lines[line].direction in (direction, "both"):
                yield self._crossed(int(rows[at]), int(line), direction, at_ns)

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
        memory, rows, fresh = self._memory, seen.rows, seen.fresh
        x, y = seen.x[:, self._zone_anchor], seen.y[:, self._zone_anchor]
        inside = self._zone_set.contain(x, y)
        if self._zone_classes is not None:
            inside &= _watched(self._zone_classes, memory["class_id"][rows])
        were_inside = memory["inside"][rows]
        objects, zones = (inside != were_inside).nonzero()
        if len(objects):
            x, y = np.broadcast_to(x, inside.shape)[objects, zones], np.broadcast_to(y, inside.shape)[objects, zones]
            far = self._zone_set.distances_to_border(x, y, zones) > seen.margin[objects]
            far |= fresh[objects]
            for at, zone in zip(objects[far].tolist(), zones[far].tolist(), strict=True):
                row = int(rows[at])
                if inside[at, zone]:
                    yield self._entered(row, zone, "appeared" if fresh[at] else "crossed", at_ns)
                else:
                    yield from self._left(row, zone, "crossed", self._time.now_s, at_ns)
        if self._any_dwell:
            yield from self._dwell(rows, at_ns)

    def _dwell(self, rows: IndexArray, at_ns: int) -> Iterator[Event]:
        """Objects that have been in a zone for its `dwell_s`."""
        memory = self._memory
        objects, zones = (memory["inside"][rows] & ~memory["dwelling"][rows]).nonzero()
        stayed_s = self._time.now_s - memory["entered_s"][rows[objects], zones]
        due = (stayed_s >= self._dwell_s[zones] - _CLOCK_GRAIN_S).nonzero()[0]
        for at in due:
            row, zone = int(rows[objects[at]]), int(zones[at])
            memory["dwelling"][row, zone] = True
            data = {"phase": "begin", **self._about(row), "stayed_s": round(float(stayed_s[at]), 3)}
            yield self._event("dwelling", self._zones[zone], row, at_ns, data)

    def _entered(self, row: int, zone: int, how: str, at_ns: int) -> Event:
        memory = self._memory
        memory["inside"][row, zone] = True
        memory["entered_s"][row, zone] = self._time.now_s
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
        self._motions = None

    # --- crowding -----------------------------------------------------------------------------------------------------

    def _crowds(self, at_ns: int, *, unobserved: bool) -> Iterator[Event]:
        """Begin and end of crowding, each when it has lasted `crowded_for_s` without a break."""
        now_s = self._time.now_s
        for zone in self._crowded_since:
            shape, occupants, crowded = self._zones[zone], int(self._occupants[zone]), self._is_crowded[zone]
            if crowded:
                self._most[zone] = max(self._most[zone], occupants)
            if (occupants > (shape.crowded_above or 0)) == crowded:
                self._crowded_since[zone] = None
                continue
            began_s = self._crowded_since[zone]
            since_s = now_s if began_s is None or unobserved else began_s
            self._crowded_since[zone] = since_s
            if now_s - since_s < shape.crowded_for_s - _CLOCK_GRAIN_S:
                continue
            self._crowded_since[zone] = None
            if crowded:
                yield self._crowded_end(zone, at_ns)
            else:
                self._is_crowded[zone], self._crowded_from_s[zone], self._most[zone] = True, since_s, occupants
                data = {"phase": "begin", "occupancy": occupants, "above": shape.crowded_above}
                yield self._event("crowded", shape, None, at_ns, data)

    def _crowded_end(self, zone: int, at_ns: int) -> Event:
        self._is_crowded[zone] = False
        data = {
            "phase": "end",
            "occupancy": int(self._occupants[zone]),
            "above": self._zones[zone].crowded_above,
            "most": self._most[zone],
            "lasted_s": round(self._time.now_s - self._crowded_from_s[zone], 3),
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
