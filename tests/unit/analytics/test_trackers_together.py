"""Tests that tracking several cameras together gives the same results as tracking them one after another."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from vision.analytics.class_groups import DEFAULT_GROUPS, ClassGroups
from vision.analytics.tracker import Tracker, update_together
from vision.config import TrackConfig
from vision.types import Detections, Shapes, Tracks

NAMES = ("person", "car", "truck", "bus")
STEPS_NS = (33_333_333, 33_000_000, 100_000_000, 0, 900_000_000, 3_000_000_000, -50_000_000)
LIKELY = (0.5, 0.3, 0.1, 0.03, 0.03, 0.02, 0.02)


def frames_of(seed: int, *, with_shapes: bool = False, number: int | None = None) -> Iterator[tuple[Detections, int]]:
    """Yield the detections of a camera. The objects move, hide, grow, change their class, and disappear.

    If `number` is None, the camera has up to 11 objects.
    """
    rng = np.random.default_rng(seed)
    number = int(rng.integers(0, 12)) if number is None else number
    place, speed = rng.uniform((0, 0), (800, 600), (number, 2)), rng.normal(0, 80, (number, 2))
    height, classes = rng.uniform(20, 200, number), rng.integers(0, 4, number)
    now_ns = 1_000_000_000
    while True:
        step_ns = int(rng.choice(STEPS_NS, p=LIKELY))
        now_ns += step_ns
        place = place + speed * max(step_ns, 0) * 1e-9
        speed = np.where((place < 0) | (place > (800, 600)), -speed, speed)
        height = height * np.exp(rng.normal(0, 0.02, number))
        yield detections(rng, place, height, classes, with_shapes=with_shapes), now_ns


def detections(
    rng: np.random.Generator,
    place: NDArray[np.float64],
    height: NDArray[np.float64],
    classes: NDArray[np.int64],
    *,
    with_shapes: bool,
) -> Detections:
    shown = height * np.where(rng.random(len(height)) < 0.1, rng.uniform(0.4, 1, len(height)), 1)
    feet = place + rng.normal(0, 0.04, place.shape) * height[:, None]
    top = feet[:, 1] - height
    boxes = np.stack([feet[:, 0] - 0.2 * shown, top, feet[:, 0] + 0.2 * shown, top + shown], axis=1)
    seen = rng.random(len(height)) < 0.85
    corner = rng.uniform(0, 600, (int(rng.integers(0, 6)), 2))
    boxes = np.concatenate([boxes[seen], np.hstack([corner, corner + rng.uniform(0, 60, corner.shape)])])
    scores = np.concatenate([rng.beta(5, 3, int(seen.sum())), rng.uniform(0.05, 0.6, len(corner))])
    ids = np.concatenate([np.where(rng.random(len(height)) < 0.1, 2, classes)[seen], rng.integers(0, 4, len(corner))])
    if len(boxes) and rng.random() < 0.02:
        boxes[0] = np.nan
    shapes = Shapes(keypoints=rng.random((len(boxes), 2, 3)).astype(np.float32)) if with_shapes else None
    return Detections(boxes.astype(np.float32), scores.astype(np.float32), ids.astype(np.int32), shapes=shapes)


def open_trackers(sizes: list[tuple[int, int] | None], **config: object) -> list[Tracker]:
    groups = ClassGroups(NAMES, DEFAULT_GROUPS)
    return [Tracker(TrackConfig.model_validate(config), size, groups) for size in sizes]


SIZES: dict[str, list[tuple[int, int] | None]] = {
    "equal": [(800, 600)] * 4,
    "different": [(800, 600), (640, 480), (800, 600), (1000, 500)],
    "unknown": [None] * 4,
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("config", [{}, {"reactivation": "observation"}, {"max_objects": 5}], ids=str)
def test_results_do_not_depend_on_the_other_cameras(
    sizes: list[tuple[int, int] | None], config: dict[str, object]
) -> None:
    rng = np.random.default_rng(0)
    alone, together = open_trackers(sizes, **config), open_trackers(sizes, **config)
    cameras = [frames_of(seed, with_shapes=seed == 2) for seed in range(4)]
    ids: dict[int, int] = {}
    published = 0
    for _ in range(120):
        frames = [next(camera) for camera in cameras]
        chosen = [number for number in range(4) if rng.random() < 0.8]
        expected = [alone[number].update(*frames[number]) for number in chosen]
        found = update_together([(together[number], *frames[number]) for number in chosen]) if chosen else []
        for one, other in zip(expected, found, strict=True):
            check_equal(one, other, ids)
            published += len(one)
    assert published > 500
    assert len(set(ids.values())) == len(ids)
    for one_tracker, other_tracker in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one_tracker._state, other_tracker._state)


def check_equal(one: Tracks, other: Tracks, ids: dict[int, int]) -> None:
    """Check that the tracks of two results are equal bit by bit. `ids` maps the ids in `one` to the ids in `other`."""
    for name in ("boxes_xyxy", "scores", "class_ids", "age_ms"):
        expected, found = getattr(one, name), getattr(other, name)
        assert expected.dtype == found.dtype
        np.testing.assert_array_equal(expected, found)
    assert [
        ids.setdefault(track_id, new)
        for track_id, new in zip(one.track_ids.tolist(), other.track_ids.tolist(), strict=True)
    ] == other.track_ids.tolist()
    assert (one.hidden_px is None) == (other.hidden_px is None)
    if one.hidden_px is not None:
        np.testing.assert_array_equal(one.hidden_px, other.hidden_px)
    assert (one.previous_xyxy is None) == (other.previous_xyxy is None)
    if one.previous_xyxy is not None:
        np.testing.assert_array_equal(one.previous_xyxy, other.previous_xyxy)
    assert (one.shapes is None) == (other.shapes is None)
    if one.shapes is not None and other.shapes is not None:
        np.testing.assert_array_equal(one.shapes.keypoints, other.shapes.keypoints)


def test_results_of_crowds_do_not_depend_on_the_other_cameras() -> None:
    """The cameras have more pairs and more detections than the tracker processes at the same time."""
    numbers = (3, 90, 0, 400, 2, 5, 600, 60)
    alone, together = open_trackers([(800, 600)] * len(numbers)), open_trackers([(800, 600)] * len(numbers))
    cameras = [frames_of(seed, number=number) for seed, number in enumerate(numbers)]
    ids: dict[int, int] = {}
    for _ in range(12):
        frames = [next(camera) for camera in cameras]
        expected = [tracker.update(*frame) for tracker, frame in zip(alone, frames, strict=True)]
        found = update_together([(tracker, *frame) for tracker, frame in zip(together, frames, strict=True)])
        for one, other in zip(expected, found, strict=True):
            check_equal(one, other, ids)
    assert len(ids) > 300
    for one_tracker, other_tracker in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one_tracker._state, other_tracker._state)


def test_frames_of_one_camera_are_processed_in_order() -> None:
    camera = frames_of(3)
    frames = [next(camera) for _ in range(60)]
    [one], [other] = open_trackers([(800, 600)]), open_trackers([(800, 600)])
    ids: dict[int, int] = {}
    expected = [one.update(*frame) for frame in frames]
    for alone, together in zip(expected, update_together([(other, *frame) for frame in frames]), strict=True):
        check_equal(alone, together, ids)
    assert ids


def test_objects_of_different_cameras_at_one_place_are_different() -> None:
    """If the boxes of the car and the truck were in the same frame, they would count as one object."""
    box = np.array([[100, 100, 200, 200]], np.float32)
    car, truck = (Detections(box, np.array([0.9], np.float32), np.array([number], np.int32)) for number in (1, 2))
    trackers = open_trackers([(800, 600)] * 2)
    for at in range(10):
        found = update_together([(trackers[0], car, at * 100_000_000), (trackers[1], truck, at * 100_000_000)])
    assert [tracks.class_ids.tolist() for tracks in found] == [[1], [2]]
    assert found[0].track_ids[0] != found[1].track_ids[0]
