"""Tests that the log warns once per camera if a threshold hides every detection."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from tests.unit.analytics.test_tracker import detections, person
from vision.config import TrackConfig
from vision.stages.analytics import TrackStage
from vision.types import FrameMeta, Result, Timing


def run(
    stage: TrackStage, scores: Sequence[Sequence[float]], fps: float = 5.0, camera: str = "gate", start_s: float = 0.0
) -> None:
    for number, row in enumerate(scores):
        captured_ns = round((start_s + number / fps) * 1e9)
        meta = FrameMeta(camera, number, 0, captured_ns, captured_ns, 640, 480)
        objects = detections(*((person(100 + 150 * at), score) for at, score in enumerate(row)))
        stage(Result(meta, objects, Timing(0, 0, 0)))


def hidden_by(caplog: pytest.LogCaptureFixture) -> list[tuple[object, ...]]:
    """Return the camera, the highest score, the key, and the limit of each warning."""
    records = [record for record in caplog.records if record.levelno == logging.WARNING]
    arguments = [record.args for record in records if isinstance(record.args, tuple)]
    return [(camera, round(float(str(best)), 2), key, limit) for camera, _, _, best, key, limit in arguments]


@pytest.mark.parametrize("fps", [1.0, 5.0, 30.0])
@pytest.mark.parametrize("score", [0.36, 0.5, 0.54])
def test_scores_below_new_score_are_reported_once(caplog: pytest.LogCaptureFixture, fps: float, score: float) -> None:
    run(TrackStage(score=0.35), [[score]] * round(70 * fps), fps)
    assert hidden_by(caplog) == [("gate", score, "track.new_score", 0.55)]


def test_every_camera_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    stage = TrackStage(score=0.35)
    for camera in ("gate", "yard"):
        run(stage, [[0.5]] * 200, camera=camera)
    assert [row[0] for row in hidden_by(caplog)] == ["gate", "yard"]


@pytest.mark.parametrize("config", [TrackConfig(), TrackConfig(new_score=0.6)])
def test_high_score_threshold_is_named(caplog: pytest.LogCaptureFixture, config: TrackConfig) -> None:
    run(TrackStage(config, score=0.9), [[0.8]] * 200)
    assert hidden_by(caplog) == [("gate", 0.8, "detect.score_threshold", 0.9)]


@pytest.mark.parametrize(
    "scores",
    [
        [[]] * 200,  # an empty scene
        [[0.2, 0.3]] * 200,  # only noise
        [[0.5], [], []] * 70,  # seldom
        [[0.9], *[[0.5]] * 300],  # an object has been tracked
        [*[[0.5]] * 100, [0.55], *[[0.5]] * 300],  # the same, within the first 30 s
        [[0.5]] * 140,  # 28 s
    ],
)
def test_scene_without_hidden_objects_causes_no_warning(
    caplog: pytest.LogCaptureFixture, scores: list[list[float]]
) -> None:
    run(TrackStage(score=0.35), scores)
    assert hidden_by(caplog) == []


def test_objects_that_come_later_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    run(TrackStage(score=0.35), [*[[]] * 400, *[[0.5]] * 400])
    assert hidden_by(caplog) == [("gate", 0.5, "track.new_score", 0.55)]


def test_lower_new_score_tracks_the_objects(caplog: pytest.LogCaptureFixture) -> None:
    stage = TrackStage(TrackConfig(new_score=0.5), score=0.35)
    run(stage, [[0.5]] * 400)
    assert hidden_by(caplog) == []


def test_clock_that_goes_back_causes_no_early_warning(caplog: pytest.LogCaptureFixture) -> None:
    stage = TrackStage(score=0.35)
    run(stage, [[0.5]] * 140, start_s=100.0)
    run(stage, [[0.5]] * 140, start_s=0.0)
    assert hidden_by(caplog) == []
