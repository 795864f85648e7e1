"""Tests of the library that opens each camera, of the settings that it receives, and of rejected combinations."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.log_records import log_args
from tests.paths import ROOT
from vision.capture.ffmpeg.file import VideoFile
from vision.capture.ffmpeg.source import FFmpegSource
from vision.capture.gstreamer.source import GStreamerSource, available
from vision.capture.open import open_source, supervisor_policy
from vision.capture.opencv.file import ImageFolder
from vision.capture.opencv.source import V4L2Source
from vision.capture.source import Source
from vision.capture.supervisor import SupervisorPolicy
from vision.capture.synthetic.source import SyntheticSource
from vision.config import CameraConfig
from vision.errors import ConfigError, SourceError
from vision.types import PixelFormat

MODEL = ROOT / "models" / "nanodet-g-416" / "nanodet-g-416.onnx"
FORMATS: tuple[PixelFormat, ...] = ("nv12", "bgr")


def camera(source: str, **options: object) -> CameraConfig:
    return CameraConfig.model_validate({"id": "gate", "source": source, **options})


def opened(source: str, **options: object) -> Source:
    return open_source(camera(source, **options), offline=False, pixel_formats=FORMATS)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("rtsp://10.0.0.4/a", {"reader": "ffmpeg"}, FFmpegSource),
        ("http://10.0.0.4/a.mjpg", {}, FFmpegSource),
        ("http://10.0.0.4/a.mjpg", {"reader": "ffmpeg"}, FFmpegSource),
        ("https://10.0.0.4/a.mjpg", {}, FFmpegSource),
        ("/dev/video3", {}, V4L2Source),
        ("/dev/video3", {"reader": "opencv"}, V4L2Source),
        ("/dev/v4l/by-id/usb-camera", {}, V4L2Source),
        ("clip.mp4", {}, VideoFile),
        ("clip.mp4", {"reader": "ffmpeg", "loop": True}, VideoFile),
        ("frame.JPG", {}, ImageFolder),
        ("folder", {}, ImageFolder),
        ("synthetic:", {}, SyntheticSource),
    ],
)
def test_open_source_chooses_the_library(
    source: str, options: dict[str, object], expected: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert type(opened(source, **options)) is expected


@pytest.mark.integration
def test_nvdec_is_not_chosen_without_its_package() -> None:
    """The test runs in a separate process. `tests/gpu` tests the choices on a machine with NVDEC."""
    done = run_python("""
import sys
sys.modules["PyNvVideoCodec"] = None
from vision.capture.open import chooses_nvdec
from vision.config import CameraConfig
sources = ("clip.mp4", "http://10.0.0.4/a", "rtsp://10.0.0.4/a")
print([chooses_nvdec(CameraConfig(id="gate", source=source)) for source in sources])
""")
    assert done.stdout == "[False, False, False]\n", done.stderr


def test_rtsp_falls_back_to_ffmpeg_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    rtsp = camera("rtsp://10.0.0.4/a")
    reason = available(rtsp)
    source = open_source(rtsp, offline=False, pixel_formats=FORMATS)
    assert type(source) is (GStreamerSource if reason is None else FFmpegSource)
    assert bool(log_args(caplog, "vision.capture.open")) is (reason is not None)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("missing", "source", "reader", "expected"),
    [
        ("gi", "rtsp://10.0.0.4/a", "auto", "FFmpegSource"),
        ("av", "http://10.0.0.4/a", "auto", "pyav-missing"),
        ("av", "http://10.0.0.4/a", "ffmpeg", "pyav-missing"),
        ("av", "http://10.0.0.4/a", "nvdec", "pyav-missing"),
        ("av", "clip.mp4", "auto", "pyav-missing"),
        ("av", "frame.jpg", "auto", "ImageFolder"),
        ("cv2", "http://10.0.0.4/a", "auto", "FFmpegSource"),
        ("cv2", "clip.mp4", "auto", "VideoFile"),
        ("cv2", "frame.jpg", "auto", "opencv-missing"),
        ("cv2", ".", "auto", "opencv-missing"),
        ("cv2", "/dev/video3", "auto", "opencv-missing"),
        ("cuda.bindings", "clip.mp4", "nvdec", "nvdec"),
    ],
)
def test_missing_library_is_an_error_or_a_logged_fallback(
    missing: str, source: str, reader: str, expected: str
) -> None:
    """The test runs in a separate process in which the library cannot be imported."""
    done = run_python(f"""
import sys
sys.modules[{missing!r}] = None
from vision.capture.open import open_source
from vision.config import CameraConfig
from vision.errors import VisionError
camera = CameraConfig(id="gate", source={source!r}, reader={reader!r})
try:
    print(type(open_source(camera, offline=False, pixel_formats=("nv12", "bgr"))).__name__)
except VisionError as error:
    print(error.code)
    assert error.hint
""")
    assert done.stdout.strip() == expected, done.stderr
    assert bool(done.stderr) is (missing == "gi")


@pytest.mark.parametrize("source", ["csi:0", "rtsp://10.0.0.4/a"])
def test_required_gstreamer_that_is_missing_is_an_error(source: str) -> None:
    if available(camera(source, reader="gstreamer")) is None:
        assert type(opened(source, reader="gstreamer")) is GStreamerSource
        return
    with pytest.raises(ConfigError) as raised:
        opened(source, reader="gstreamer")
    assert raised.value.code == "gstreamer"


@pytest.mark.integration
def test_exceptions_of_other_libraries_work_after_loading_gstreamer() -> None:
    """GStreamer loads an unwinder whose functions have the same names as GCC's.

    If another library used this unwinder, a C++ exception would end the process.
    """
    if (reason := available(camera("rtsp://10.0.0.4/a"))) is not None:
        pytest.skip(f"needs GStreamer: {reason}")
    done = run_python(f"""
from vision.capture.gstreamer import bindings
bindings.library()
import numpy, onnxruntime
session = onnxruntime.InferenceSession({str(MODEL)!r})
try:
    session.run(None, {{"images": numpy.zeros((1, 3, 5, 5), numpy.float32)}})
except Exception as error:
    print("caught", error)
""")
    assert done.stdout.startswith("caught"), (done.returncode, done.stderr)


@pytest.mark.parametrize(("source", "expected"), [("clip.mp4", VideoFile), ("http://10.0.0.4/a", FFmpegSource)])
def test_nvdec_reader_without_nv12_falls_back_to_ffmpeg_with_a_warning(
    source: str, expected: type, caplog: pytest.LogCaptureFixture
) -> None:
    """For example, drawing and evaluation accept only bgr frames in host memory."""
    config = CameraConfig.model_validate({"id": f"gate-{expected.__name__}", "source": source, "reader": "nvdec"})
    assert type(open_source(config, offline=False, pixel_formats=("bgr",))) is expected
    ((warning,),) = log_args(caplog, "vision.capture.open")
    assert config.id in str(warning)


def test_usb_camera_receives_its_settings() -> None:
    source = opened("/dev/video3", width=1280, height=720, fps=15, open_timeout_s=3)
    assert isinstance(source, V4L2Source)


def test_synthetic_camera_receives_its_settings() -> None:
    info = opened("synthetic:64x48@30?seed=3").open()
    assert (info.width_px, info.height_px, info.fps, info.pixel_format) == (64, 48, 30.0, "nv12")
    info = opened("synthetic:64x48@30", width=32, height=16, fps=5).open()
    assert (info.width_px, info.height_px, info.fps) == (32, 16, 5.0)


@pytest.mark.parametrize(
    ("source", "offline", "live"),
    [("synthetic:", False, True), ("synthetic:", True, False), ("clip.mp4", False, False), ("clip.mp4", True, False)],
)
def test_live_is_true_for_cameras_and_false_for_recordings(source: str, offline: bool, live: bool) -> None:
    assert open_source(camera(source), offline=offline, pixel_formats=FORMATS).live is live


@pytest.mark.parametrize(
    ("source", "options", "formats", "code"),
    [
        ("frame.jpg", {}, ("nv12",), "pixel-format"),
        ("/dev/video3", {"reader": "opencv"}, ("nv12",), "pixel-format"),
        ("frame.jpg", {"reader": "ffmpeg"}, FORMATS, "reader"),
        ("synthetic:640x480?objcts=3", {}, FORMATS, "synthetic-address"),
    ],
)
def test_unsupported_combination_is_refused(
    source: str, options: dict[str, object], formats: tuple[PixelFormat, ...], code: str
) -> None:
    with pytest.raises(SourceError) as raised:
        open_source(camera(source, **options), offline=False, pixel_formats=formats)
    assert raised.value.code == code


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("rtsp://10.0.0.4/a", {}, SupervisorPolicy()),
        ("rtsp://10.0.0.4/a", {"read_timeout_s": 9}, SupervisorPolicy(read_timeout_s=9.0)),
        ("rtsp://10.0.0.4/a", {"frozen_after_s": None}, SupervisorPolicy(frozen_after_s=None)),
        ("/dev/video0", {"fps": 0.1}, SupervisorPolicy(read_timeout_s=30.0)),
        ("/dev/video0", {"fps": 30}, SupervisorPolicy()),
        ("clip.mp4", {}, SupervisorPolicy(finite=True, retry=False)),
        ("http://10.0.0.4/a.jpg", {"fps": 0.1}, SupervisorPolicy(read_timeout_s=30.0, finite=True)),
        ("synthetic:", {}, SupervisorPolicy(finite=True)),
    ],
)
def test_supervisor_policy_follows_the_configuration(
    source: str, options: dict[str, object], expected: SupervisorPolicy
) -> None:
    policy = supervisor_policy(camera(source, **options))
    assert replace(policy, longest_call_s=0.0) == expected
    assert policy.longest_call_s > 0


@pytest.mark.integration
@pytest.mark.parametrize(
    ("module", "libraries"),
    [
        ("vision.capture.source", ("cv2", "gi", "pydantic", "yaml")),
        ("vision.capture.supervisor", ("cv2", "gi", "pydantic", "yaml")),
        ("vision.capture.synthetic.source", ("cv2", "gi", "pydantic", "yaml")),
        ("vision.capture.open", ("cv2", "gi", "av")),
        ("vision.capture.ffmpeg.source", ("cv2", "gi")),
        ("vision.capture.ffmpeg.file", ("cv2", "gi")),
    ],
)
def test_import_does_not_load_libraries_that_are_not_needed(module: str, libraries: tuple[str, ...]) -> None:
    done = run_python(f"import {module}, sys; print([name for name in {libraries!r} if name in sys.modules])")
    assert (done.stdout, done.stderr) == ("[]\n", "")
