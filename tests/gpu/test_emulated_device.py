"""Tests, in the emulator, of the errors for an unusable GPU, and of the choice between NVDEC and FFmpeg.

The tests of errors cover the path from the CUDA call to the line in the terminal.
"""

from __future__ import annotations

import gc
import logging
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.gpu.coded_video import FAST, served, video
from tests.gpu.opening import EMULATED
from tests.gpu.test_emulated_detector import opened
from tests.log_records import log_args
from tests.unit.capture.test_ffmpeg_file import turned
from vision.capture import open as opening
from vision.capture.gstreamer.source import available
from vision.capture.open import chooses_nvdec, open_source
from vision.capture.pacing import FramePacer
from vision.capture.source import Source
from vision.capture.supervisor import CameraSupervisor, SupervisorPolicy
from vision.capture.synthetic.source import SyntheticSource
from vision.capture.synthetic.spec import SyntheticSpec
from vision.cli.doctor import check_cuda
from vision.config import AppConfig, CameraConfig, DetectConfig, folder_of_model, load_model_spec, shipped_models
from vision.detect.open import open_detector
from vision.detect.tensorrt.frames import PIXEL_FORMATS
from vision.errors import DeviceError, DeviceMissing, EndOfStream, OutOfMemory, SourceError
from vision.gpu.cuda import no_device, open_device
from vision.gpu.memory import allocated, device_frame_buffer, page_locked_frame_buffer
from vision.pipelines import load_pipeline
from vision.runtime.builder import RunOptions
from vision.runtime.latest_slot import Allocate, LatestSlot
from vision.stages.stage import Report
from vision.types import FrameBuffer, Result, frame_shape
from vision.version import install_hint

Frame = tuple[int | None, NDArray[np.uint8]]

pytestmark = pytest.mark.skipif(not EMULATED, reason="needs a driver that can be told what to say")

UNUSABLE = [(35, 12020, "old-driver"), (35, 0, "no-driver"), (100, 13000, "no-gpu")]


@pytest.fixture(params=UNUSABLE, ids=["old driver", "no driver", "no GPU"])
def unusable(request: pytest.FixtureRequest) -> Iterator[DeviceError]:
    """Make the GPU unusable until the end of the test. Yield the expected error."""
    from cuda.bindings.device import gpu

    status, version, code = request.param
    expected = no_device(status, version, 13000)
    assert expected.code == code
    open_device.cache_clear()
    known, gpu.count_status, gpu.driver_version = gpu.driver_version, status, version
    try:
        yield expected
    finally:
        gpu.count_status, gpu.driver_version = 0, known
        open_device.cache_clear()


def test_unusable_gpu_is_a_configuration_error(unusable: DeviceError) -> None:
    folder = folder_of_model("nanodet-g-416", shipped_models())
    with pytest.raises(DeviceMissing) as caught:
        open_detector(folder, load_model_spec(folder), DetectConfig(backend="tensorrt"))
    assert caught.value.code == unusable.code
    assert caught.value.hint
    assert caught.value.exit_code == unusable.exit_code


def test_automatic_backend_logs_why_the_gpu_is_not_used(
    unusable: DeviceError, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of_model("nanodet-g-416", shipped_models())
    with caplog.at_level(logging.DEBUG):
        open_detector(folder, load_model_spec(folder), DetectConfig(threads=1)).close()
    assert unusable.args[0] in caplog.text


def test_doctor_reports_an_unusable_gpu(unusable: DeviceError) -> None:
    finding = check_cuda()
    assert finding.verdict in ("missing", "broken")
    assert unusable.args[0] in finding.detail
    assert unusable.hint in finding.hint


def test_doctor_reports_the_gpu() -> None:
    open_device.cache_clear()
    finding = check_cuda()
    assert "Emulated GPU" in finding.detail
    assert "sm_90" in finding.detail
    assert "13.0" in finding.detail


FRAME_BYTES = 640 * 480 * 3 // 2


@contextmanager
def room_for(nbytes: int) -> Iterator[None]:
    """Limit the free memory of the GPU to `nbytes` until the end of the `with` block."""
    from cuda.bindings.device import gpu

    total, gpu.total_bytes = gpu.total_bytes, gpu.used_bytes + nbytes
    try:
        yield
    finally:
        gpu.total_bytes = total


page_locked = partial(page_locked_frame_buffer, in_place=False)


def held() -> tuple[int, int, int]:
    """Return the allocated bytes: GPU memory and host memory counted by `vision`, and GPU memory counted by the GPU."""
    from cuda.bindings.device import gpu

    gc.collect()  # tracebacks of other tests hold buffers
    now = allocated()
    return now.device_bytes, now.host_bytes, gpu.used_bytes


@pytest.mark.parametrize("images", [0.5, 1.5, 2.5, 3.5, 4.5, 5.5])
@pytest.mark.parametrize("where", ["both", "shared", "decoded on the GPU"])
def test_failed_frame_buffer_releases_its_memory(where: str, images: float) -> None:
    """The free memory is too small for the host part of the buffer, or for the GPU part of the buffer."""
    allocators: dict[str, Allocate] = {
        "both": page_locked,
        "shared": partial(page_locked_frame_buffer, in_place=True),
        "decoded on the GPU": device_frame_buffer,
    }
    needed = 6 if where == "both" else 3
    slot = LatestSlot("gate", allocators[where])
    before = held()
    with room_for(int(images * FRAME_BYTES)):
        if images < needed:
            with pytest.raises(OutOfMemory) as caught:
                slot.configure(480, 640, "nv12")
            assert "640x480" in caught.value.args[0]
            del caught
            assert held() == before
    slot.configure(480, 640, "nv12")
    assert held()[2] >= before[2] + needed * FRAME_BYTES
    del slot
    assert held() == before


def test_camera_without_memory_reconnects_and_others_go_on() -> None:
    """The camera releases its memory and reconnects. When enough memory is free, the frames of the camera arrive."""
    from cuda.bindings.device import gpu

    spec = SyntheticSpec.parse("synthetic:64x48?format=nv12&resize=5:640x480&frames=8")
    slot = LatestSlot("gate", page_locked)
    before, seen = held(), []

    def wait(_: float) -> None:
        seen.append((supervisor.status(), held()))
        if len(seen) == 2:
            gpu.total_bytes += 6 * FRAME_BYTES

    supervisor = CameraSupervisor(
        "gate",
        lambda: SyntheticSource(spec, ("nv12",), FramePacer(offline=True)),
        slot,
        SupervisorPolicy(finite=True),
        wait=wait,
    )
    with room_for(int(3.5 * FRAME_BYTES)):
        supervisor.run()
    assert len(seen) == 2
    for status, bytes_held in seen:
        assert status.state == "backing-off"
        assert "640x480" in status.last_error
        assert "MiB" in status.last_error
        assert status.last_hint
        assert bytes_held == before
    lease = slot.take()
    assert lease is not None
    assert (lease.frame.meta.index, lease.frame.pixels.shape) == (2, (720, 640))


# --- NVDEC without a setting ------------------------------------------------------------------------------------------


def camera(source: object, **settings: Any) -> CameraConfig:
    return CameraConfig.model_validate({"id": "gate", "source": str(source), **settings})


@pytest.mark.parametrize(
    ("source", "settings", "expected"),
    [
        ("clip.mp4", {}, True),
        ("clip.mp4", {"loop": True}, False),
        ("http://10.0.0.4/a", {}, True),
        ("rtsp://10.0.0.4/a", {}, available(CameraConfig(id="a", source="rtsp://10.0.0.4/a")) is not None),
        ("clip.mp4", {"reader": "ffmpeg"}, False),
        ("http://10.0.0.4/a", {"reader": "ffmpeg"}, False),
        ("frame.jpg", {}, False),
        (".", {}, False),
        ("/dev/video0", {}, False),
        ("csi:0", {}, False),
        ("synthetic:", {}, False),
    ],
)
def test_nvdec_decodes_supported_sources(source: str, settings: dict[str, Any], expected: bool) -> None:
    assert chooses_nvdec(camera(source, **settings)) is expected


def test_nvdec_decodes_rtsp_over_tcp_without_gstreamer() -> None:
    """The test runs in a separate process without GStreamer. Over UDP, damage by lost packets would be unreported."""
    program = """
import sys
sys.modules["gi"] = None
from vision.capture.open import chooses_nvdec
from vision.config import CameraConfig
for transport in ("tcp", "udp"):
    print(transport, chooses_nvdec(CameraConfig(id="gate", source="rtsp://10.0.0.4/a", transport=transport)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == ["tcp True", "udp False"], done.stderr


@pytest.fixture
def caches_cleared() -> Iterator[None]:
    """Clear all cached properties of the GPU and its decoders before and after the test."""
    for known in (open_device, opening._has_nvdec):
        known.cache_clear()
    yield
    for known in (open_device, opening._has_nvdec):
        known.cache_clear()


def test_nvdec_is_not_used_on_a_jetson(caches_cleared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import runtime

    monkeypatch.setitem(runtime.ATTRIBUTES, runtime.cudaDeviceAttr.cudaDevAttrIntegrated, 1)
    assert not chooses_nvdec(camera("clip.mp4"))


def test_missing_nvdec_module_is_logged(
    caches_cleared: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from vision.capture.nvdec import bindings

    bindings._library.cache_clear()
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)
    with caplog.at_level(logging.INFO):
        assert not chooses_nvdec(camera("clip.mp4"))
    assert install_hint("nvdec") in caplog.text


def read(source: Source, *, on_gpu: bool) -> Generator[Frame]:
    """Yield the times and frames of a source until it ends. `on_gpu` selects GPU memory instead of host memory."""
    with closing(source):
        info = source.open()
        while True:
            try:
                grab = source.grab(10)
            except EndOfStream:
                return
            except SourceError as error:
                if error.code == "stream-ended":
                    return
                raise
            assert grab is not None
            if on_gpu:
                buffer = device_frame_buffer(info.height_px, info.width_px, info.pixel_format)
            else:
                buffer = FrameBuffer.allocate(info.height_px, info.width_px, info.pixel_format)
            source.retrieve(buffer)
            yield grab.pts_ns, buffer.read()


def by_auto(source: object, **settings: Any) -> Source:
    return open_source(camera(source, **settings), offline=True, pixel_formats=PIXEL_FORMATS, nvdec=True)


def by_ffmpeg(source: object, **settings: Any) -> Source:
    return open_source(camera(source, reader="ffmpeg", **settings), offline=True, pixel_formats=PIXEL_FORMATS)


def same(actual: list[Frame], reference: list[Frame]) -> None:
    assert [pts_ns for pts_ns, _ in actual] == [pts_ns for pts_ns, _ in reference]
    for (_, one), (_, other) in zip(actual, reference, strict=True):
        np.testing.assert_array_equal(one, other)


REFUSED = {
    "motion jpeg": (partial(video, "mjpeg", "matroska", pixels="yuvj420p", count=8), "mjpeg"),
    "10 bits": (partial(video, "libx265", "mp4", pixels="yuv420p10le", count=8), "8"),
    # If the stream has reordered frames, NVDEC refuses it only some packets later.
    "too wide": (partial(video, "libx264", "mp4", size=(64, 4224), count=8), "H264"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_ffmpeg_decodes_into_gpu_memory_what_nvdec_refuses(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No frame is lost, and the log contains each reason only once."""
    make, why = REFUSED[name]
    path = tmp_path / f"{name}.video"
    path.write_bytes(make())
    reference = list(read(by_ffmpeg(path), on_gpu=False))
    assert len(reference) == 8
    opening._warn_once.cache_clear()
    held = allocated().device_bytes
    for _ in range(2):
        same(list(read(by_auto(path), on_gpu=True)), reference)
    same(list(read(by_auto(path), on_gpu=False)), reference)
    ((reason,),) = log_args(caplog, "vision.capture.open")
    assert re.search(rf"\b{why}\b", str(reason).partition("because")[2])
    assert allocated().device_bytes == held


def test_nvdec_decodes_a_supported_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(video("libx264", "mp4", count=8, options=(*FAST.items(), ("bf", "0"))))
    with closing(by_auto(path)) as source:
        assert source.open().decoder == "nvdec-h264"
    actual, reference = list(read(by_auto(path), on_gpu=True)), list(read(by_ffmpeg(path), on_gpu=False))
    assert [pts_ns for pts_ns, _ in actual] == [pts_ns for pts_ns, _ in reference]
    for (_, nv12), (_, i420) in zip(actual, reference, strict=True):
        np.testing.assert_array_equal(nv12[:192], i420[:192])
    assert caplog.text == ""


def test_rotated_video_is_decoded_by_ffmpeg(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """NVDEC does not rotate frames. A configuration that requires NVDEC for such a video causes an error."""
    path = tmp_path / "a.mp4"
    path.write_bytes(video("libx264", "mp4", count=8, options=(*FAST.items(), ("bf", "0"))))
    turned(path, 1)
    opening._warn_once.cache_clear()
    actual = list(read(by_auto(path), on_gpu=True))
    assert actual[0][1].shape == frame_shape(320, 192, "i420")
    same(actual, list(read(by_ffmpeg(path), on_gpu=False)))
    assert len(log_args(caplog, "vision.capture.open")) == 1
    source = open_source(camera(path, reader="nvdec"), offline=True, pixel_formats=PIXEL_FORMATS)
    with (
        closing(source),
        pytest.raises(SourceError),
    ):
        source.open()


def test_loop_uses_the_same_decoder_for_every_pass(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.video"
    path.write_bytes(REFUSED["10 bits"][0]())
    once = [pixels for _, pixels in read(by_ffmpeg(path), on_gpu=False)]
    opening._warn_once.cache_clear()
    with closing(read(by_auto(path, loop=True), on_gpu=True)) as images:
        for number in range(20):
            np.testing.assert_array_equal(next(images)[1], once[number % 8])
    assert len(log_args(caplog, "vision.capture.open")) == 1


def test_no_decoder_is_opened_if_memory_is_low(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from cuda.bindings.device import gpu

    path = tmp_path / "a.mp4"
    path.write_bytes(video("libx264", "mp4", count=8, options=(*FAST.items(), ("bf", "0"))))
    opening._warn_once.cache_clear()
    total, gpu.total_bytes = gpu.total_bytes, gpu.used_bytes + (8 << 20)
    taken = gpu.allocate(int(7.5 * 2**20))
    try:
        actual = list(read(by_auto(path), on_gpu=True))
    finally:
        gpu.free(taken)
        gpu.total_bytes = total
    same(actual, list(read(by_ffmpeg(path), on_gpu=False)))
    ((reason,),) = log_args(caplog, "vision.capture.open")
    assert "1/8" in str(reason)


def test_ffmpeg_takes_over_a_network_camera_that_nvdec_refuses(caplog: pytest.LogCaptureFixture) -> None:
    """The connection stays open, and no frame is lost."""
    data = video("libx265", "mpegts", pixels="yuv420p10le", count=8)
    opening._warn_once.cache_clear()
    with served(data, name="live.ts") as address:
        actual, reference = list(read(by_auto(address), on_gpu=True)), list(read(by_ffmpeg(address), on_gpu=False))
    assert len(actual) == 8
    same(actual, reference)
    ((reason,),) = log_args(caplog, "vision.capture.open")
    assert re.search(r"\b8\b", str(reason))


def test_unsupported_change_of_a_stream_ends_the_connection() -> None:
    """The stream of a camera can change in this way after a new configuration. The next connection uses FFmpeg."""
    options = (*FAST.items(), ("bf", "0"))
    parts = [video("libx264", "h264", count=8, pixels=pixels, options=options) for pixels in ("yuv420p", "yuv420p10le")]
    actual: list[Frame] = []
    with (
        served(*parts, name="live.h264") as address,
        pytest.raises(SourceError),
        closing(read(by_auto(address), on_gpu=True)) as images,
    ):
        actual.extend(images)
    with served(parts[1], name="live.h264") as address:
        assert len(list(read(by_auto(address), on_gpu=True))) == 8
    assert len(actual) == 8


class Counted:
    """Sink that counts the results of each camera."""

    def __init__(self) -> None:
        self.results: Counter[str] = Counter()

    def publish(self, result: Result) -> None:
        self.results[result.meta.camera_id] += 1

    def report(self, report: Report) -> None:
        """Ignore the report."""


def test_program_decodes_each_camera_with_the_decoder_that_supports_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The configurations of the two cameras select no decoder. NVDEC decodes one stream, and rejects the other."""
    caplog.set_level(logging.INFO)
    options = (*FAST.items(), ("bf", "0"))
    (tmp_path / "a.mp4").write_bytes(video("libx264", "mp4", count=8, options=options))
    (tmp_path / "b.mkv").write_bytes(REFUSED["motion jpeg"][0]())
    cameras = [{"id": name[0], "source": str(tmp_path / name)} for name in ("a.mp4", "b.mkv")]
    detector, sink = opened(), Counted()
    on_gpu: list[bool] = []
    submit = detector.submit

    def watched(slot: int, frames: Any) -> None:
        on_gpu.extend(frame.buffer.host is None for frame in frames)
        submit(slot, frames)

    detector.submit = watched  # type: ignore[method-assign]
    with ExitStack() as resources:
        given = RunOptions(threading.Event(), offline=True, sink=sink, open_detector=lambda *_: detector)
        load_pipeline("detect")(AppConfig.model_validate({"cameras": cameras}), given, resources).run(given.stop)
    assert sink.results == {"a": 8, "b": 8}
    assert on_gpu == [True] * 16
    assert {("a", "320x192 nv12", "nvdec-h264"), ("b", "320x192 i420", "pyav-mjpeg")} <= set(
        log_args(caplog, "vision.capture.session", logging.INFO)
    )
    ((reason,),) = log_args(caplog, "vision.capture.open")
    assert "camera b" in str(reason)
    assert "mjpeg" in str(reason)
