"""Tests of detection on frames that NVDEC decodes into GPU memory."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gpu.coded_video import FAST, decoded, written
from tests.gpu.opening import EMULATED
from tests.gpu.test_tensorrt_detector import detect, images, iou, open_nanodet, same
from tests.log_records import log_args
from vision.capture.ffmpeg.file import VideoFile
from vision.capture.nvdec.decoder import NvdecDecoder
from vision.capture.pacing import FramePacer
from vision.config import AppConfig
from vision.gpu.memory import allocated, device_frame_buffer
from vision.pipelines import load_pipeline
from vision.runtime.builder import RunOptions
from vision.runtime.camera_factory import CameraFactory, build_capture
from vision.runtime.runtime import Runtime
from vision.stages.stage import Report
from vision.types import Detections, Frame, FrameMeta, Result

CLIP = Path(__file__).parents[2] / "configs" / "vtest.mp4"
FRAMES = 2 if EMULATED else 200


pytestmark = pytest.mark.usefixtures("nvdec")


@pytest.fixture(scope="module")
def detector(device: object) -> Iterator[Any]:
    """Open one detector for all tests of this module, because opening a detector takes a long time."""
    settings: dict[str, Any] = {"batches_in_flight": 1, "max_batch": 1} if EMULATED else {}
    with closing(open_nanodet(score_threshold=0.3, **settings)) as opened:
        yield opened


class NeverClosed:
    """Detector that the tests share. `close` does nothing."""

    def __init__(self, detector: Any) -> None:
        self._detector = detector
        self.device_buffer = detector.device_buffer
        self.shared_buffers = detector.shared_buffers
        self.exported_buffers = detector.exported_buffers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._detector, name)

    def close(self) -> None:
        """Leave the detector open."""


@dataclass
class Kept:
    results: list[Result] = field(default_factory=list)

    def publish(self, result: Result) -> None:
        self.results.append(result)

    def report(self, report: Report) -> None:
        """Ignore the report."""


@pytest.fixture(scope="module")
def short_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the shipped clip. For the emulator, return the path of a shortened copy."""
    if not EMULATED:
        return CLIP
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    path.write_bytes(written(images(FRAMES), "libx264", "mp4", options=FAST))
    return path


def run(clip: Path, via: str, **options: Any) -> list[Result]:
    """Run `vision run --offline` on one file with the reader `via`. Return the results."""
    site = AppConfig.model_validate(
        {
            "model": "nanodet-g-416",
            "detect": {"score_threshold": 0.3},
            "cameras": ({"id": "gate", "source": str(clip), "reader": via},),
            "publish": {"bind": "tcp://127.0.0.1:*"},
        }
    )
    kept = Kept()
    with ExitStack() as resources:
        given = RunOptions(threading.Event(), offline=True, sink=kept, **options)
        load_pipeline("detect")(site, given, resources).run(threading.Event())
    return kept.results


def test_program_finds_the_same_objects_as_with_ffmpeg(
    short_clip: Path, detector: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    through = {via: run(short_clip, via, open_detector=lambda *_: NeverClosed(detector)) for via in ("nvdec", "ffmpeg")}
    assert any("nvdec-h264" in args for args in log_args(caplog, "vision.capture.session", logging.INFO))
    assert log_args(caplog, "vision.runtime.builder") == []
    actual, expected = through["nvdec"], through["ffmpeg"]
    assert len(actual) == len(expected) == FRAMES
    total, shares = 0, dict.fromkeys((0.98, 0.95, 0.9, 0.8), 0)
    for one, other in zip(actual, expected, strict=True):
        assert one.meta.index == other.meta.index
        assert isinstance(one.objects, Detections)
        assert isinstance(other.objects, Detections)
        for box, score, class_id in zip(
            other.objects.boxes_xyxy, other.objects.scores, other.objects.class_ids, strict=True
        ):
            if score < 0.45:
                continue
            total += 1
            alike = one.objects.class_ids == class_id
            best = max(iou(one.objects.boxes_xyxy[alike], box), default=0.0)
            for least in shares:
                shares[least] += bool(best >= least)
    print(f"\n{total} boxes over 0.45; matched at IoU", {least: f"{n / total:.3f}" for least, n in shares.items()})
    assert total >= 2 * len(expected)
    assert shares[0.9] >= 0.9 * total


@pytest.mark.parametrize("reader", ["nvdec", "ffmpeg"])
def test_capture_worker_delivers_the_same_frames(short_clip: Path, detector: Any, reader: str) -> None:
    """The worker writes to GPU memory of this process, or to shared memory that this process has page-locked."""
    gc.collect()  # frees the frames of earlier tests
    held = allocated()
    here, there = (
        run(short_clip, reader, capture_workers=workers, open_detector=lambda *_: NeverClosed(detector))
        for workers in (0, 1)
    )
    assert len(here) == len(there) == FRAMES
    for one, other in zip(here, there, strict=True):
        assert one.meta.index == other.meta.index
        assert one.meta.yuv == other.meta.yuv
        np.testing.assert_allclose(one.objects.boxes_xyxy, other.objects.boxes_xyxy, atol=0.01)
        np.testing.assert_array_equal(one.objects.class_ids, other.objects.class_ids)
    gc.collect()
    now = allocated()
    assert (now.device_bytes, now.host_bytes) == (held.device_bytes, held.host_bytes)


def test_pixel_stage_reads_the_frames_of_a_capture_worker(short_clip: Path, detector: Any) -> None:
    for reader in ("nvdec", "ffmpeg"):
        here, there = (brightness(short_clip, reader, NeverClosed(detector), workers=count) for count in (0, 1))
        assert len(here.means) == len(there.means) == FRAMES
        assert here.on_gpu == there.on_gpu == [reader == "nvdec"] * FRAMES
        np.testing.assert_allclose(here.means, there.means, atol=0.01)


def test_frames_from_nvdec_and_from_the_host_give_the_same_detections(short_clip: Path, detector: Any) -> None:
    count = min(FRAMES, 40)
    ours, theirs = [], []
    with closing(
        VideoFile(short_clip, ("nv12",), partial(NvdecDecoder, live=False), FramePacer(offline=True))
    ) as source:
        info = source.open()
        for number, (_, pixels) in enumerate(decoded(short_clip, count)):
            assert source.grab(1) is not None
            buffer = device_frame_buffer(576, 768, "nv12")
            source.retrieve(buffer)
            meta = FrameMeta("clip", number, 0, 0, 0, 768, 576, yuv=info.yuv)
            ours.append(Frame(meta, buffer))
            theirs.append(Frame.wrap(meta, pixels, "nv12"))
    same(detect(detector, ours), detect(detector, theirs))


class Brightness:
    """Pixel stage that computes the mean of all bytes of each frame."""

    def __init__(self) -> None:
        self.means: list[float] = []
        self.on_gpu: list[bool] = []

    def with_frame(self, result: Result, frame: Frame) -> Result:
        self.on_gpu.append(frame.buffer.host is None)
        self.means.append(float(frame.pixels.mean()))
        assert frame.pixels is frame.pixels, "a frame is copied from the GPU more than once"
        return result


def brightness(clip: Path, reader: str, detector: Any, *, workers: int = 0) -> Brightness:
    """Run a pipeline with the pixel stage `Brightness` on one file. Return the stage."""
    config = AppConfig.model_validate({"cameras": [{"id": "gate", "source": str(clip), "reader": reader}]})
    options = RunOptions(threading.Event(), offline=True, capture_workers=workers)
    stage = Brightness()
    cameras, capture = build_capture(config, CameraFactory.of(options, detector, [stage]))
    Runtime(cameras=cameras, capture=capture, detector=detector, stages=[stage], sinks=[Kept()]).run(options.stop)
    return stage


def test_pixel_stage_gets_the_same_pixels_from_nvdec_as_from_the_cpu(short_clip: Path, detector: Any) -> None:
    ours, theirs = (brightness(short_clip, reader, NeverClosed(detector)) for reader in ("nvdec", "ffmpeg"))
    assert len(ours.means) == len(theirs.means) == FRAMES
    assert all(ours.on_gpu)
    assert not any(theirs.on_gpu)
    assert min(theirs.means) > 20
    np.testing.assert_allclose(ours.means, theirs.means, atol=0.5)


def test_cpu_detector_gets_host_copies(short_clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    from vision.detect.open import open_detector

    def on_cpu(folder: Path, spec: Any, settings: Any) -> Any:
        return open_detector(folder, spec, settings.model_copy(update={"backend": "onnxruntime"}))

    results = run(short_clip, "nvdec", open_detector=on_cpu)
    ((_, detector),) = log_args(caplog, "vision.runtime.camera_factory")
    assert detector == "onnxruntime cpu fp32"
    assert len(results) == FRAMES
    assert sum(len(result.objects) for result in results) >= 2 * len(results)
