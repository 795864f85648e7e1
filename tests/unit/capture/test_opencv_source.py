"""Tests of USB cameras with OpenCV: buffers, negotiation, and errors. A scripted capture object replaces the camera."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.frame_buffers import wrap
from vision.capture.opencv.bindings import describe, position_ns
from vision.capture.opencv.source import V4L2Source, open_device, request_mode
from vision.config import CameraConfig
from vision.errors import SizeChanged, SourceError


class ScriptedCapture:
    """Capture object that returns given frames, which can differ in size. Its properties are the mode of the device."""

    def __init__(self, *frames: NDArray[np.uint8] | None, **properties: float) -> None:
        self.frames = list(frames)
        self.properties = {getattr(cv2, f"CAP_PROP_{name}"): value for name, value in properties.items()}
        self.asked: list[tuple[int, float]] = []
        self.released = 0

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def grab(self) -> bool:
        return bool(self.frames)

    def retrieve(self, image: NDArray[np.uint8]) -> tuple[bool, NDArray[np.uint8]]:
        frame = self.frames.pop(0)
        if frame is None:
            return False, image
        if frame.shape != image.shape:
            return True, frame
        image[...] = frame
        return True, image

    def get(self, propId: int) -> float:  # noqa: N803
        return self.properties.get(propId, 0.0)

    def set(self, propId: int, value: float) -> bool:  # noqa: N803
        self.asked.append((propId, value))
        return True

    def release(self) -> None:
        self.released += 1


def frame(height_px: int, width_px: int, shade: int = 5) -> NDArray[np.uint8]:
    return np.full((height_px, width_px, 3), shade, np.uint8)


# --- buffers ----------------------------------------------------------------------------------------------------------


def usb_camera(**settings: object) -> CameraConfig:
    return CameraConfig.model_validate({"id": "gate", "source": "/dev/video987", **settings})


def source_with(capture: ScriptedCapture) -> V4L2Source:
    return V4L2Source(usb_camera(), open_device=lambda _: capture)


def grabbed(*frames: NDArray[np.uint8] | None) -> V4L2Source:
    source = source_with(ScriptedCapture(*frames))
    source.open()
    assert source.grab(5) is not None
    return source


def test_frame_that_fits_is_decoded_in_place() -> None:
    out = frame(4, 6, 0)
    with closing(grabbed(frame(4, 6, 9))) as source:
        source.retrieve(wrap(out))
    assert np.all(out == 9)


def test_frame_of_another_size_is_kept_until_the_caller_has_a_buffer() -> None:
    with closing(grabbed(frame(8, 10, 9), frame(8, 10, 10))) as source:
        for _ in range(2):
            with pytest.raises(SizeChanged) as change:
                source.retrieve(wrap(frame(4, 6)))
            assert (change.value.height_px, change.value.width_px) == (8, 10)
        out = frame(8, 10, 0)
        source.retrieve(wrap(out))
        assert np.all(out == 9)
        assert source.grab(5) is not None
        source.retrieve(wrap(out))
        assert np.all(out == 10)


@pytest.mark.parametrize("decoded", [None, np.zeros((8, 10), np.uint8), np.zeros((8, 10, 2), np.uint8)])
def test_array_without_three_channels_is_an_error(decoded: NDArray[np.uint8] | None) -> None:
    with closing(grabbed(decoded)) as source, pytest.raises(SourceError):
        source.retrieve(wrap(frame(4, 6)))


@pytest.mark.parametrize(
    ("fps", "expected"),
    [(25.0, 25.0), (0.0, None), (-1.0, None), (90000.0, None), (float("nan"), None), (1000.0, 1000.0)],
)
def test_implausible_rate_is_none(fps: float, expected: float | None) -> None:
    assert describe(ScriptedCapture(FPS=fps, FRAME_WIDTH=64, FRAME_HEIGHT=48)).fps == expected


@pytest.mark.parametrize(
    ("position_ms", "expected"),
    [(0.0, None), (40.0, 40_000_000), (-2500.0, -2_500_000_000), (-3.68934881474191e20, None), (float("nan"), None)],
)
def test_implausible_position_is_none(position_ms: float, expected: int | None) -> None:
    assert position_ns(ScriptedCapture(POS_MSEC=position_ms)) == expected


# --- USB --------------------------------------------------------------------------------------------------------------


def test_mode_request_asks_for_jpeg_and_one_buffer() -> None:
    camera = ScriptedCapture(FRAME_WIDTH=1280, FRAME_HEIGHT=720, FPS=30)
    assert request_mode(camera, usb_camera(width=1280, height=720, fps=30)) == []
    assert camera.asked == [
        (cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG")),
        (cv2.CAP_PROP_FRAME_WIDTH, 1280),
        (cv2.CAP_PROP_FRAME_HEIGHT, 720),
        (cv2.CAP_PROP_FPS, 30.0),
        (cv2.CAP_PROP_BUFFERSIZE, 1),
    ]


@pytest.mark.parametrize(
    ("width", "height", "fps", "differences"),
    [
        (None, None, None, []),
        (1920, 1080, None, ["requested 1920x1080, got 640x480"]),
        (640, 480, 60.0, ["requested 60 frames/s, got 30"]),
        (640, 480, 30.1, []),
        (
            320,
            480,
            5.0,
            ["requested 320x480, got 640x480", "requested 5 frames/s, got 30"],
        ),
    ],
)
def test_mode_differences_are_reported(
    width: int | None, height: int | None, fps: float | None, differences: list[str]
) -> None:
    camera = ScriptedCapture(FRAME_WIDTH=640, FRAME_HEIGHT=480, FPS=30)
    assert request_mode(camera, usb_camera(width=width, height=height, fps=fps)) == differences


def test_unconfigured_camera_keeps_its_mode() -> None:
    camera = ScriptedCapture(FRAME_WIDTH=640, FRAME_HEIGHT=480, FPS=30)
    request_mode(camera, usb_camera())
    assert camera.asked == [(cv2.CAP_PROP_BUFFERSIZE, 1)]


@pytest.mark.parametrize("device", ["/dev/video987", "/dev/null", __file__])
def test_device_that_is_not_a_camera_is_an_error(device: str) -> None:
    with pytest.raises(SourceError) as raised:
        open_device(usb_camera().model_copy(update={"source": device}))
    assert raised.value.code == "usb-camera"
    assert device in raised.value.args[0]
    assert raised.value.hint


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [lambda source: source.grab(0.1), lambda source: source.retrieve(wrap(frame(4, 6)))],
    ids=["grab", "retrieve"],
)
def test_use_before_open_is_an_error(use: Callable[[V4L2Source], object]) -> None:
    source = V4L2Source(usb_camera())
    with pytest.raises(SourceError) as raised:
        use(source)
    assert raised.value.code == "not-open"


def test_frame_that_was_not_retrieved_is_discarded_by_the_next_grab() -> None:
    capture = ScriptedCapture(frame(8, 10, 1), frame(8, 10, 2), FRAME_WIDTH=6, FRAME_HEIGHT=4)
    source = source_with(capture)
    assert source.open().width_px == 6
    assert source.grab(5) is not None
    with pytest.raises(SizeChanged):
        source.retrieve(wrap(frame(4, 6)))
    assert source.grab(5) is not None
    out = frame(8, 10, 0)
    source.retrieve(wrap(out))
    assert np.all(out == 2)
    with pytest.raises(SourceError) as raised:
        source.grab(5)
    assert raised.value.code == "usb-camera"
    source.close()
    assert capture.released == 1


def test_grab_in_progress_is_not_started_again() -> None:
    """OpenCV must not read the next frame while the previous frame is being copied."""

    class SlowCapture(ScriptedCapture):
        arrived = threading.Event()
        grabs = 0

        def grab(self) -> bool:
            self.grabs += 1
            return self.arrived.wait(30)

    capture = SlowCapture(frame(4, 6, 1), FRAME_WIDTH=6, FRAME_HEIGHT=4)
    source = source_with(capture)
    source.open()
    assert [source.grab(0.01) for _ in range(3)] == [None, None, None]
    with pytest.raises(SourceError) as raised:
        source.retrieve(wrap(frame(4, 6)))
    assert raised.value.code == "not-open"
    capture.arrived.set()
    assert source.grab(10) is not None
    source.close()
    assert capture.grabs == 1


def test_open_after_interrupt_is_an_error() -> None:
    source = V4L2Source(usb_camera())
    source.interrupt()
    with pytest.raises(SourceError) as raised:
        source.open()
    assert raised.value.code == "interrupted"
    source.close()


def test_opencv_prints_nothing(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    broken = tmp_path / "a.png"
    broken.write_bytes(b"no image")
    cv2.imread(str(broken))
    out, err = capfd.readouterr()
    assert out + err == ""
