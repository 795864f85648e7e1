"""Both passes over the video: what is refused before any work, and that a pipeline sees what it sees in production."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from vision.capture.synthetic.source import SyntheticSource
from vision.capture.synthetic.spec import SyntheticSpec
from vision.config import AppConfig
from vision.errors import Closed, ConfigError, SourceError
from vision.evaluation.passes import LOWEST_SCORE, Findings, run_pipeline, site_of_camera, survey
from vision.pipelines import load_pipeline
from vision.runtime.builder import RunOptions, build_cameras, open_configured_detector, open_publisher
from vision.runtime.runtime import Runtime
from vision.test_pattern import FAKE_COLORS
from vision.types import Detections, Result, Tracks

SOURCE = "synthetic:160x120@20?frames=12&objects=4&seed=1"


def ignore(_frame: int) -> None:
    """Nobody watches the progress."""


def site_of(*sources: str, **sections: object) -> AppConfig:
    cameras = tuple({"id": f"c{at}", "source": source} for at, source in enumerate(sources))
    return AppConfig.model_validate({"cameras": cameras, "detect": {"backend": "fake"}, **sections})


def test_the_only_camera_need_not_be_named() -> None:
    assert site_of_camera(site_of(SOURCE), None).cameras[0].id == "c0"


def test_the_named_camera_is_taken_with_its_analytics_alone() -> None:
    lines = {"lines": ({"name": "door", "points": ((10.0, 10.0), (90.0, 90.0))},)}
    site = site_of(SOURCE, SOURCE, pipeline="count", analytics={"c0": lines, "c1": lines})
    chosen = site_of_camera(site, "c1")
    assert [camera.id for camera in chosen.cameras] == ["c1"]
    assert list(chosen.analytics) == ["c1"]


def test_a_video_that_is_looped_is_read_once() -> None:
    cameras = ({"id": "clip", "source": "/videos/clip.mp4", "loop": True},)
    assert site_of_camera(AppConfig.model_validate({"cameras": cameras}), None).cameras[0].loop is False


@pytest.mark.parametrize(
    ("sources", "camera", "fault"),
    [
        ([SOURCE, SOURCE], None, "--camera: expected which camera the truth is of, one of c0, c1"),
        ([SOURCE], "C0", "no camera 'C0'\n  hint: did you mean c0?"),
        ([SOURCE, SOURCE], "gate", "no camera 'gate'\n  hint: there are c0, c1"),
        (["synthetic:160x120"], None, "synthetic:160x120 never ends\n  hint: add frames="),
        (["/dev/video0"], None, "expected a video file or a folder of images, got /dev/video0"),
        (["csi:0"], None, "got csi:0"),
        (["rtsp://me:secret@host/live"], None, r"got rtsp://\*\*\*@host/live"),
        (["http://host/live"], None, "there is no truth of what a live camera will show"),
    ],
)
def test_cameras_that_cannot_be_evaluated(sources: list[str], camera: str | None, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        site_of_camera(site_of(*sources), camera)


def test_the_first_pass_learns_the_length_of_the_video() -> None:
    seen: list[int] = []
    video = survey(site_of(SOURCE).cameras[0], seen.append)
    assert (video.frames, video.width_px, video.height_px) == (12, 160, 120)
    assert video.interval_s == pytest.approx(1 / 20)
    assert video.duration_s == pytest.approx(12 / 20)
    assert seen == list(range(1, 13))


def test_one_frame_is_a_video_too() -> None:
    video = survey(site_of("synthetic:160x120@20?frames=1").cameras[0], ignore)
    assert (video.frames, video.interval_s) == (1, 1.0)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("synthetic:160x120@20?frames=0", "it has no frames"),
        ("synthetic:160x120@20?frames=9&fail=4", "failed at frame 4"),
        ("/nowhere/clip.mp4", "No such file"),
    ],
)
def test_videos_that_cannot_be_read(source: str, fault: str) -> None:
    with pytest.raises(SourceError, match=fault):
        survey(site_of(source).cameras[0], ignore)


def found_in(source: str, pipeline: str = "detect", **sections: object) -> Findings:
    site = site_of_camera(site_of(source, pipeline=pipeline, **sections), None)
    return run_pipeline(load_pipeline(site.pipeline), site, ignore, threading.Event())


def test_every_frame_goes_through_the_pipeline_once() -> None:
    findings = found_in(SOURCE)
    assert [frame for frame, _ in findings.objects] == list(range(1, 13))
    assert [frame for frame, _ in findings.detections] == list(range(1, 13))
    assert findings.backend == "fake"
    assert not findings.tracked
    true_boxes, class_ids = SyntheticSource(SyntheticSpec.parse(SOURCE)).truth(4)
    for class_id in range(3):
        boxes = findings.published(class_id)
        of_frame = boxes.boxes_xyxy[boxes.frames == 5]
        assert sorted(of_frame.tolist()) == sorted(true_boxes[class_ids == class_id].tolist())
        assert (boxes.ids == -1).all()


def test_a_pipeline_that_follows_gives_tracks() -> None:
    findings = found_in(SOURCE, "track")
    assert findings.tracked
    assert len(findings.published(0).frames) > 0
    assert (findings.published(0).ids > 0).all()


def test_nothing_found_is_an_empty_table() -> None:
    findings = found_in("synthetic:160x120@20?frames=3&objects=0")
    assert len(findings.published(0)) == len(findings.detected(0)) == 0
    assert len(Findings().published(0)) == 0


def test_frames_are_numbered_through_where_the_frame_changes_its_size() -> None:
    findings = found_in("synthetic:160x120@20?frames=10&resize=4:200x100")
    assert [frame for frame, _ in findings.objects] == list(range(1, 11))


def test_damaged_frames_are_left_out_and_the_others_keep_their_numbers() -> None:
    findings = found_in("synthetic:160x120@20?frames=8&corrupt=2:4")
    assert [frame for frame, _ in findings.objects] == [1, 2, 5, 6, 7, 8]


def test_a_video_that_fails_half_way_ends_the_evaluation() -> None:
    site = site_of("synthetic:160x120@20?frames=9&fail=4")
    with pytest.raises(SourceError, match="camera c0: synthetic: failed at frame 4"):
        run_pipeline(load_pipeline("detect"), site_of_camera(site, None), ignore, threading.Event())


def half_filled(folder: Path) -> str:
    """Return a frame of two objects: one fills its box, the other, of two rectangles that touch, half of it."""
    import cv2

    pixels = np.full((120, 160, 3), 128, np.uint8)
    pixels[10:40, 10:40] = FAKE_COLORS[0]
    pixels[60:80, 60:80] = FAKE_COLORS[0]
    pixels[80:100, 80:100] = FAKE_COLORS[0]
    cv2.imwrite(str(folder / "1.png"), pixels)
    return str(folder)


@pytest.mark.parametrize(("score", "published"), [(0.8, [1.0]), (0.3, [1.0, 0.5]), (0.01, [1.0, 0.5])])
def test_the_pipeline_gets_what_the_configuration_asks_for(
    score: float, published: list[float], tmp_path: Path
) -> None:
    """And the evaluation gets everything."""
    findings = found_in(half_filled(tmp_path), detect={"backend": "fake", "score_threshold": score})
    assert findings.published(0).scores.tolist() == pytest.approx(published)
    assert findings.detected(0).scores.tolist() == pytest.approx([1.0, 0.5])


def test_a_stage_before_the_sink_is_part_of_what_is_evaluated() -> None:
    """What a pipeline's own stages throw away is not published, but the detector has found it."""

    def build(site: AppConfig, options: RunOptions, resources: ExitStack) -> Runtime:
        def drop_all(result: Result) -> Result:
            return Result(result.meta, Detections.empty(), result.timing)

        publisher = open_publisher(site, options, resources)
        detector = open_configured_detector(site, options, resources)
        cameras = build_cameras(site, options, detector)
        return Runtime(cameras=cameras, detector=detector, stages=[drop_all], sinks=[publisher])

    findings = run_pipeline(build, site_of_camera(site_of(SOURCE), None), ignore, threading.Event())
    assert sum(len(found) for _, found in findings.objects) == 0
    assert sum(len(found) for _, found in findings.detections) == 12 * 4


def test_a_stop_ends_the_pipeline_early() -> None:
    stop = threading.Event()
    site = site_of_camera(site_of("synthetic:160x120@20?frames=100000"), None)
    findings = run_pipeline(load_pipeline("detect"), site, lambda frame: stop.set() if frame == 20 else None, stop)
    assert 20 <= len(findings.objects) < 100_000
    with pytest.raises(Closed):
        run_pipeline(load_pipeline("detect"), site, ignore, stop)


def test_no_socket_is_bound(tmp_path: Path) -> None:
    """A running service keeps its address while its pipeline is evaluated."""
    found_in(SOURCE, publish={"bind": f"ipc://{tmp_path}/out"})
    assert list(tmp_path.iterdir()) == []


def test_scores_are_taken_down_to_where_average_precision_needs_them() -> None:
    assert LOWEST_SCORE == 0.05
    none = np.zeros(0, np.int64)
    empty = Tracks(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), none, none)
    assert not Findings(objects=[(1, Detections.empty())]).tracked
    assert Findings(objects=[(1, empty)]).tracked
