"""Tests of both passes over the labeled video: unsuitable inputs, and the frames that the pipeline receives."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from vision.capture.synthetic.source import SyntheticSource
from vision.capture.synthetic.spec import SyntheticSpec
from vision.config import AppConfig
from vision.drawing.test_pattern import FAKE_COLORS
from vision.errors import Closed, ConfigError, SourceError
from vision.evaluation.passes import Findings, boxes_of_class, run_pipeline, select_camera, survey
from vision.pipelines import load_pipeline
from vision.runtime.builder import RunOptions, open_configured_detector, open_publisher
from vision.runtime.camera_factory import build_cameras
from vision.runtime.runtime import Runtime
from vision.types import Detections, Result, Tracks

SOURCE = "synthetic:160x120@20?frames=12&objects=4&seed=1"


def ignore(_frame: int) -> None:
    """Ignore the progress."""


def make_config(*sources: str, **sections: object) -> AppConfig:
    cameras = tuple({"id": f"c{at}", "source": source} for at, source in enumerate(sources))
    return AppConfig.model_validate({"cameras": cameras, "detect": {"backend": "fake"}, **sections})


def test_only_camera_needs_no_name() -> None:
    assert select_camera(make_config(SOURCE), None).cameras[0].id == "c0"


def test_named_camera_is_selected_with_its_analytics() -> None:
    lines = {"lines": ({"name": "door", "points": ((10.0, 10.0), (90.0, 90.0))},)}
    config = make_config(SOURCE, SOURCE, pipeline="count", analytics={"c0": lines, "c1": lines})
    chosen = select_camera(config, "c1")
    assert [camera.id for camera in chosen.cameras] == ["c1"]
    assert list(chosen.analytics) == ["c1"]


def test_looped_video_is_read_once() -> None:
    cameras = ({"id": "clip", "source": "/videos/clip.mp4", "loop": True},)
    assert select_camera(AppConfig.model_validate({"cameras": cameras}), None).cameras[0].loop is False


@pytest.mark.parametrize(
    ("sources", "camera", "code"),
    [
        ([SOURCE, SOURCE], None, "no-camera"),
        ([SOURCE], "C0", "unknown-camera"),
        ([SOURCE, SOURCE], "gate", "unknown-camera"),
        (["synthetic:160x120"], None, "endless"),
        (["/dev/video0"], None, "live-camera"),
        (["csi:0"], None, "live-camera"),
        (["rtsp://me:secret@host/live"], None, "live-camera"),
        (["http://host/live"], None, "live-camera"),
    ],
)
def test_unsuitable_camera_is_refused(sources: list[str], camera: str | None, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        select_camera(make_config(*sources), camera)
    assert caught.value.code == code
    assert "secret" not in str(caught.value)


def test_survey_returns_length_and_size() -> None:
    seen: list[int] = []
    video = survey(make_config(SOURCE).cameras[0], seen.append)
    assert (video.frames, video.width_px, video.height_px) == (12, 160, 120)
    assert video.interval_s == pytest.approx(1 / 20)
    assert video.duration_s == pytest.approx(12 / 20)
    assert seen == list(range(1, 13))


def test_video_of_one_frame_is_valid() -> None:
    video = survey(make_config("synthetic:160x120@20?frames=1").cameras[0], ignore)
    assert (video.frames, video.interval_s) == (1, 1.0)


@pytest.mark.parametrize(
    "source",
    ["synthetic:160x120@20?frames=0", "synthetic:160x120@20?frames=9&fail=4", "/nowhere/clip.mp4"],
)
def test_unreadable_video_is_refused(source: str) -> None:
    with pytest.raises(SourceError):
        survey(make_config(source).cameras[0], ignore)


def found_in(source: str, pipeline: str = "detect", **sections: object) -> Findings:
    config = select_camera(make_config(source, pipeline=pipeline, **sections), None)
    return run_pipeline(load_pipeline(config.pipeline), config, ignore, threading.Event())


def test_every_frame_runs_through_the_pipeline_once() -> None:
    findings = found_in(SOURCE)
    assert [frame for frame, _ in findings.objects] == list(range(1, 13))
    assert [frame for frame, _ in findings.detections] == list(range(1, 13))
    assert findings.backend == "fake"
    assert not findings.tracked
    true_boxes, class_ids = SyntheticSource(SyntheticSpec.parse(SOURCE)).truth(4)
    for class_id in range(3):
        boxes = boxes_of_class(findings.objects, class_id)
        of_frame = boxes.boxes_xyxy[boxes.frames == 5]
        assert sorted(of_frame.tolist()) == sorted(true_boxes[class_ids == class_id].tolist())
        assert (boxes.ids == -1).all()


def test_pipeline_with_a_tracker_publishes_tracks() -> None:
    findings = found_in(SOURCE, "track")
    assert findings.tracked
    assert len(boxes_of_class(findings.objects, 0).frames) > 0
    assert (boxes_of_class(findings.objects, 0).ids > 0).all()


def test_video_without_objects_gives_an_empty_table() -> None:
    findings = found_in("synthetic:160x120@20?frames=3&objects=0")
    assert len(boxes_of_class(findings.objects, 0)) == len(boxes_of_class(findings.detections, 0)) == 0
    assert len(boxes_of_class(Findings().objects, 0)) == 0


def test_frame_numbers_continue_after_a_change_of_size() -> None:
    findings = found_in("synthetic:160x120@20?frames=10&resize=4:200x100")
    assert [frame for frame, _ in findings.objects] == list(range(1, 11))


def test_damaged_frames_keep_the_numbers_of_the_others() -> None:
    findings = found_in("synthetic:160x120@20?frames=8&corrupt=2:4")
    assert [frame for frame, _ in findings.objects] == [1, 2, 5, 6, 7, 8]


def test_failing_video_ends_the_evaluation() -> None:
    config = make_config("synthetic:160x120@20?frames=9&fail=4")
    with pytest.raises(SourceError):
        run_pipeline(load_pipeline("detect"), select_camera(config, None), ignore, threading.Event())


def half_filled(folder: Path) -> str:
    """Write an image of two objects. Return the folder of the image.

    The first object fills its box. The second consists of two rectangles that touch, and fills half of its box.
    """
    import cv2

    pixels = np.full((120, 160, 3), 128, np.uint8)
    pixels[10:40, 10:40] = FAKE_COLORS[0]
    pixels[60:80, 60:80] = FAKE_COLORS[0]
    pixels[80:100, 80:100] = FAKE_COLORS[0]
    cv2.imwrite(str(folder / "1.png"), pixels)
    return str(folder)


@pytest.mark.parametrize(("score", "published"), [(0.8, [1.0]), (0.3, [1.0, 0.5]), (0.01, [1.0, 0.5])])
def test_pipeline_receives_only_configured_scores(score: float, published: list[float], tmp_path: Path) -> None:
    findings = found_in(half_filled(tmp_path), detect={"backend": "fake", "score_threshold": score})
    assert boxes_of_class(findings.objects, 0).scores.tolist() == pytest.approx(published)
    assert boxes_of_class(findings.detections, 0).scores.tolist() == pytest.approx([1.0, 0.5])


def test_stages_change_published_objects_only() -> None:
    def build(config: AppConfig, options: RunOptions, resources: ExitStack) -> Runtime:
        def drop_all(result: Result) -> Result:
            return Result(result.meta, Detections.empty(), result.timing)

        publisher = open_publisher(config, options, resources)
        detector = open_configured_detector(config, options, resources)
        cameras = build_cameras(config, options, detector)
        return Runtime(cameras=cameras, detector=detector, stages=[drop_all], sinks=[publisher])

    findings = run_pipeline(build, select_camera(make_config(SOURCE), None), ignore, threading.Event())
    assert sum(len(found) for _, found in findings.objects) == 0
    assert sum(len(found) for _, found in findings.detections) == 12 * 4


def test_stop_ends_the_pipeline_early() -> None:
    stop = threading.Event()
    config = select_camera(make_config("synthetic:160x120@20?frames=100000"), None)
    findings = run_pipeline(load_pipeline("detect"), config, lambda frame: stop.set() if frame == 20 else None, stop)
    assert 20 <= len(findings.objects) < 100_000
    with pytest.raises(Closed):
        run_pipeline(load_pipeline("detect"), config, ignore, stop)


def test_evaluation_binds_no_socket(tmp_path: Path) -> None:
    found_in(SOURCE, publish={"bind": f"ipc://{tmp_path}/out"})
    assert list(tmp_path.iterdir()) == []


def test_findings_with_empty_tracks_are_tracked() -> None:
    none = np.zeros(0, np.int64)
    empty = Tracks(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), none, none)
    assert not Findings(objects=[(1, Detections.empty())]).tracked
    assert Findings(objects=[(1, empty)]).tracked
