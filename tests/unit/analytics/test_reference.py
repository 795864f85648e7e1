"""Comparison of lines and zones with a slow, simple implementation: one object, shape, and frame at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from vision.analytics.camera_analytics import Analytics
from vision.config.analytics import CameraAnalytics, LineConfig
from vision.types import Event, Tracks

Place = tuple[float, float]
Box = tuple[float, float, float, float]

WIDTH, HEIGHT = 1280, 720
CLASSES = ("person", "bicycle", "car")
FORGET_S = 1.5
ANCHORS = {
    "bottom-center": (0.5, 1.0),
    "center": (0.5, 0.5),
    "top-center": (0.5, 0.0),
    "center-left": (0.0, 0.5),
    "center-right": (1.0, 0.5),
}


def anchor_of(box: Box, name: str) -> Place:
    (x1, y1, x2, y2), (share_x, share_y) = box, ANCHORS[name]
    return x1 + share_x * (x2 - x1), y1 + share_y * (y2 - y1)


def right_of(point: Place, line: Sequence[Place]) -> float:
    """Return the distance from an infinite line in pixels. Distances on the left of the line are negative."""
    (x0, y0), (x1, y1) = line
    return ((x1 - x0) * (point[1] - y0) - (y1 - y0) * (point[0] - x0)) / math.hypot(x1 - x0, y1 - y0)


def is_inside(point: Place, polygon: Sequence[Place]) -> bool:
    inside = False
    for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if (point[1] < y0) != (point[1] < y1) and point[0] < x0 + (x1 - x0) * (point[1] - y0) / (y1 - y0):
            inside = not inside
    return inside


def from_border(point: Place, polygon: Sequence[Place]) -> float:
    nearest = math.inf
    for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        share = ((point[0] - x0) * (x1 - x0) + (point[1] - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
        share = min(max(share, 0.0), 1.0)
        nearest = min(nearest, math.hypot(point[0] - x0 - share * (x1 - x0), point[1] - y0 - share * (y1 - y0)))
    return nearest


@dataclass
class OneLine:
    """State of one line and one object: the side on which the object is."""

    line: Sequence[Place]
    anchor: str
    side: int | None = None  # the first side, or the established one; 1: right
    reach: float = 0.0  # distance that the object went on its first side, in sizes; infinite later
    point: Place | None = None
    passed: bool = False
    beyond_s: float | None = None
    edge: float = 1.0  # margins to be established where the edge of the frame cuts the object off
    size: float = 0.0

    def see(self, box: Box, now_s: float, margin: float) -> str | None:
        point, size = anchor_of(box, self.anchor), max(box[2] - box[0], box[3] - box[1])
        distance, before = right_of(point, self.line), self.point
        self.point, self.size, self.edge = point, size, 0.5 if self.is_outside(box, distance) else 1.0
        crossed = None if before is None else self.step(before, point, size, now_s, margin)
        now, far = 1 if distance > 0 else -1, abs(distance) / size / self.edge
        if self.side in (None, now):
            self.side, self.reach = now, max(far, self.reach)
        elif self.reach <= margin < far:
            self.side, self.reach, self.beyond_s = now, far, None
        return crossed

    def is_outside(self, box: Box, distance: float) -> bool:
        """Return True if the frame's edge cuts off the box, and the whole box would be farther from the line."""
        cuts = (box[0] <= 1.5, box[1] <= 1.5, box[2] >= WIDTH - 1.5, box[3] >= HEIGHT - 1.5)
        moves = []
        for at, grow in enumerate((-100.0, -100.0, 100.0, 100.0)):
            longer = [value + grow if at == place else value for place, value in enumerate(box)]
            moved = right_of(anchor_of((longer[0], longer[1], longer[2], longer[3]), self.anchor), self.line)
            moves.append((moved - distance) * (1 if distance > 0 else -1) if cuts[at] else 0.0)
        return max(moves) > 1e-4 and min(moves) > -1e-4

    def step(self, before: Place, point: Place, size: float, now_s: float, margin: float) -> str | None:
        distance = right_of(point, self.line)
        was = right_of(before, self.line)
        if (was > 0) != (distance > 0):
            share = was / (was - distance)
            met = (before[0] + share * (point[0] - before[0]), before[1] + share * (point[1] - before[1]))
            (x0, y0), (x1, y1) = self.line
            along = ((met[0] - x0) * (x1 - x0) + (met[1] - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
            self.passed, self.beyond_s = 0 <= along <= 1, None
        now = 1 if distance > 0 else -1
        if self.side in (None, now):
            return None
        if abs(distance) > margin * size and self.beyond_s is None:
            self.beyond_s = now_s
        stays = self.beyond_s is not None and now_s - self.beyond_s >= 0.5 - 1e-3
        if not (abs(distance) > 2 * margin * size or stays):
            return None
        return self.change(now, margin)

    def lost(self, margin: float) -> str | None:
        assert self.point is not None
        distance, beyond, self.beyond_s = right_of(self.point, self.line), self.beyond_s is not None, None
        leaves = self.edge < 1 and abs(distance) > 0.5 * margin * self.size
        if self.side in (None, 1 if distance > 0 else -1) or not (beyond or leaves):
            return None
        return self.change(1 if distance > 0 else -1, margin)

    def change(self, side: int, margin: float) -> str | None:
        known, self.side, self.reach, self.beyond_s = self.reach > margin, side, math.inf, None
        return ("in" if side > 0 else "out") if self.passed and known else None


@dataclass
class Jitter:
    """Jitter of all objects: deviations from uniform motion that reverse about every eighth of a second."""

    samples: list[tuple[float, dict[int, complex]]] = field(default_factory=list)
    first: dict[int, float] = field(default_factory=dict)  # variance until there are sums
    of: dict[int, tuple[float, float]] = field(default_factory=dict)  # sums of weighted variances, and of weights

    def see(self, boxes: Mapping[int, Box], now_s: float) -> None:
        if self.samples and now_s - self.samples[-1][0] < 0.125:
            return
        self.samples.append((now_s, {one: complex(*anchor_of(box, "bottom-center")) for one, box in boxes.items()}))
        for one, (x1, y1, x2, y2) in boxes.items():
            size = max(x2 - x1, y2 - y1)
            path: list[tuple[float, complex]] = []
            for time_s, points in self.samples[-4:]:
                path = [*path, (time_s, points[one])] if one in points else []
            if len(path) >= 3:
                deviation, ratio = self.deviation(path[-3:])
                factor = 1.0 + (1.0 + ratio) ** 2 + ratio**2
                self.first[one] = abs(deviation) ** 2 / size**2 / factor
            if len(path) == 4:
                before, ratio_before = self.deviation(path[:3])
                product = (before * deviation.conjugate()).real
                variance = -product / size**2 / (1.0 + 2.0 * ratio + ratio * ratio_before)
                total, weight = self.of.get(one, (0.0, 0.0))
                fade = math.exp((path[2][0] - path[3][0]) / 5.0)
                self.of[one] = total * fade + variance, weight * fade + 1.0

    @staticmethod
    def deviation(path: Sequence[tuple[float, complex]]) -> tuple[complex, float]:
        (t0, first), (t1, middle), (t2, last) = path
        ratio = (t2 - t1) / (t1 - t0)
        return last - middle - ratio * (middle - first), ratio

    def margin(self, track_id: int) -> float:
        total, weight = self.of.get(track_id, (self.first.get(track_id, math.inf), 1.0))
        return min(max(3.5 * math.sqrt(max(total / weight, 0.0)), 0.04), 0.1)


@dataclass
class OneZone:
    """State of one object at one zone."""

    polygon: Sequence[Place]
    inside: bool | None = None

    def see(self, point: Place, size: float) -> str | None:
        inside = is_inside(point, self.polygon)
        if self.inside is None:
            self.inside = inside
            return "appeared" if inside else None
        if inside == self.inside or from_border(point, self.polygon) <= 0.1 * size:
            return None
        self.inside = inside
        return "entered" if inside else "left"


@dataclass
class Slow:
    """Slow but simple implementation of the lines and zones of one camera."""

    config: CameraAnalytics
    lines: dict[tuple[int, str], OneLine] = field(default_factory=dict)
    zones: dict[tuple[int, str], OneZone] = field(default_factory=dict)
    seen: dict[int, tuple[float, str]] = field(default_factory=dict)  # last time, and class
    jitter: Jitter = field(default_factory=Jitter)

    def update(self, objects: Sequence[tuple[int, int, Box]], now_s: float) -> set[tuple[object, ...]]:
        happened: set[tuple[object, ...]] = set()
        for track_id in [one for one, (seen_s, _) in self.seen.items() if seen_s < now_s - FORGET_S - 1e-3]:
            happened |= self._forget(track_id)
        self.jitter.see({track_id: box for track_id, _, box in objects}, now_s)
        for track_id, class_id, box in objects:
            self.seen[track_id] = now_s, CLASSES[class_id]
            size = max(box[2] - box[0], box[3] - box[1])
            for line in self.config.lines:
                one = self.lines.setdefault((track_id, line.name), OneLine(line.points, line.anchor))
                direction = one.see(box, now_s, self.jitter.margin(track_id))
                happened |= self._crossed(track_id, line, direction)
            for zone in self.config.zones:
                if zone.classes is None or CLASSES[class_id] in zone.classes:
                    at = self.zones.setdefault((track_id, zone.name), OneZone(zone.polygon))
                    how = at.see(anchor_of(box, zone.anchor), size)
                    happened |= {(track_id, zone.name, how)} if how else set()
        return happened

    def _crossed(self, track_id: int, line: LineConfig, direction: str | None) -> set[tuple[object, ...]]:
        wanted = line.classes is None or self.seen[track_id][1] in line.classes
        if direction is None or not wanted or line.direction not in (direction, "both"):
            return set()
        return {(track_id, line.name, direction)}

    def _forget(self, track_id: int) -> set[tuple[object, ...]]:
        happened: set[tuple[object, ...]] = set()
        margin = self.jitter.margin(track_id)
        for line in self.config.lines:
            happened |= self._crossed(track_id, line, self.lines[track_id, line.name].lost(margin))
        for zone in self.config.zones:
            at = self.zones.pop((track_id, zone.name), None)
            if at is not None and at.inside:
                happened.add((track_id, zone.name, "lost"))
        del self.seen[track_id]
        self.jitter.of.pop(track_id, None)
        self.jitter.first.pop(track_id, None)
        return happened


def as_reported(event: Event) -> tuple[object, ...]:
    """Return an event in the form in which `Slow` reports events."""
    if event.kind == "line_crossed":
        return event.track_id, event.name, event.data["direction"]
    how = event.data["how"]
    return (
        event.track_id,
        event.name,
        {"zone_entered": "entered", "zone_left": "left"}[event.kind] if how == "crossed" else how,
    )


def some_config(rng: np.random.Generator) -> CameraAnalytics:
    """Return random lines and zones with dents. Each line or zone has its own anchor, direction, and classes."""
    lines, zones = [], []
    anchors = list(ANCHORS) if rng.random() < 0.5 else [str(rng.choice(list(ANCHORS)))]

    def common(name: str) -> dict[str, object]:
        classes = ["person", "car"] if rng.random() < 0.3 else None
        return {"name": name, "anchor": str(rng.choice(anchors)), "classes": classes}

    for at in range(rng.integers(0, 5)):
        points = np.round(rng.uniform(0, (WIDTH, HEIGHT), (2, 2)), rng.integers(0, 3)).tolist()
        lines.append({**common(f"line{at}"), "points": points, "direction": str(rng.choice(["in", "out", "both"]))})
    for at in range(rng.integers(0, 6)):
        x, y = rng.uniform((200, 200), (WIDTH - 200, HEIGHT - 200))
        radii = rng.uniform(40, 190, rng.integers(3, 12))
        turns = 2 * math.pi * np.arange(len(radii)) / len(radii)
        polygon = [(float(x + r * math.cos(t)), float(y + r * math.sin(t))) for r, t in zip(radii, turns, strict=True)]
        zones.append({**common(f"zone{at}"), "polygon": [(round(px, 1), round(py, 1)) for px, py in polygon]})
    return CameraAnalytics.model_validate({"lines": lines, "zones": zones})


@pytest.mark.parametrize("seed", range(30))
def test_events_match_a_simple_reference_implementation(seed: int) -> None:
    """The objects turn, stand, jitter, hide, and return with new ids, at a varying frame rate."""
    rng = np.random.default_rng(seed)
    config = some_config(rng)
    fast, slow = Analytics(config, "gate", CLASSES, WIDTH, HEIGHT, forget_s=FORGET_S), Slow(config)
    number = 12
    ids, classes = np.arange(1, number + 1), rng.integers(0, len(CLASSES), number)
    places, sizes = rng.uniform(0, (WIDTH, HEIGHT), (number, 2)), rng.uniform(20, 300, number)
    speeds = rng.normal(0, (20, 150)[seed % 2], (number, 2))
    now_s, events = 0.0, 0
    for _ in range(150):
        step_s = float(rng.choice([0.03, 0.1, 0.4]))
        now_s = round(now_s + step_s, 3)
        turned = rng.random((number, 1)) < 0.05
        speeds = np.where(turned, rng.normal(0, 100, (number, 2)) * (rng.random((number, 1)) < 0.7), speeds)
        speeds = np.where(
            (places < 0) | (places > (WIDTH, HEIGHT)), np.abs(speeds) * np.where(places < 0, 1, -1), speeds
        )
        places = places + speeds * step_s
        another = rng.random(number) < 0.01
        ids, classes = np.where(another, ids + 100, ids), np.where(another, (classes + 1) % len(CLASSES), classes)
        seen = rng.permutation(np.flatnonzero(rng.random(number) < 0.8))
        feet = (places + rng.normal(0, 0.03, (number, 2)) * sizes[:, None])[seen]
        half = 0.2 * sizes[seen]
        boxes = np.column_stack([feet[:, 0] - half, feet[:, 1] - sizes[seen], feet[:, 0] + half, feet[:, 1]])
        frame = Tracks(
            boxes.astype(np.float32),
            np.ones(len(seen), np.float32),
            classes[seen].astype(np.int32),
            ids[seen].astype(np.int64),
            np.zeros(len(seen), np.int64),
        )
        happened = fast.update(frame, round(now_s * 1e9))
        rows = zip(ids[seen].tolist(), classes[seen].tolist(), frame.boxes_xyxy.astype(float).tolist(), strict=True)
        assert {as_reported(event) for event in happened} == slow.update([(i, c, tuple(b)) for i, c, b in rows], now_s)
        events += len(happened)
    assert events > 0 or not (config.lines or config.zones)
