"""Which class opens which camera, what it is told, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from vision.capture.ffmpeg.file import PyAVFile
from vision.capture.ffmpeg.source import PyAVSource
from vision.capture.gstreamer.source import GStreamerSource, available
from vision.capture.open import open_source, supervision_of
from vision.capture.opencv.file import VideoFile
from vision.capture.opencv.images import ImageFolder
from vision.capture.opencv.source import LiveCapture, NetworkLink, UsbLink
from vision.capture.source import Source
from vision.capture.supervisor import SupervisorPolicy
from vision.capture.synthetic.source import Synthetic
from vision.config.app import CameraConfig
from vision.errors import SourceError
from vision.types import PixelFormat
from vision.version import install_hint

MODEL = ROOT / "models" / "nanodet-g-416" / "nanodet-g-416.onnx"
FORMATS: tuple[PixelFormat, ...] = ("nv12", "bgr")


def camera(source: str, **options: object) -> CameraConfig:
    return CameraConfig.model_validate({"id": "gate", "source": source, **options})


def opened(source: str, **options: object) -> Source:
    return open_source(camera(source, **options), offline=False, pixel_formats=FORMATS)


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("rtsp://10.0.0.4/a", {"reader": "opencv"}, LiveCapture),
        ("rtsps://10.0.0.4/a", {"reader": "opencv"}, LiveCapture),
        ("rtsp://10.0.0.4/a", {"reader": "ffmpeg"}, PyAVSource),
        ("http://10.0.0.4/a.mjpg", {}, PyAVSource),
        ("http://10.0.0.4/a.mjpg", {"reader": "ffmpeg"}, PyAVSource),
        ("https://10.0.0.4/a.mjpg", {"reader": "opencv"}, LiveCapture),
        ("/dev/video3", {}, LiveCapture),
        ("/dev/v4l/by-id/usb-camera", {}, LiveCapture),
        ("clip.mp4", {}, PyAVFile),
        ("clip.mp4", {"reader": "ffmpeg"}, PyAVFile),
        ("clip.mp4", {"reader": "opencv", "loop": True}, VideoFile),
        ("frame.JPG", {}, ImageFolder),
        ("folder", {}, ImageFolder),
        ("synthetic:", {}, Synthetic),
    ],
)
def test_which_class(
    source: str, options: dict[str, object], expected: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert type(opened(source, **options)) is expected


@pytest.mark.parametrize(
    ("formats", "reader", "expected"),
    [
        (("nv12", "i420", "bgrx", "bgr"), "auto", PyAVFile),
        (("i420",), "auto", PyAVFile),
        (("bgr", "bgrx", "nv12", "i420"), "auto", VideoFile),
        (("bgr",), "auto", VideoFile),
        (("bgr", "bgrx", "nv12", "i420"), "ffmpeg", PyAVFile),
        (("nv12", "i420", "bgrx", "bgr"), "opencv", VideoFile),
    ],
)
def test_a_file_is_read_by_what_gives_the_cheapest_format(
    formats: tuple[PixelFormat, ...], reader: str, expected: type
) -> None:
    """Of the detectors, TensorRT's takes what FFmpeg decodes to; ONNX Runtime's would convert it as OpenCV does."""
    assert type(open_source(camera("clip.mp4", reader=reader), offline=False, pixel_formats=formats)) is expected


def test_what_is_not_installed_is_not_chosen() -> None:
    """NVDEC on any machine, in a process of its own; where it is, `tests/gpu` has what is chosen."""
    code = """
import sys
sys.modules["PyNvVideoCodec"] = None
from vision.capture.open import chooses_nvdec
from vision.config.app import CameraConfig
sources = ("clip.mp4", "http://10.0.0.4/a", "rtsp://10.0.0.4/a")
print([chooses_nvdec(CameraConfig(id="gate", source=source)) for source in sources])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[False, False, False]\n", done.stderr


def test_rtsp_goes_through_gstreamer_where_that_can_and_the_log_says_where_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rtsp = camera("rtsp://10.0.0.4/a")
    reason = available(rtsp)
    source = open_source(rtsp, offline=False, pixel_formats=FORMATS)
    assert type(source) is (GStreamerSource if reason is None else PyAVSource)
    assert ("through ffmpeg, because" in caplog.text) is (reason is not None)


@pytest.mark.parametrize(
    ("missing", "source", "reader", "expected", "said"),
    [
        (["gi"], "rtsp://10.0.0.4/a", "auto", "PyAVSource", "through ffmpeg, because PyGObject is not there"),
        (["gi", "av"], "rtsp://10.0.0.4/a", "auto", "LiveCapture", "through opencv, because PyGObject is not there"),
        (["gi", "av"], "rtsp://10.0.0.4/a", "auto", "LiveCapture", "through opencv, because PyAV is not there"),
        (["av"], "http://10.0.0.4/a", "auto", "LiveCapture", "through opencv, because PyAV is not there"),
        (["av"], "http://10.0.0.4/a", "ffmpeg", "SourceError", install_hint("ffmpeg")),
        ([], "http://10.0.0.4/a", "auto", "PyAVSource", ""),
        (["av"], "http://10.0.0.4/a", "nvdec", "SourceError", install_hint("nvdec")),
        (["av"], "clip.mp4", "auto", "VideoFile", "through opencv, because PyAV is not there"),
        (["av"], "clip.mp4", "ffmpeg", "SourceError", install_hint("ffmpeg")),
        (["cv2"], "clip.mp4", "auto", "PyAVFile", ""),
        (["cv2"], "clip.mp4", "opencv", "SourceError", "OpenCV is not there"),
        (["cv2"], "frame.jpg", "auto", "PyAVFile", ""),
        (["cv2"], ".", "auto", "SourceError", "OpenCV is not there"),
        (["cuda.bindings"], "clip.mp4", "nvdec", "SourceError", "NVDEC cannot be used: cuda-python cannot be imported"),
    ],
)
def test_the_best_library_that_is_there_is_taken_and_the_log_says_why(
    missing: list[str], source: str, reader: str, expected: str, said: str
) -> None:
    """In a process of its own, for which these modules are not there."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys({missing!r}))
from vision.capture.open import open_source
from vision.config.app import CameraConfig
from vision.errors import SourceError
camera = CameraConfig(id="gate", source={source!r}, reader={reader!r})
try:
    print(type(open_source(camera, offline=False, pixel_formats=("nv12", "bgr"))).__name__)
except SourceError as error:
    print(f"SourceError {{error}}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split()[0] == expected, done.stderr
    assert said in done.stdout + done.stderr
    assert bool(done.stderr) is (reader == "auto" and bool({"gi", "av"} & set(missing)))


@pytest.mark.parametrize("source", ["csi:0", "rtsp://10.0.0.4/a"])
def test_gstreamer_that_was_asked_for_and_cannot_is_an_error(source: str) -> None:
    one = camera(source, reader="gstreamer")
    reason = available(one)
    if reason is None:
        assert type(opened(source, reader="gstreamer")) is GStreamerSource
        return
    with pytest.raises(SourceError, match="GStreamer cannot open it"):
        opened(source, reader="gstreamer")


def test_with_gstreamer_other_libraries_can_still_throw() -> None:
    """It brings an unwinder whose functions have the names of GCC's: a C++ exception would end the process."""
    if (reason := available(camera("rtsp://10.0.0.4/a"))) is not None:
        pytest.skip(f"needs GStreamer: {reason}")
    code = f"""
from vision.capture.gstreamer import bindings
bindings.library()
import numpy, onnxruntime
session = onnxruntime.InferenceSession({str(MODEL)!r})
try:
    session.run(None, {{"images": numpy.zeros((1, 3, 5, 5), numpy.float32)}})
except Exception as error:
    print("caught", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("caught"), (done.returncode, done.stderr)


@pytest.mark.parametrize(("source", "expected"), [("clip.mp4", VideoFile), ("http://10.0.0.4/a", PyAVSource)])
def test_what_wants_bgr_is_not_opened_through_nvdec(
    source: str, expected: type, caplog: pytest.LogCaptureFixture
) -> None:
    """Drawing and evaluating, which need no graphics card."""
    one = CameraConfig.model_validate({"id": f"gate-{expected.__name__}", "source": source, "reader": "nvdec"})
    assert type(open_source(one, offline=False, pixel_formats=("bgr",))) is expected
    assert "not through nvdec, because that gives nv12, and bgr is wanted" in caplog.text


def link_of(source: Source) -> object:
    assert isinstance(source, LiveCapture)
    return source.link


def test_what_a_network_camera_is_told() -> None:
    source = opened("rtsp://10.0.0.4/a", reader="opencv", transport="udp", open_timeout_s=3, read_timeout_s=7)
    assert link_of(source) == NetworkLink("rtsp://10.0.0.4/a", "udp", 3.0, 7.0)


def test_what_a_usb_camera_is_told() -> None:
    source = opened("/dev/video3", width=1280, height=720, fps=15, open_timeout_s=3)
    assert link_of(source) == UsbLink("/dev/video3", 1280, 720, 15.0, 3.0)


def test_what_a_made_up_camera_is_told() -> None:
    info = opened("synthetic:64x48@30?seed=3").open()
    assert (info.width_px, info.height_px, info.fps, info.pixel_format) == (64, 48, 30.0, "nv12")
    info = opened("synthetic:64x48@30", width=32, height=16, fps=5).open()
    assert (info.width_px, info.height_px, info.fps) == (32, 16, 5.0)


@pytest.mark.parametrize(
    ("source", "offline", "live"),
    [("synthetic:", False, True), ("synthetic:", True, False), ("clip.mp4", False, False), ("clip.mp4", True, False)],
)
def test_what_is_live(source: str, offline: bool, live: bool) -> None:
    assert open_source(camera(source), offline=offline, pixel_formats=FORMATS).live is live


@pytest.mark.parametrize(
    ("source", "options", "formats", "message"),
    [
        ("clip.mp4", {"reader": "opencv"}, ("nv12",), "OpenCV delivers bgr frames"),
        ("frame.jpg", {}, ("nv12",), "OpenCV delivers bgr frames"),
        ("frame.jpg", {"reader": "ffmpeg"}, FORMATS, "expected no `reader: ffmpeg`.*images are read with OpenCV"),
        ("/dev/video3", {"reader": "opencv"}, ("nv12",), "OpenCV delivers bgr frames"),
        ("http://10.0.0.4/a", {"reader": "opencv"}, ("nv12",), "OpenCV delivers bgr frames"),
        ("synthetic:640x480?objcts=3", {}, FORMATS, "unknown option 'objcts'"),
    ],
)
def test_what_is_refused(
    source: str, options: dict[str, object], formats: tuple[PixelFormat, ...], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(camera(source, **options), offline=False, pixel_formats=formats)


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("rtsp://10.0.0.4/a", {}, SupervisorPolicy()),
        ("rtsp://10.0.0.4/a", {"read_timeout_s": 9}, SupervisorPolicy(read_timeout_s=9.0)),
        ("rtsp://10.0.0.4/a", {"frozen_after_s": None}, SupervisorPolicy(frozen_after_s=None)),
        ("/dev/video0", {"fps": 0.1}, SupervisorPolicy(read_timeout_s=30.0)),
        ("/dev/video0", {"fps": 30}, SupervisorPolicy()),
        ("clip.mp4", {}, SupervisorPolicy(finite=True)),
        ("synthetic:", {}, SupervisorPolicy(finite=True)),
    ],
)
def test_how_it_is_watched(source: str, options: dict[str, object], expected: SupervisorPolicy) -> None:
    assert supervision_of(camera(source, **options)) == expected


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("vision.capture.source", ("cv2", "gi", "pydantic", "yaml")),
        ("vision.capture.supervisor", ("cv2", "gi", "pydantic", "yaml")),
        ("vision.capture.synthetic.source", ("cv2", "gi", "pydantic", "yaml")),
        ("vision.capture.open", ("cv2", "gi", "av")),
        ("vision.capture.ffmpeg.source", ("cv2", "gi")),
        ("vision.capture.ffmpeg.file", ("cv2", "gi")),
    ],
)
def test_libraries_are_imported_when_they_are_needed(module: str, unwanted: tuple[str, ...]) -> None:
    code = f"import {module}, sys; print([name for name in {unwanted!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
