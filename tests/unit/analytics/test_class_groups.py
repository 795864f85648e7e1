"""Tests that an object with several classes of one group has one track, whose class is the most frequent class."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.analytics.test_tracker import Box, detections, follow, ids
from vision.analytics.class_groups import DEFAULT_GROUPS, ClassGroups, single_boxes
from vision.analytics.geometry import iou
from vision.analytics.tracker import Tracker
from vision.config import TrackConfig
from vision.stages.analytics import TrackStage
from vision.types import Detections, FrameMeta, Result, Timing, Tracks

NAMES = ("person", "bicycle", "car", "motorcycle", "bus", "truck")
PERSON, BICYCLE, CAR, MOTORCYCLE, BUS, TRUCK = range(len(NAMES))
VEHICLE: Box = (200.0, 200.0, 320.0, 280.0)
OTHER_VEHICLE: Box = (500.0, 200.0, 620.0, 280.0)


def vehicle_tracker(groups: tuple[tuple[str, ...], ...] = DEFAULT_GROUPS) -> Tracker:
    return Tracker(groups=ClassGroups(NAMES, groups))


def frames_of(class_ids: Iterable[int], score: float = 0.8) -> list[Detections]:
    return [detections((VEHICLE, score, class_id)) for class_id in class_ids]


@pytest.mark.parametrize("fps", [2.5, 10, 30])
@pytest.mark.parametrize("other", [BUS, TRUCK])
def test_class_that_changes_every_two_seconds_keeps_one_id(fps: float, other: int) -> None:
    period = round(2 * fps)
    results = follow(vehicle_tracker(), frames_of([CAR, *([CAR] * period + [other] * period) * 8]), fps)
    assert len(ids(results)) == 1
    assert all(len(tracks) == 1 for tracks in results[1:])
    changes = np.diff([tracks.class_ids[0] for tracks in results[1:]])
    assert np.count_nonzero(changes) <= 1


@pytest.mark.parametrize("other", [BUS, TRUCK])
@pytest.mark.parametrize("share", [0.6, 0.8, 0.95])
def test_class_of_a_flickering_object_is_the_majority(other: int, share: float) -> None:
    rng = np.random.default_rng(3)
    seen = np.where(rng.random(200) < share, other, CAR)
    results = follow(vehicle_tracker(), frames_of(seen))
    assert len(ids(results)) == 1
    assert {int(tracks.class_ids[0]) for tracks in results[100:]} == {other}


def test_three_classes_keep_one_id() -> None:
    results = follow(vehicle_tracker(), frames_of([CAR, BUS, TRUCK] * 20))
    assert len(ids(results)) == 1


def test_few_wrong_frames_at_the_start_do_not_decide_the_class() -> None:
    results = follow(vehicle_tracker(), frames_of([TRUCK] * 3 + [CAR] * 10))
    assert results[-1].class_ids.tolist() == [CAR]


@pytest.mark.parametrize("first", [CAR, TRUCK])
def test_two_boxes_of_one_vehicle_are_one_track(first: int) -> None:
    near: Box = (204.0, 202.0, 322.0, 284.0)
    frames = [detections((VEHICLE, 0.8, first), (near, 0.7, TRUCK + CAR - first))] * 10
    results = follow(vehicle_tracker(), frames)
    assert len(ids(results)) == 1
    assert {int(tracks.class_ids[0]) for tracks in results[1:]} == {first}


def test_weak_second_box_is_not_a_second_track() -> None:
    frames = [detections((VEHICLE, 0.8, CAR), (VEHICLE, 0.2, BUS))] * 10
    assert len(ids(follow(vehicle_tracker(), frames))) == 1


def test_vehicles_next_to_each_other_stay_two_tracks() -> None:
    frames = [detections((VEHICLE, 0.8, CAR), (OTHER_VEHICLE, 0.7, TRUCK))] * 10
    results = follow(vehicle_tracker(), frames)
    assert len(ids(results)) == 2
    assert sorted(results[-1].class_ids.tolist()) == [CAR, TRUCK]


def test_classes_without_a_group_stay_different_objects() -> None:
    frames = [detections((VEHICLE, 0.8, PERSON), (VEHICLE, 0.8, BICYCLE))] * 10
    assert len(ids(follow(vehicle_tracker(), frames))) == 2
    assert len(ids(follow(vehicle_tracker(), frames_of([BICYCLE] * 5 + [MOTORCYCLE] * 5)))) == 2


def test_configured_group_replaces_the_default() -> None:
    groups = (("bicycle", "motorcycle"),)
    assert len(ids(follow(vehicle_tracker(groups), frames_of([BICYCLE, MOTORCYCLE] * 10)))) == 1
    assert len(ids(follow(vehicle_tracker(groups), frames_of([CAR] * 5 + [TRUCK] * 5)))) == 2


def test_object_found_again_with_another_class_keeps_its_id() -> None:
    frames = [*frames_of([CAR] * 10), *[detections()] * 8, *frames_of([TRUCK] * 5)]
    results = follow(vehicle_tracker(), frames)
    assert len(ids(results)) == 1
    assert results[-1].class_ids.tolist() == [CAR]


@pytest.mark.parametrize("class_id", [-1, len(NAMES), 999])
def test_class_without_a_name_is_its_own_group(class_id: int) -> None:
    frames = [detections((VEHICLE, 0.8, class_id), (OTHER_VEHICLE, 0.8, CAR))] * 5
    results = follow(vehicle_tracker(), frames)
    assert len(ids(results)) == 2
    assert sorted(results[-1].class_ids.tolist()) == sorted([class_id, CAR])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from([PERSON, CAR, BUS, TRUCK]), st.floats(0.1, 1.0))))
def test_no_two_kept_boxes_of_a_group_overlap_and_every_other_box_has_a_better_one(
    rows: list[tuple[int, int, float]],
) -> None:
    boxes = np.array([(x, 0, x + 20, 20) for x, _, _ in rows], np.float64).reshape(-1, 4)
    classes, scores = np.array([row[1] for row in rows], np.int32), np.array([row[2] for row in rows])
    groups = ClassGroups(NAMES, DEFAULT_GROUPS).of(classes)
    kept = single_boxes(boxes, scores, classes, groups)
    overlap = iou(boxes, boxes) if len(boxes) else np.zeros((0, 0))
    conflict = (overlap >= 0.6) & (groups[:, None] == groups) & (classes[:, None] != classes)
    assert not conflict[np.ix_(kept, kept)].any()
    for index in np.flatnonzero(~kept):
        assert (conflict[index] & kept & (scores >= scores[index])).any()


def stage_results(config: TrackConfig, class_names: tuple[str, ...], frames: list[Detections]) -> list[Tracks]:
    stage = TrackStage(config, class_names=class_names)
    results = []
    for number, frame in enumerate(frames):
        meta = FrameMeta("gate", number, 0, number * 100_000_000, number * 100_000_000, 640, 480)
        objects = stage(Result(meta, frame, Timing(0, 0, 0))).objects
        assert isinstance(objects, Tracks)
        results.append(objects)
    return results


@pytest.mark.parametrize(("groups", "tracks"), [(None, 1), ([], 3), ([["car", "truck"]], 1), ([["car", "bus"]], 3)])
def test_groups_of_the_configuration(groups: list[list[str]] | None, tracks: int) -> None:
    config = TrackConfig.model_validate({} if groups is None else {"class_groups": groups})
    frames = [*frames_of([CAR] * 20), *frames_of([TRUCK] * 20), *frames_of([CAR] * 20)]
    found = ids(stage_results(config.model_copy(update={"lost_s": 1.0}), NAMES, frames))
    assert len(found) == tracks


def test_default_groups_do_not_change_a_model_without_vehicles() -> None:
    frames = [detections((VEHICLE, 0.8, 0), (VEHICLE, 0.7, 1))] * 5
    assert len(ids(stage_results(TrackConfig(), ("helmet", "vest"), frames))) == 2
