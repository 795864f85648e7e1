"""CPU time of tracking and analytics on one core, compared with ByteTrack of the package `trackers`.

The objects are synthetic. The detector misses 5 % of the objects, the boxes jitter like the boxes of a real detector,
and boxes with low scores cover the whole frame. The trackers process the same frames alternately, so that other
programs on the machine slow down both trackers equally.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vision.analytics.camera_analytics import Analytics
from vision.analytics.geometry import ZoneSet
from vision.analytics.tracker import Tracker
from vision.config.analytics import CameraAnalytics, LineConfig, ZoneConfig
from vision.types import Detections, Tracks

_STEP_NS = 100_000_000
_WIDTH, _HEIGHT = 1920, 1080
_TURN = 50  # frames that a tracker processes before the other tracker continues


def measure(quick: bool = False) -> Mapping[str, Any]:
    """Measure the time per frame. Return the median and the 99th percentile, in us, of each case."""
    frames = 100 if quick else 600
    results: dict[str, Any] = {"adding 100 numbers (ns)": _pace_ns()}  # cost of a small NumPy call
    for objects, unsure in ((6, 10), (10, 10), (100, 0), (100, 50)):
        crowd = make_crowd(objects, unsure, frames)
        updates = {"vision": _our_update()}
        theirs = _their_update()
        if theirs is not None:
            updates["trackers.ByteTrackTracker"] = theirs
        entry: dict[str, Any] = _costs(updates, crowd)
        if theirs is not None:
            entry["ratio"] = entry["trackers.ByteTrackTracker"]["p50_us"] / entry["vision"]["p50_us"]
        results[f"{objects} objects, {unsure} unsure boxes"] = entry
    results["analytics"] = {
        f"{objects} tracks at {speed:g} px/s, {zones} zones, {lines} lines": _analytics_cost(
            objects, speed, (zones, lines), frames
        )
        for objects, zones, speed in ((10, 4, 60.0), (100, 20, 10.0), (100, 20, 60.0), (200, 20, 60.0))
        for lines in (0, 4)
    }
    results["points in polygons, 200 tracks, 20 zones"] = _geometry_cost(100 if quick else 1000)
    return results


def _pace_ns() -> float:
    numbers = np.ones(100)
    times = []
    for _ in range(200):
        started = time.perf_counter_ns()
        for _ in range(50):
            np.add(numbers, numbers)
        times.append((time.perf_counter_ns() - started) / 50)
    return float(np.median(times))


def make_crowd(objects: int, unsure: int, frames: int, seed: int = 0) -> list[Detections]:
    """Return the detections of `frames` frames: people who turn at the border, and `unsure` boxes with low scores."""
    rng = np.random.default_rng(seed)
    place = rng.uniform((50, 200), (_WIDTH - 50, _HEIGHT - 50), (objects, 2))
    speed = rng.normal(0, 60, (objects, 2))
    height = rng.uniform(60, 160, objects)[:, None]
    result = []
    for _ in range(frames):
        place = place + speed * _STEP_NS * 1e-9
        speed = np.where((place < (50, 200)) | (place > (_WIDTH - 50, _HEIGHT - 50)), -speed, speed)
        seen = rng.random(objects) < 0.95
        foot = (place + rng.normal(0, 0.04, (objects, 2)) * height)[seen]
        half = 0.2 * height[seen]
        boxes = np.hstack([foot[:, :1] - half, foot[:, 1:] - height[seen], foot[:, :1] + half, foot[:, 1:]])
        strewn = rng.uniform((0, 0), (_WIDTH - 40, _HEIGHT - 90), (unsure, 2))
        boxes = np.concatenate([boxes, np.hstack([strewn, strewn + np.array([30, 80])])])
        scores = np.concatenate([rng.beta(8, 3, int(seen.sum())), rng.uniform(0.15, 0.35, unsure)])
        result.append(Detections(boxes.astype(np.float32), scores.astype(np.float32), np.zeros(len(scores), np.int32)))
    return result


def _our_update() -> Callable[[Detections, int], object]:
    tracker = Tracker()
    return lambda detections, at: tracker.update(detections, at * _STEP_NS)


def _their_update() -> Callable[[Detections, int], object] | None:
    try:
        supervision: Any = importlib.import_module("supervision")
        trackers: Any = importlib.import_module("trackers")
    except ImportError:
        return None
    tracker = trackers.ByteTrackTracker(frame_rate=10.0)

    def update(detections: Detections, _at: int) -> object:
        return tracker.update(
            supervision.Detections(
                xyxy=detections.boxes_xyxy, confidence=detections.scores, class_id=detections.class_ids
            )
        )

    return update


def _costs(
    updates: Mapping[str, Callable[[Detections, int], object]], crowd: Sequence[Detections]
) -> dict[str, Mapping[str, float]]:
    times: dict[str, list[int]] = {name: [] for name in updates}
    for first in range(0, len(crowd), _TURN):
        for name, update in updates.items():
            for at in range(first, min(first + _TURN, len(crowd))):
                started = time.thread_time_ns()
                update(crowd[at], at)
                times[name].append(time.thread_time_ns() - started)
    return {name: _percentiles(values[len(values) // 10 :]) for name, values in times.items()}


def _percentiles(times_ns: Sequence[int]) -> Mapping[str, float]:
    p50, p99 = np.percentile(np.array(times_ns) / 1e3, (50, 99))
    return {"p50_us": float(p50), "p99_us": float(p99)}


def make_polygons(number: int, seed: int = 1) -> list[list[tuple[float, float]]]:
    """Return `number` random zones with six corners each."""
    rng = np.random.default_rng(seed)
    polygons = []
    for _ in range(number):
        (x, y), radius = rng.uniform((200, 250), (_WIDTH - 200, _HEIGHT - 250)), rng.uniform(80, 180)
        turns = np.arange(6) * np.pi / 3
        polygons.append([(round(x + radius * np.cos(t), 1), round(y + radius * np.sin(t), 1)) for t in turns])
    return polygons


def _analytics_cost(objects: int, speed_px_s: float, shapes: tuple[int, int], frames: int) -> Mapping[str, float]:
    """Measure the time per frame of one camera's analytics. `shapes` is (number of zones, number of lines)."""
    zones, lines = shapes
    config = CameraAnalytics(
        lines=tuple(
            LineConfig(name=f"line{k}", points=((100, 200 + 200 * k), (1800, 200 + 200 * k))) for k in range(lines)
        ),
        zones=tuple(
            ZoneConfig(name=f"zone{k}", polygon=tuple(polygon), crowd_threshold=3, dwell_s=10)
            for k, polygon in enumerate(make_polygons(zones))
        ),
    )
    stage = Analytics(config, "perf", ["person"], _WIDTH, _HEIGHT)
    ids = np.arange(1, objects + 1)
    rng = np.random.default_rng(2)
    place = rng.uniform((50, 200), (_WIDTH - 50, _HEIGHT - 50), (objects, 2))
    speed = rng.normal(0, speed_px_s, (objects, 2))
    times, happened = [], 0
    for at in range(frames):
        place = place + speed * _STEP_NS * 1e-9
        speed = np.where((place < (50, 200)) | (place > (_WIDTH - 50, _HEIGHT - 50)), -speed, speed)
        seen = rng.random(objects) < 0.95
        feet, number = (place + rng.normal(0, 1.0, (objects, 2)))[seen], int(seen.sum())
        boxes = np.hstack([feet - np.array([20, 100]), feet + np.array([20, 0])]).astype(np.float32)
        zeros = np.zeros(number, np.int64)
        frame = Tracks(boxes, np.ones(number, np.float32), zeros.astype(np.int32), ids[seen], zeros)
        started = time.thread_time_ns()
        happened += len(stage.update(frame, at * _STEP_NS))
        times.append(time.thread_time_ns() - started)
    return {**_percentiles(times[len(times) // 10 :]), "events_per_frame": happened / frames}


def _geometry_cost(repetitions: int) -> Mapping[str, float]:
    polygons = make_polygons(20)
    rng = np.random.default_rng(3)
    x, y = rng.uniform(0, _WIDTH, 200), rng.uniform(0, _HEIGHT, 200)
    zones, points = ZoneSet([[polygon] for polygon in polygons]), (x + 1j * y)[:, None]
    ways: dict[str, Callable[[], Any]] = {"vision": lambda: zones.contain(points)}
    try:
        shapely: Any = importlib.import_module("shapely")
    except ImportError:
        shapely = None
    if shapely is not None:
        shapes = np.array([shapely.Polygon(polygon) for polygon in polygons])
        shapely.prepare(shapes)
        ways["shapely, prepared"] = lambda: shapely.contains_xy(shapes[None], x[:, None], y[:, None])
    result: dict[str, float] = {}
    for name, way in ways.items():
        times = []
        for _ in range(repetitions):
            started = time.thread_time_ns()
            way()
            times.append(time.thread_time_ns() - started)
        result[name] = float(np.median(times)) / 1e3
    return result
