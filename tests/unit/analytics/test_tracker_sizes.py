"""Tests that published boxes follow the detections if objects grow, turn, or are cut off by the edge of the frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.unit.analytics.test_tracker import Box, detections, follow, ids
from vision.analytics.camera_analytics import Analytics
from vision.analytics.tracker import Tracker
from vision.evaluation.mot import overlaps
from vision.evaluation.simulation.actors import travel
from vision.evaluation.simulation.detector_errors import ErrorModel, SimulatedDetector
from vision.evaluation.simulation.oracle import camera_analytics
from vision.evaluation.simulation.projection import CameraView
from vision.evaluation.simulation.scenes import Scene
from vision.evaluation.simulation.truth import class_ids, class_names, observe
from vision.types import Detections, Event, Tracks

WIDTH, HEIGHT = 1280, 720


def clipped(box: Box) -> Box:
    x1, y1, x2, y2 = box
    return (max(x1, 0.0), max(y1, 0.0), min(x2, float(WIDTH)), min(y2, float(HEIGHT)))


def fits(boxes: Sequence[Box], results: Sequence[Tracks]) -> NDArray[np.float64]:
    """Return the IoU of each published box and its detection, except in the first frame."""
    pairs = list(zip(boxes, results, strict=True))[1:]
    assert all(len(tracks) == 1 for _, tracks in pairs)
    return np.array([overlaps(np.array([box]), tracks.boxes_xyxy.astype(np.float64))[0, 0] for box, tracks in pairs])


def followed(boxes: Sequence[Box], fps: float, score: float = 1.0) -> list[Tracks]:
    return follow(Tracker(frame_size_px=(WIDTH, HEIGHT)), [detections((box, score)) for box in boxes], fps)


def vehicle(left: float, top: float, width: float, height: float) -> Box:
    return (left, top, left + width, top + height)


@pytest.mark.parametrize("fps", [5.0, 10.0, 25.0])
@pytest.mark.parametrize("lengths_per_s", [0.3, 0.8, 1.5])
@pytest.mark.parametrize("edge", ["left", "right", "top", "bottom"])
def test_box_follows_an_object_that_enters_or_leaves_at_an_edge(edge: str, lengths_per_s: float, fps: float) -> None:
    """An object of 300x120 px or 120x300 px enters the frame at an edge, and leaves the frame at the same edge."""
    along = edge in ("left", "right")
    way = np.arange(-280.0, 100.0, 300.0 * lengths_per_s / fps)
    way = np.concatenate([way, way[::-1]])
    if edge in ("right", "bottom"):
        way = (WIDTH if along else HEIGHT) - 300.0 - way
    boxes = [clipped(vehicle(at, 300, 300, 120) if along else vehicle(500, at, 120, 300)) for at in way.tolist()]
    results = followed(boxes, fps)
    assert len(ids(results)) == 1
    assert fits(boxes, results).min() >= 0.9
    for tracks in results[1:]:
        assert (tracks.boxes_xyxy >= 0).all()
        assert (tracks.boxes_xyxy <= (WIDTH, HEIGHT, WIDTH, HEIGHT)).all()


@pytest.mark.parametrize("fps", [5.0, 10.0, 25.0])
@pytest.mark.parametrize("doubling_s", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("leaves", [False, True])
def test_box_follows_an_object_that_grows_or_shrinks(doubling_s: float, fps: float, leaves: bool) -> None:
    widths = 60.0 * 2.0 ** (np.arange(0.0, 2.9 * doubling_s, 1.0 / fps) / doubling_s)
    widths = widths[::-1] if leaves else widths
    boxes = [vehicle(640 - width / 2, 200, width, width * 0.8) for width in widths.tolist()]
    results = followed(boxes, fps)
    assert len(ids(results)) == 1
    quality = fits(boxes, results)
    assert np.median(quality) >= 0.95
    assert quality.min() >= 0.8


@pytest.mark.parametrize("score", [0.58, 0.7])
def test_box_of_low_score_follows_an_object_that_grows_quickly(score: float) -> None:
    widths = 60.0 * 2.0 ** np.arange(0.0, 2.9, 0.1)
    boxes = [vehicle(500 - width / 2, 300 - width / 3, width, width * 2 / 3) for width in widths.tolist()]
    results = followed(boxes, 10.0, score)
    assert len(ids(results)) == 1
    assert fits(boxes, results).min() >= 0.75


@pytest.mark.parametrize("fps", [5.0, 10.0, 25.0])
def test_box_follows_an_object_that_turns(fps: float) -> None:
    """Within two seconds, the width of the box changes from the width of a car's front to the length of its side."""
    widths = np.interp(np.arange(0.0, 4.0, 1.0 / fps), [1.0, 3.0], [100.0, 250.0])
    boxes = [vehicle(640 - width / 2, 300, width, 90) for width in widths.tolist()]
    results = followed(boxes, fps)
    assert len(ids(results)) == 1
    quality = fits(boxes, results)
    assert np.median(quality) >= 0.95
    assert quality.min() >= 0.75


@pytest.mark.parametrize("fps", [10.0, 25.0])
def test_single_box_of_half_an_object_does_not_change_the_track(fps: float) -> None:
    whole, half = vehicle(600, 200, 60, 160), vehicle(600, 200, 60, 80)
    boxes = [*[whole] * 20, half, *[whole] * 10]
    results = followed(boxes, fps, score=0.8)
    assert overlaps(np.array([whole]), results[20].boxes_xyxy.astype(np.float64))[0, 0] > 0.8


@pytest.mark.parametrize("fps", [5.0, 10.0, 15.0, 25.0])
@pytest.mark.parametrize("speed", [4.0, 8.0])
@pytest.mark.parametrize("offset", [-2.0, 0.0, 3.0])
def test_car_that_approaches_a_low_camera_is_counted_once(offset: float, speed: float, fps: float) -> None:
    view = CameraView(height_m=2.2, tilt_deg=8.0)
    car = travel("car", [(offset, 40.0), (offset, -6.0)], speed, 0.0)
    scene = Scene("approach", view, (car,), {"line": ((-8.0, 10.0), (8.0, 10.0))})
    analytics = Analytics(camera_analytics(scene), "camera", class_names(), view.width_px, view.height_px)
    tracker = Tracker(frame_size_px=(view.width_px, view.height_px))
    detector = SimulatedDetector(ErrorModel(), view, class_ids(scene), {}, 0)
    events: list[Event] = []
    for frame in observe(scene, np.arange(0.0, scene.duration_s, 1.0 / fps)):
        captured_ns = 10**9 + round(frame.time_s * 1e9)
        events += analytics.update(tracker.update(detector.detect(frame), captured_ns), captured_ns)
    assert [(event.kind, event.data["direction"]) for event in events] == [("line_crossed", "in")]


@pytest.mark.parametrize(("fps", "meters_per_s"), [(2.0, 8.0), (2.0, 9.0), (2.0, 10.0), (2.0, 11.0), (2.5, 10.0)])
def test_car_that_comes_towards_a_low_camera_keeps_its_track_at_a_low_frame_rate(
    fps: float, meters_per_s: float
) -> None:
    """The distance of the car decreases uniformly to 4 m. In the last step, its box grows by a factor of 2 to 2.4."""
    tracker, seen = Tracker(), list[list[int]]()
    for number, meters in enumerate((4.0 + np.arange(8)[::-1] * meters_per_s / fps).tolist()):
        px = 1100.0 / meters
        box = np.array([[640 + 1.6 * px, 240 + 0.7 * px, 640 + 3.4 * px, 240 + 2.2 * px]], np.float32)
        found = Detections(box, np.array([0.9], np.float32), np.zeros(1, np.int32))
        seen.append(tracker.update(found, round(number / fps * 1e9)).track_ids.tolist())
    assert len(seen[1]) == 1 and seen[1:] == seen[1:2] * 7
