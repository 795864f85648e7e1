"""Tests that the scenes contain every described situation, and that the program handles exact detections."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest

from vision.evaluation.simulation.actors import KINDS, Actor, travel
from vision.evaluation.simulation.detector_errors import DETECTORS, SimulatedDetector
from vision.evaluation.simulation.projection import CameraView, FloatArray
from vision.evaluation.simulation.scenes import SCENES, Scene, build_scene
from vision.evaluation.simulation.simulate import frame_times, nearest_overlaps, open_tracker, prepare_scene, run_scene
from vision.evaluation.simulation.truth import TrueFrame, class_ids, confused_class_ids, observe

VIEW = CameraView(height_m=2.2, tilt_deg=8.0)
SPEEDS = {"person": 1.4, "bicycle": 4.5, "car": 8.0, "truck": 6.0}
TO_S = 24.0  # end of the part of each scene in which boxes are compared


@cache
def _frames(name: str) -> tuple[Scene, list[TrueFrame]]:
    scene = build_scene(name, 0)
    return scene, observe(scene, np.arange(0.0, scene.duration_s, 0.5))


def _kinds(name: str) -> set[str]:
    return {actor.kind.class_name for actor in build_scene(name, 0).actors}


def test_scenes_contain_every_kind_of_object() -> None:
    assert set().union(*map(_kinds, SCENES)) == set(KINDS)


def test_every_edge_of_the_frame_cuts_off_objects() -> None:
    cut: Counter[str] = Counter()
    for name in ("edges", "gate", "doorway"):
        scene, frames = _frames(name)
        boxes = np.concatenate([frame.boxes_xyxy for frame in frames])
        cut.update(left=int((boxes[:, 0] <= 0).sum()), top=int((boxes[:, 1] <= 0).sum()))
        right, bottom = boxes[:, 2] >= scene.view.width_px, boxes[:, 3] >= scene.view.height_px
        cut.update(right=int(right.sum()), bottom=int(bottom.sum()))
    assert min(cut[edge] for edge in ("left", "top", "right", "bottom")) >= 20


def test_a_vehicle_fills_almost_half_of_the_frame() -> None:
    scene, frames = _frames("gate")
    boxes = np.concatenate([frame.boxes_xyxy for frame in frames])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    assert areas.max() >= 0.4 * scene.view.width_px * scene.view.height_px


@pytest.mark.parametrize(("name", "least"), [("occlusion", 100), ("groups", 100), ("waiting", 100), ("parking", 30)])
def test_objects_hide_each_other(name: str, least: int) -> None:
    _, frames = _frames(name)
    assert sum(int((frame.visible < 0.6).sum()) for frame in frames) >= least


@pytest.mark.parametrize(("name", "least_s"), [("stops", 2.0), ("parking", 10.0), ("waiting", 6.0), ("gate", 1.5)])
def test_objects_stop_and_start_again(name: str, least_s: float) -> None:
    stopped = 0
    for actor in build_scene(name, 0).actors:
        speeds = actor.speeds(np.arange(actor.times_s[0], actor.times_s[-1], 0.1))
        stopped += (speeds < 0.05).sum() * 0.1 >= least_s and speeds[-1] > 0.3
    assert stopped >= 4


def _overlaps(name: str, frames_per_s: float) -> FloatArray:
    """Return the IoU of each published box with its detection, from the start of the scene `name` to `TO_S`."""
    scene = build_scene(name, 0)
    times_s = frame_times(TO_S, frames_per_s, "steady", 0)
    detector = SimulatedDetector(DETECTORS["exact"], scene.view, class_ids(scene), confused_class_ids(scene), 0)
    tracker = open_tracker(scene)
    found = [np.zeros(0)]
    for frame in observe(scene, times_s):
        detections = detector.detect(frame)
        found.append(nearest_overlaps(tracker.update(detections, round(frame.time_s * 1e9)), detections))
    return np.concatenate(found)


@pytest.mark.parametrize("frames_per_s", [10.0, 25.0])
@pytest.mark.parametrize("name", SCENES)
def test_published_boxes_are_close_to_exact_detections(name: str, frames_per_s: float) -> None:
    found = _overlaps(name, frames_per_s)
    assert len(found) >= 100
    assert np.median(found) >= 0.95
    assert np.quantile(found, 0.01) >= 0.8


@pytest.mark.parametrize("frames_per_s", [5.0, 10.0, 25.0])
@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_object_that_approaches_or_leaves_is_counted_once(kind: str, leaves: bool, frames_per_s: float) -> None:
    points = [(-2.5, 45.0), (-2.5, -6.0)]
    actor = travel(kind, points[::-1] if leaves else points, SPEEDS[kind], 0.0)
    scene = Scene("one", VIEW, (actor,), {"gate": ((-9.0, 10.0), (9.0, 10.0))})
    run = run_scene(prepare_scene(scene, 0, frames_per_s), DETECTORS["exact"])
    directions = [event.data["direction"] for _, event in run.events if event.kind == "line_crossed"]
    assert directions == ["out" if leaves else "in"]


TURNS = {
    "turns around before the line": [],
    "turns around behind the line": ["in", "out"],
    "turns aside before the line": [],
    "turns aside behind the line": ["in"],
    "comes from the side": ["in"],
}
"""Crossings of a line 12 m from the camera, for each path of an object that turns."""


def _path(turn: str, reach_m: float) -> list[tuple[float, float]]:
    """Return a path whose turns have a radius of about `reach_m`."""
    around = 9.0 if "behind" in turn else 14.5
    if "around" in turn:
        return [(-reach_m, 26.0), (-reach_m, around), (reach_m, around), (reach_m, 26.0)]
    if "aside" in turn:
        return [(0.0, 26.0), (0.0, around), (9.0, around)]
    return [(-9.0, 16.0), (0.0, 16.0), (0.0, 8.0)]


@pytest.mark.parametrize("frames_per_s", [2.0, 5.0, 30.0])
@pytest.mark.parametrize(("height_m", "tilt_deg"), [(2.5, 10.0), (9.0, 32.0)])
@pytest.mark.parametrize(("kind", "speed"), [("person", 1.2), ("person", 2.2), ("car", 3.0), ("car", 5.0)])
def test_object_that_turns_keeps_its_id_and_is_counted_once(
    kind: str, speed: float, height_m: float, tilt_deg: float, frames_per_s: float
) -> None:
    found = {}
    for turn in TURNS:
        reach_m = max(0.8, speed**2 / 4.0)  # a lateral acceleration of at most 4 m/s²
        scene = Scene(
            "one",
            CameraView(height_m=height_m, tilt_deg=tilt_deg),
            (travel(kind, _path(turn, reach_m), speed, 0.0),),
            {"gate": ((-12.0, 12.0), (12.0, 12.0))},
        )
        run = run_scene(prepare_scene(scene, 0, frames_per_s), DETECTORS["exact"])
        assert len(set(run.boxes.ids.tolist())) == 1, turn
        found[turn] = [event.data["direction"] for _, event in run.events if event.kind == "line_crossed"]
    assert found == TURNS


@pytest.mark.parametrize("frames_per_s", [2.0, 5.0, 30.0])
@pytest.mark.parametrize(("height_m", "tilt_deg"), [(2.5, 10.0), (9.0, 32.0)])
def test_car_that_turns_on_the_spot_beside_a_line_keeps_its_id_and_is_not_counted(
    height_m: float, tilt_deg: float, frames_per_s: float
) -> None:
    angles = np.linspace(0.0, 4.0 * np.pi, 200)
    places = np.stack([0.2 * np.cos(angles), 15.5 + 0.2 * np.sin(angles)], axis=1)
    actor = Actor(KINDS["car"], np.linspace(0.0, 8.0, 200), places)
    view = CameraView(height_m=height_m, tilt_deg=tilt_deg)
    prepared = prepare_scene(Scene("one", view, (actor,), {"gate": ((-12.0, 12.0), (12.0, 12.0))}), 0, frames_per_s)
    ratios = [
        np.divide(*(frame.boxes_xyxy[0, 2:] - frame.boxes_xyxy[0, :2])) for frame in prepared.frames if len(frame.ids)
    ]
    assert max(ratios) > 1.4 * min(ratios)
    run = run_scene(prepared, DETECTORS["exact"])
    assert len(set(run.boxes.ids.tolist())) == 1
    assert not [event for _, event in run.events if event.kind == "line_crossed"]
