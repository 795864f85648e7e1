"""Tests that `near_pairs` finds all pairs of a track and a detection that can match."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vision.analytics.frame_detections import FrameDetections
from vision.analytics.near_pairs import Near, near_pairs
from vision.analytics.track_matching import distance_of, place_variance, similarity
from vision.analytics.track_state import EXTENT, PLACE, new_state
from vision.config import TrackConfig
from vision.types import Detections

FARTHEST = 2.0


def found(rng: np.random.Generator, number: int) -> Detections:
    centers, extent = rng.uniform((0, 0), (1920, 1080), (number, 2)), rng.uniform((20, 50), (200, 300), (number, 2))
    scores = rng.uniform(0.1, 1.0, number).astype(np.float32)
    boxes = np.hstack([centers - extent / 2, centers + extent / 2]).astype(np.float32)
    return Detections(boxes, scores, rng.integers(0, 2, number).astype(np.int32))


def frame_of(rng: np.random.Generator, cameras: int, number: int = 90) -> FrameDetections:
    detections = [found(rng, int(rng.integers(number, 4 * number // 3))) for _ in range(cameras)]
    return FrameDetections(detections, TrackConfig(low_score=0.1), None, None)


def moving(rng: np.random.Generator, frame: FrameDetections) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return the state of moving tracks that begin at the detections."""
    state = new_state(frame.at, frame.noise * np.ones((4, 1)), frame.scores, 0.0)
    size = np.maximum(state[2], state[3])
    state[4:6] = rng.normal(0.0, 1.0, (2, len(size))) * size
    state[PLACE] += rng.normal(0.0, 0.2, (2, len(size))) * size
    state[8:10] *= rng.uniform(0.1, 30.0, (2, len(size)))
    return state


def near(state: np.ndarray[tuple[int, int], np.dtype[np.float64]], of: FrameDetections, deviations: float) -> Near:
    size, is_far = np.maximum(state[2], state[3]), np.arange(len(of.scores)) % 2 == 0
    limits = deviations, deviations
    return Near(state[PLACE], state[EXTENT], place_variance(state, size), is_far, limits, of.groups, of.camera)


def camera_of(frame: FrameDetections, row: int) -> int:
    return 0 if frame.camera is None else int(frame.camera[row])


@pytest.mark.parametrize("number", [3, 15, 90])
@pytest.mark.parametrize("cameras", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_those_of_a_comparison_of_all(seed: int, cameras: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    earlier, frame = frame_of(rng, cameras, number), frame_of(rng, cameras, number)
    state = moving(rng, earlier)
    farthest = FARTHEST * np.maximum(state[2], state[3])
    unlimited = math.inf, math.inf
    seen = Near(frame.at[PLACE], frame.at[EXTENT], frame.noise, frame.strong, unlimited, frame.groups, frame.camera)
    rows, columns = near_pairs(near(state, earlier, math.inf), seen, farthest)
    wanted = [
        (track, detection)
        for track, place in enumerate(state[PLACE].T)
        for detection in range(len(frame.scores))
        if np.abs(np.float32(place) - np.float32(frame.at[PLACE, detection])).max() < np.float32(farthest[track])
        and earlier.groups[track] == frame.groups[detection]
        and camera_of(earlier, track) == camera_of(frame, detection)
    ]
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == wanted


@pytest.mark.parametrize("least", [0.12, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_omitted_pairs_cannot_match(seed: int, least: float) -> None:
    rng = np.random.default_rng(seed)
    earlier, frame = frame_of(rng, 2), frame_of(rng, 2)
    state = moving(rng, earlier)
    size = np.maximum(state[2], state[3])
    none = 0.0, 0.0
    seen = Near(frame.at[PLACE], frame.at[EXTENT], frame.noise, frame.strong, none, frame.groups, frame.camera)

    def pairs(distance: float) -> set[tuple[int, int]]:
        limits = distance, distance
        rows, columns = near_pairs(near(state, earlier, distance), seen._replace(deviations=limits), FARTHEST * size)
        return set(zip(rows.tolist(), columns.tolist(), strict=True))

    every, kept = pairs(math.inf), pairs(distance_of(least))
    omitted = np.array(sorted(every - kept)).T
    assert kept < every
    value = similarity(state, place_variance(state, size), frame, omitted[0], omitted[1])
    assert value.max() <= least
