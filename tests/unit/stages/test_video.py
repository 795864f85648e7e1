"""Tests of the annotated video: all frames of an offline run, limited queues, and errors that end only the video."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.messages.processes import wait_until
from tests.unit.state.faults import file_size_limit
from vision.config import CameraAnalytics
from vision.drawing.overlay import LINE_COLOR, class_color
from vision.errors import ConfigError, VisionError
from vision.stages.annotation import FrameAnnotator
from vision.stages.video import VideoStage, check_window, has_windows, video_paths
from vision.stages.video_encoder import open_encoder
from vision.types import (
    Attribute,
    Counts,
    Detections,
    Frame,
    FrameMeta,
    PixelFormat,
    Result,
    Timing,
    Tracks,
    frame_shape,
)

WIDTH_PX, HEIGHT_PX = 320, 240
BOXES = np.array([[60, 80, 120, 200]], np.float32)
TRACKS = Tracks(BOXES, np.ones(1, np.float32), np.zeros(1, np.int32), np.array([7]), np.zeros(1, np.int64))
DETECTIONS = Detections(BOXES, np.ones(1, np.float32), np.zeros(1, np.int32))
SECTION = CameraAnalytics.model_validate(
    {
        "lines": ({"name": "door", "points": ((200, 60), (200, 220))},),
        "zones": ({"name": "hall", "polygon": ((230, 60), (310, 60), (310, 200), (230, 200))},),
    }
)


def frame(index: int, *, camera: str = "gate", pixel_format: PixelFormat = "bgr") -> Frame:
    meta = FrameMeta(camera, index, 0, 10**8 * index, 10**18 + 10**8 * index, WIDTH_PX, HEIGHT_PX)
    return Frame.wrap(meta, np.full(frame_shape(HEIGHT_PX, WIDTH_PX, pixel_format), 128, np.uint8), pixel_format)


def result(shown: Frame) -> Result:
    return Result(shown.meta, TRACKS, Timing(0, 0, 0))


def stage(paths: dict[str, Path], **options: Any) -> VideoStage:
    annotator = FrameAnnotator({"gate": SECTION}, ["person"])
    given: dict[str, Any] = {"draw": annotator.draw} | options
    return VideoStage(paths, given.pop("camera_ids", ["gate"]), **given)


def frames_of(path: Path) -> list[NDArray[np.uint8]]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(np.asarray(read[1], np.uint8))
    capture.release()
    return frames


def count_near(image: NDArray[np.uint8], color: tuple[int, int, int]) -> int:
    return int((np.abs(image.astype(int) - np.array(color)).max(axis=2) < 40).sum())


@pytest.mark.integration
@pytest.mark.parametrize("pixel_format", ["bgr", "bgrx", "nv12", "i420"])
def test_lossless_video_has_every_frame_with_its_box_and_line(tmp_path: Path, pixel_format: PixelFormat) -> None:
    path = tmp_path / "out.mp4"
    with closing(stage({"gate": path}, lossless=True)) as video:
        for index in range(30):
            shown = frame(index, pixel_format=pixel_format)
            before = result(shown)
            assert video.with_frame(before, shown) is before
            assert (shown.pixels == 128).all()
            shown.pixels[:] = 0  # the lease has ended, and the camera reuses the buffer
    assert video.counters() == {"video.written": 30, "video.skipped": 0}
    frames = frames_of(path)
    assert len(frames) == 30
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == 10
    for image in frames:
        assert count_near(image[70:210, 50:130], class_color(0)) > 100
        assert count_near(image[60:220, 190:210], LINE_COLOR) > 50


def times_of(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [round(float(frame.time or 0), 3) for frame in container.decode(video=0)]


def test_frames_keep_their_capture_times(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with closing(stage({"gate": path}, lossless=True)) as video:
        for index in (7, 8, 10, 11, 20, 21):
            shown = frame(index)
            video.with_frame(result(shown), shown)
    assert times_of(path) == [0.0, 0.1, 0.3, 0.4, 1.3, 1.4]


def test_capture_time_before_the_last_one_counts_as_one_usual_interval(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with closing(stage({"gate": path}, lossless=True)) as video:
        for index in (7, 8, 2, 3):
            shown = frame(index)
            video.with_frame(result(shown), shown)
    assert times_of(path) == [0.0, 0.1, 0.2, 0.3]


@pytest.mark.integration
def test_each_camera_has_its_own_file(tmp_path: Path) -> None:
    paths = video_paths(tmp_path / "out.mp4", ["gate", "yard"])
    assert paths == {"gate": tmp_path / "out-gate.mp4", "yard": tmp_path / "out-yard.mp4"}
    with closing(stage(paths, camera_ids=["gate", "yard"], lossless=True)) as video:
        for index, camera in enumerate(["gate", "yard", "yard"]):
            shown = frame(index, camera=camera)
            video.with_frame(result(shown), shown)
    assert [len(frames_of(path)) for path in paths.values()] == [1, 2]


@pytest.mark.integration
def test_slow_encoder_leaves_frames_out_and_does_not_wait(tmp_path: Path) -> None:
    path, proceed = tmp_path / "out.mp4", threading.Event()
    with closing(stage({"gate": path}, draw=lambda _image, _result: proceed.wait(60))) as video:
        for index in range(20):
            shown = frame(index)
            video.with_frame(result(shown), shown)
        assert video.counters() == {"video.written": 0, "video.skipped": 12}
        proceed.set()
    assert video.counters() == {"video.written": 8, "video.skipped": 12}
    assert len(frames_of(path)) == 8


def test_lossless_stage_waits_for_a_slow_encoder() -> None:
    proceed = threading.Event()
    with closing(stage({}, draw=lambda _image, _result: proceed.wait(60), lossless=True)) as video:
        threading.Timer(0.2, proceed.set).start()
        for index in range(20):
            shown = frame(index)
            video.with_frame(result(shown), shown)
        assert proceed.is_set()
    assert video.counters() == {"video.written": 20, "video.skipped": 0}


def test_failed_drawing_does_not_stop_a_live_run() -> None:
    def fail(_image: object, _result: object) -> None:
        raise ValueError("no color")

    video = stage({}, draw=fail)
    for index in range(30):
        shown = frame(index)
        video.with_frame(result(shown), shown)
    with pytest.raises(VisionError):
        video.close()
    assert video.counters()["video.written"] == 0


@pytest.mark.integration
def test_unwritable_file_ends_a_lossless_run(tmp_path: Path) -> None:
    video = stage({"gate": tmp_path / "missing" / "out.mp4"}, lossless=True)

    def add_frames() -> None:
        for index in range(5000):
            shown = frame(index)
            video.with_frame(result(shown), shown)

    with pytest.raises(VisionError):
        add_frames()
    with pytest.raises(VisionError):
        video.close()


def test_camera_without_frames_has_no_file(tmp_path: Path) -> None:
    stage({"gate": tmp_path / "out.mp4"}).close()
    assert list(tmp_path.iterdir()) == []


def test_close_is_idempotent() -> None:
    video = stage({})
    video.close()
    video.close()


def test_detections_and_counts_are_drawn() -> None:
    image = np.full((HEIGHT_PX, WIDTH_PX, 3), 128, np.uint8)
    shown = frame(0)
    counts = Counts({"door": {"in": 1, "out": 0}}, {}, {"hall": 1})
    attributes = {7: (Attribute("helmets", "helmet", 0.9, 0),)}
    annotator = FrameAnnotator({"gate": SECTION}, ["person"])
    annotator.draw(image, Result(shown.meta, TRACKS, Timing(0, 0, 0), counts=counts, attributes=attributes))
    assert count_near(image, class_color(0)) > 100
    plain = np.full_like(image, 128)
    FrameAnnotator({}, ["person"]).draw(plain, Result(shown.meta, DETECTIONS, Timing(0, 0, 0)))
    assert count_near(plain, class_color(0)) > 100
    assert count_near(plain, LINE_COLOR) == 0


@pytest.mark.parametrize(
    ("name", "code"), [("out.avi", "video-name"), ("out", "video-name"), ("missing/out.mp4", "video-folder")]
)
def test_unusable_file_name_is_refused(tmp_path: Path, name: str, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        video_paths(tmp_path / name, ["gate"])
    assert caught.value.code == code


# --- the encoder ------------------------------------------------------------------------------------------------------

ENCODERS = pytest.mark.parametrize(
    ("codecs", "name"), [(av.codecs_available, "H.264"), (frozenset[str](), "MPEG-4 Part 2")], ids=["h264", "mpeg4"]
)


def grey(value: int, width_px: int = 160, height_px: int = 120) -> NDArray[np.uint8]:
    return np.full((height_px, width_px, 3), value, np.uint8)


@ENCODERS
@pytest.mark.parametrize("size", [(160, 120), (161, 121), (16, 16)])
def test_every_image_is_in_the_file(
    monkeypatch: pytest.MonkeyPatch, codecs: frozenset[str], name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    monkeypatch.setattr(av, "codecs_available", codecs)
    path = tmp_path / "out.mp4"
    with open_encoder(path, *size) as encoder:
        for index, value in enumerate((40, 120, 200)):
            encoder.write(grey(value, *size), index / 12.5)
    assert encoder.codec == name
    assert [image.shape for image in frames_of(path)] == [(size[1] // 2 * 2, size[0] // 2 * 2, 3)] * 3
    assert [float(image.mean()) for image in frames_of(path)] == pytest.approx([40, 120, 200], abs=6)
    assert times_of(path) == [0.0, 0.08, 0.16]


def test_image_of_another_size_is_scaled(tmp_path: Path) -> None:
    with open_encoder(tmp_path / "out.mp4", 160, 120) as encoder:
        encoder.write(grey(50), 0.0)
        encoder.write(grey(50, 200, 300), 0.1)
    assert [image.shape for image in frames_of(tmp_path / "out.mp4")] == [(120, 160, 3)] * 2


def test_file_in_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(VisionError) as caught, open_encoder(tmp_path / "gone" / "out.mp4", 640, 480) as encoder:
        encoder.write(grey(0, 640, 480), 0.0)
    assert caught.value.code == "video-not-writable"


def test_full_disk_is_reported(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    with (
        file_size_limit(10_000),
        pytest.raises(VisionError) as caught,
        open_encoder(tmp_path / "out.mp4", 160, 120) as encoder,
    ):
        for index in range(100):
            encoder.write(np.roll(noise, index), index / 10)
    assert caught.value.code == "video-not-writable"


def test_incomplete_video_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_encoder(tmp_path / "out.mp4", 160, 120) as encoder:
        encoder.write(grey(0), 0.0)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


# --- the window -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [("  GUI:   NONE", False), ("  GUI:   QT5", True), ("  GUI:   GTK3", True), ("  Media I/O:", False)],
)
def test_build_information_names_the_window_system(line: str, expected: bool) -> None:
    assert has_windows(f"General configuration\n{line}\n") is expected


@pytest.mark.parametrize(("system", "code"), [("NONE", "no-window"), ("QT5", "no-display")])
def test_window_is_refused_without_window_system_or_display(
    monkeypatch: pytest.MonkeyPatch, system: str, code: str
) -> None:
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: f"  GUI:   {system}\n")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ConfigError) as caught:
        check_window()
    assert (caught.value.code, caught.value.exit_code) == (code, 78)


def test_window_shows_annotated_frames_from_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    shown_images: list[tuple[str, NDArray[np.uint8], int]] = []

    def imshow(name: str, image: NDArray[np.uint8]) -> None:
        shown_images.append((name, image, threading.get_ident()))

    monkeypatch.setattr(cv2, "imshow", imshow)
    monkeypatch.setattr(cv2, "waitKey", lambda _ms: -1)
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None)
    with closing(stage({}, camera_ids=["gate", "yard"], show=True)) as video:
        for camera in ("gate", "yard"):
            shown = frame(0, camera=camera)
            video.with_frame(result(shown), shown)
        wait_until(lambda: len(shown_images) == 2, "both windows")
    assert {name for name, _, _ in shown_images} == {"vision gate", "vision yard"}
    assert len({thread for _, _, thread in shown_images}) == 1
    assert all(count_near(image, class_color(0)) > 100 for _, image, _ in shown_images)
