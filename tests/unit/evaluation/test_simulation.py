"""Tests that the simulator agrees with geometry, with its own error model, and with known results of simple scenes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vision.evaluation.simulation.actors import rest, travel
from vision.evaluation.simulation.detector_errors import DETECTORS, ErrorModel, SimulatedDetector
from vision.evaluation.simulation.oracle import (
    TrueCrossing,
    TrueStay,
    camera_analytics,
    true_crossings,
    true_occupancy,
    true_paths,
    true_speed_kmh,
    true_stays,
)
from vision.evaluation.simulation.projection import CameraView
from vision.evaluation.simulation.scenes import SCENES, Obstacle, Scene, build_scene
from vision.evaluation.simulation.simulate import frame_times
from vision.evaluation.simulation.truth import class_ids, class_names, confused_class_ids, observe

VIEW = CameraView(height_m=3.0, tilt_deg=15.0)
LINE = {"line": ((-5.0, 10.0), (5.0, 10.0))}
ZONE_M = 4.0  # width of the zone
ZONE = {"zone": ((-2.0, 8.0), (2.0, 8.0), (2.0, 12.0), (-2.0, 12.0))}


def _crossings(scene: Scene) -> list[TrueCrossing]:
    return list(true_crossings(list(true_paths(scene)), camera_analytics(scene)))


def _stays(scene: Scene) -> list[TrueStay]:
    return list(true_stays(list(true_paths(scene)), camera_analytics(scene), scene.view))


def test_height_in_pixels_follows_the_pinhole_model() -> None:
    level = CameraView(height_m=0.86, tilt_deg=0.0, field_of_view_deg=90.0)
    boxes, distances = level.boxes(np.array([[0.0, 10.0]]), np.zeros(1), (0.001, 0.001, 1.72), is_round=True)
    assert boxes[0, 3] - boxes[0, 1] == pytest.approx(1.72 / 10.0 * level.width_px / 2, rel=1e-3)
    assert (boxes[0, 1] + boxes[0, 3]) / 2 == pytest.approx(level.height_px / 2, abs=0.1)
    assert distances[0] == pytest.approx(10.0)


def test_ground_points_survive_a_round_trip_through_the_frame() -> None:
    places = np.array([(-3.0, 6.0, 0.0), (2.0, 20.0, 0.0)])
    pixels, _ = VIEW.project(places)
    for (x_px, y_px), (x, y, _) in zip(pixels, places, strict=True):
        assert VIEW.to_ground(float(x_px), float(y_px)) == pytest.approx((x, y))


def test_pixel_above_the_horizon_shows_no_ground() -> None:
    with pytest.raises(ValueError):
        VIEW.to_ground(640.0, 0.0)


def test_object_around_the_camera_is_clipped_and_one_behind_it_is_absent() -> None:
    places = np.array([[0.0, 0.5], [0.0, -9.0]])
    boxes, _ = VIEW.boxes(places, np.zeros(2), (4.4, 1.8, 1.5), is_round=False)
    assert np.isfinite(boxes[0]).all()
    assert np.isnan(boxes[1]).all()


@pytest.mark.parametrize("distortion", [0.0, -0.1, 0.1])
def test_boxes_of_an_object_farther_away_are_smaller(distortion: float) -> None:
    view = CameraView(height_m=3.0, tilt_deg=15.0, distortion=distortion)
    places = np.stack([np.zeros(20), np.linspace(5.0, 40.0, 20)], axis=1)
    boxes, _ = view.boxes(places, np.full(20, math.pi / 2), (4.4, 1.8, 1.5), is_round=False)
    heights = boxes[:, 3] - boxes[:, 1]
    assert (np.diff(heights) < 0).all()


def test_walk_has_the_configured_speed_and_end() -> None:
    plain = travel("person", [(0.0, 0.0), (0.0, 12.0)], 1.5, 2.0)
    assert plain.times_s[0] == 2.0
    assert plain.times_s[-1] == pytest.approx(2.0 + 8.0, abs=0.1)
    stopping = travel("person", [(0.0, 0.0), (0.0, 12.0)], 1.5, 2.0, stops={0.5: 6.0})
    standing = stopping.times_s[stopping.speeds(stopping.times_s) < 0.01]
    assert np.ptp(standing) == pytest.approx(6.0, abs=0.5)
    assert stopping.places(standing)[:, 1] == pytest.approx(np.full(len(standing), 6.0), abs=0.1)


def test_object_at_rest_keeps_its_heading() -> None:
    car = rest("car", (3.0, 9.0), 0.5, 20.0)
    assert car.headings(np.array([0.0, 5.0, 19.0])) == pytest.approx(np.full(3, 0.5), abs=1e-6)


def test_obstacle_hides_what_is_behind_it() -> None:
    walker = travel("person", [(-6.0, 12.0), (6.0, 12.0)], 1.5, 0.0)
    wall = Obstacle((0.0, 9.0), (2.0, 0.3, 3.0))
    frames = observe(Scene("wall", VIEW, (walker,), obstacles=(wall,)), np.arange(0.0, 8.0, 0.1))
    visible = [float(frame.visible[0]) if len(frame.ids) else 0.0 for frame in frames]
    assert visible[5] == visible[-5] == 1.0
    assert min(visible) == 0.0
    assert any(0.2 < part < 0.8 for part in visible)


@pytest.mark.parametrize(("start", "end", "direction"), [(16.0, 5.0, "in"), (5.0, 16.0, "out")])
def test_walk_over_a_line_is_one_crossing(start: float, end: float, direction: str) -> None:
    scene = Scene("one", VIEW, (travel("person", [(0.0, start), (0.0, end)], 1.4, 0.0),), LINE)
    crossings = _crossings(scene)
    assert [(crossing.actor, crossing.line, crossing.direction) for crossing in crossings] == [(1, "line", direction)]


@pytest.mark.parametrize("points", [[(7.0, 16.0), (7.0, 5.0)], [(0.0, 16.0), (0.0, 10.6), (0.0, 16.0)]])
def test_path_that_does_not_cross_the_line_is_not_counted(points: list[tuple[float, float]]) -> None:
    scene = Scene("none", VIEW, (travel("person", points, 1.4, 0.0),), LINE)
    assert _crossings(scene) == []


def test_occupancy_counts_objects_in_the_zone() -> None:
    actors = (rest("person", (0.0, 10.0), 0.0, 20.0), travel("person", [(-6.0, 10.0), (6.0, 10.0)], 1.0, 0.0))
    scene = Scene("zone", VIEW, actors, zones_m=ZONE)
    occupancy = true_occupancy(_stays(scene), camera_analytics(scene), np.array([1.0, 6.0, 11.0]))
    assert occupancy[:, 0].tolist() == [1.0, 2.0, 1.0]


def test_stay_lasts_as_long_as_the_object_is_in_the_zone() -> None:
    speed = 0.5
    scene = Scene("zone", VIEW, (travel("person", [(-6.0, 10.0), (6.0, 10.0)], speed, 0.0),), zones_m=ZONE)
    (stay,) = _stays(scene)
    assert (stay.actor, stay.zone) == (1, "zone")
    assert stay.duration_s == pytest.approx(ZONE_M / speed, abs=0.2)


def test_object_that_stands_on_the_border_of_a_zone_has_one_stay() -> None:
    """The path crosses the border repeatedly, by less than a tenth of the object's size."""
    places = [(-3.0, 10.0), *((-1.9 - 0.1 * (at % 2), 10.0) for at in range(20)), (3.0, 10.0)]
    scene = Scene("zone", VIEW, (travel("person", places, 0.5, 0.0),), zones_m=ZONE)
    assert len(_stays(scene)) == 1


def test_zone_at_the_edge_of_the_frame_contains_objects_that_the_edge_cuts_off() -> None:
    zone = {"near": ((-3.0, 2.0), (3.0, 2.0), (3.0, 7.0), (-3.0, 7.0))}
    scene = Scene(
        "near", VIEW, (rest("person", (0.0, 3.2), 0.0, 30.0), rest("person", (9.0, 30.0), 0.0, 10.0)), zones_m=zone
    )
    bottom = camera_analytics(scene).zones[0].polygon[0][1]
    assert bottom == VIEW.height_px
    assert [stay.actor for stay in _stays(scene)] == [1]


def test_true_speed_is_that_of_the_last_second() -> None:
    walker = travel("person", [(0.0, 0.0), (0.0, 20.0)], 1.5, 0.0, stops={0.5: 5.0})
    assert true_speed_kmh(walker, 4.0) == pytest.approx(5.4, abs=0.01)
    assert true_speed_kmh(walker, 10.0) == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("name", SCENES)
def test_ground_points_of_a_scene_are_where_the_camera_shows_them(name: str) -> None:
    scene = build_scene(name, 0)
    ground = camera_analytics(scene).ground
    assert ground is not None
    places = np.array([(x, y, 0.0) for x, y in ground.metres])
    pixels, _ = scene.view.project(places)
    assert np.abs(pixels - np.array(ground.points)).max() <= 0.1
    assert np.array(ground.points).min() >= 0 and (np.array(ground.points) <= (1280, 720)).all()


@pytest.mark.parametrize("name", SCENES)
def test_scene_is_repeatable_and_has_crossings(name: str) -> None:
    scene, same = build_scene(name, 3), build_scene(name, 3)
    crossings = _crossings(scene)
    assert crossings == _crossings(same)
    assert len(crossings) >= 8
    for frame in observe(scene, np.arange(5.0, 15.0, 1.0)):
        assert (frame.boxes_xyxy[:, :2] >= 0).all()
        assert (frame.boxes_xyxy[:, 2:] <= (scene.view.width_px, scene.view.height_px)).all()
        assert (frame.visible > 0).all()


def _detected(errors: ErrorModel, frames_per_s: float, seed: int = 0) -> tuple[float, np.ndarray]:
    """Return the fraction of frames with a detection, and the horizontal center errors as fractions of the width."""
    scene = Scene("still", VIEW, (rest("person", (0.0, 10.0), 0.0, 149.0),))
    frames = observe(scene, np.arange(0.0, 140.0, 1.0 / frames_per_s))
    detector = SimulatedDetector(errors, VIEW, class_ids(scene), confused_class_ids(scene), seed)
    offsets = []
    for frame in frames:
        detections = detector.detect(frame)
        if len(detections):
            box, true = detections.boxes_xyxy[0].astype(np.float64), frame.boxes_xyxy[0]
            offsets.append(((box[0] + box[2]) - (true[0] + true[2])) / 2 / (true[2] - true[0]))
    return len(offsets) / len(frames), np.array(offsets)


def test_detector_without_errors_reports_the_truth() -> None:
    part, offsets = _detected(ErrorModel(), 5.0)
    assert part == 1.0
    assert np.abs(offsets).max() < 1e-4


@pytest.mark.parametrize("frames_per_s", [4.0, 20.0])
def test_detector_errors_have_the_rates_of_the_model_at_any_frame_rate(frames_per_s: float) -> None:
    errors = ErrorModel(recall=(0.8,) * 5, jitter=(0.1, 0.0, 0.0, 0.0))
    parts, offsets = zip(*(_detected(errors, frames_per_s, seed) for seed in range(3)), strict=True)
    assert np.mean(parts) == pytest.approx(0.8, abs=0.06)
    assert np.concatenate(offsets).std() == pytest.approx(0.1, abs=0.015)


@pytest.mark.parametrize("frames_per_s", [4.0, 20.0])
def test_numbers_of_second_and_false_boxes_do_not_depend_on_the_frame_rate(frames_per_s: float) -> None:
    scene = Scene("still", VIEW, (rest("person", (0.0, 10.0), 0.0, 149.0),))
    frames = observe(scene, np.arange(0.0, 140.0, 1.0 / frames_per_s))
    for errors, expected in ((ErrorModel(double=0.4), 0.4), (ErrorModel(false_per_frame=3.0), 3.0)):
        detector = SimulatedDetector(errors, VIEW, class_ids(scene), confused_class_ids(scene), 0)
        extra = [len(detector.detect(frame)) - 1 for frame in frames]
        assert np.mean(extra) == pytest.approx(expected, rel=0.2)


def test_error_models_are_ordered() -> None:
    exact, good, poor = DETECTORS["exact"], DETECTORS["good"], DETECTORS["poor"]
    assert exact == ErrorModel()
    assert good.jitter < poor.jitter and good.false_per_frame < poor.false_per_frame and good.double < poor.double
    assert all(list(model.recall) == sorted(model.recall) for model in DETECTORS.values())


def test_class_flickers_only_among_classes_that_are_confused() -> None:
    scene = Scene("still", VIEW, (rest("truck", (0.0, 14.0), 0.0, 149.0), rest("person", (4.0, 10.0), 0.0, 149.0)))
    detector = SimulatedDetector(ErrorModel(flicker=0.3), VIEW, class_ids(scene), confused_class_ids(scene), 0)
    names = class_names()
    seen = {
        names[class_id]
        for frame in observe(scene, np.arange(0.0, 100.0, 0.5))
        for class_id in detector.detect(frame).class_ids
    }
    assert seen == {"truck", "bus", "car", "person"}


def test_gaps_and_bursts_leave_out_frames() -> None:
    steady = frame_times(60.0, 10.0, "steady", 0)
    assert len(steady) == 600
    gaps, bursts = frame_times(60.0, 10.0, "gaps", 0), frame_times(60.0, 10.0, "bursts", 0)
    assert np.diff(gaps).max() >= 0.4
    assert np.diff(bursts).max() == pytest.approx(0.5)
    assert len(gaps) < 600 > len(bursts)
