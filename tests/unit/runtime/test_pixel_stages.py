"""Tests that each stage that reads frames gets the right frame, holds few frames, and releases all after a failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.unit.runtime.test_runtime import MS, Collector, check_accounts
from vision.config import AppConfig
from vision.detect.fake import FakeDetector
from vision.drawing.test_pattern import FAKE_COLORS
from vision.errors import DeviceError
from vision.runtime.builder import RunOptions
from vision.runtime.camera_factory import build_cameras
from vision.runtime.camera_set import FRAMES_HELD_BY_STAGES, Camera
from vision.runtime.runtime import Runtime
from vision.stages.stage import Stage
from vision.types import DropReason, Frame, Result

pytestmark = pytest.mark.integration


def runtime_of(
    sources: list[str], stages: list[Stage], detector: FakeDetector, *, offline: bool = False
) -> tuple[Runtime, Collector, list[Camera]]:
    cameras = [{"id": f"camera-{at}", "source": source} for at, source in enumerate(sources)]
    site = AppConfig.model_validate({"cameras": cameras})
    opened = build_cameras(site, RunOptions(threading.Event(), offline=offline), detector, stages)
    sink = Collector()
    return Runtime(cameras=opened, detector=detector, sinks=[sink], stages=stages), sink, opened


def leased(camera: Camera) -> int:
    return camera.slot._leased


@dataclass
class Looker:
    """Pixel stage that checks the center pixel of every object, and records the largest number of leases."""

    cameras: list[Camera] = field(default_factory=list)
    wrong: int = 0
    seen: int = 0
    most_leased: int = 0
    look: Callable[[Result], None] = lambda _result: None

    def with_frame(self, result: Result, frame: Frame) -> Result:
        assert frame.meta == result.meta
        self.look(result)
        for (x1, y1, x2, y2), class_id in zip(result.objects.boxes_xyxy, result.objects.class_ids, strict=True):
            middle = frame.pixels[int(y1 + y2) // 2, int(x1 + x2) // 2]
            self.seen += 1
            self.wrong += tuple(int(level) for level in middle) != FAKE_COLORS[class_id]
        self.most_leased = max([self.most_leased, *(leased(camera) for camera in self.cameras)])
        return result

    def counters(self) -> dict[str, int]:
        return {"looker.seen": self.seen}


def test_pixel_stage_sees_every_frame_unchanged_with_its_objects() -> None:
    looker = Looker()
    plain: list[int] = []

    def note(result: Result) -> Result:
        plain.append(result.meta.index)
        return result

    sources = [f"synthetic:160x120@1000?frames=60&seed={seed}&format=bgr" for seed in (1, 2)]
    detector = FakeDetector(batches_in_flight=2, max_batch=2)
    runtime, sink, cameras = runtime_of(sources, [note, looker], detector, offline=True)
    report = runtime.run(threading.Event())
    assert (looker.wrong, looker.seen) == (0, sum(len(r.objects) for rs in sink.results.values() for r in rs))
    assert looker.seen > 120
    assert len(plain) == 120
    counters = report.node.counters
    assert (counters["detector.truncated_candidates"], counters["looker.seen"]) == (0, looker.seen)
    for camera in cameras:
        assert [result.meta.index for result in sink.results[camera.slot.camera_id]] == list(range(60))
        assert leased(camera) == 0


def test_slow_pixel_stage_supersedes_frames_and_holds_few() -> None:
    def slow(_result: Result) -> None:
        time.sleep(0.05)

    looker = Looker(look=slow)
    detector = FakeDetector(batches_in_flight=2, max_batch=2)
    runtime, sink, cameras = runtime_of(["synthetic:160x120@100?format=bgr"] * 2, [looker], detector)
    looker.cameras = cameras
    runtime.run(threading.Event(), for_s=2)
    assert looker.wrong == 0
    assert 1 < looker.most_leased <= detector.spec.batches_in_flight + FRAMES_HELD_BY_STAGES
    for camera in cameras:
        counts = camera.slot.counts()
        assert counts.dropped[DropReason.SUPERSEDED] > 20
        check_accounts(camera, sink.results[camera.slot.camera_id])
        assert leased(camera) == 0


def test_leases_end_with_the_detector_without_a_pixel_stage() -> None:
    most = 0

    def slow(result: Result) -> Result:
        nonlocal most
        time.sleep(0.02)
        most = max([most, *(leased(camera) for camera in cameras)])
        return result

    detector = FakeDetector(batches_in_flight=1, max_batch=1)
    runtime, _, cameras = runtime_of(["synthetic:160x120@100"], [slow], detector)
    runtime.run(threading.Event(), for_s=1)
    assert most <= 1


class FailingDetector(FakeDetector):
    """Detector that fails in its third batch."""

    def submit(self, slot: int, frames: list[Frame]) -> None:  # type: ignore[override]
        if self._submitted == 2:
            raise DeviceError("no")
        super().submit(slot, frames)


class FailingSink(Collector):
    def publish(self, result: Result) -> None:
        if result.meta.index > 3:
            raise DeviceError("no")


def fail_late(result: Result) -> None:
    if result.meta.index > 3:
        raise DeviceError("no")


@pytest.mark.parametrize("culprit", ["stage", "wait", "submit", "sink", "slow stage"])
def test_every_lease_is_released_after_a_failure(culprit: str) -> None:
    def slow_then_failing(result: Result) -> None:
        time.sleep(0.1)  # other frames wait during this time
        fail_late(result)

    look = {"stage": fail_late, "slow stage": slow_then_failing}.get(culprit, lambda _result: None)
    looker = Looker(look=look)
    detectors = {"wait": FakeDetector(fail_at=5, service_ns=5 * MS), "submit": FailingDetector(service_ns=5 * MS)}
    detector = detectors.get(culprit, FakeDetector(batches_in_flight=3, max_batch=1))
    runtime, _, cameras = runtime_of(["synthetic:160x120@200?format=bgr"] * 3, [looker], detector)
    if culprit == "sink":
        runtime.results.sinks.append(FailingSink())
    with pytest.raises(DeviceError):
        runtime.run(threading.Event(), for_s=20)
    assert [leased(camera) for camera in cameras] == [0, 0, 0]


def test_memory_of_a_pixel_stage_run_does_not_grow() -> None:
    """The program allocates only one buffer for each lease, one for the waiting frame, and one for the next frame."""
    made: list[int] = []

    class Counting(FakeDetector):
        def frame_buffer(self, height_px, width_px, pixel_format):  # type: ignore[no-untyped-def]
            made.append(height_px)
            return super().frame_buffer(height_px, width_px, pixel_format)

    looker = Looker(look=lambda _result: time.sleep(0.005))
    detector = Counting(batches_in_flight=2, max_batch=2)
    runtime, _, _ = runtime_of(["synthetic:160x120@200?format=bgr"] * 2, [looker], detector)
    runtime.run(threading.Event(), for_s=1)
    assert len(made) == 2 * (detector.spec.batches_in_flight + FRAMES_HELD_BY_STAGES + 2)


@dataclass
class LateReader:
    """Stage that reads each frame after `with_frame` has returned, like a stage with asynchronous GPU work."""

    unread: list[Frame] = field(default_factory=list)
    sink: Collector = field(default_factory=Collector)
    cameras: list[Camera] = field(default_factory=list)
    read: int = 0
    unpublished: int = 0
    unleased: int = 0

    def with_frame(self, result: Result, frame: Frame) -> Result:
        self.unread.append(frame)
        return result

    def is_reading(self) -> bool:
        return bool(self.unread)

    def wait_until_read(self) -> None:
        leases = {camera.slot.camera_id: leased(camera) for camera in self.cameras}
        for frame in self.unread:
            camera_id, index = frame.meta.camera_id, frame.meta.index
            self.read += 1
            leases[camera_id] -= 1
            self.unpublished += self.sink.results[camera_id][-1].meta.index < index
        self.unleased += sum(left < 0 for left in leases.values())
        self.unread.clear()


def test_lease_is_kept_until_a_stage_has_read_the_frame() -> None:
    """The program publishes the result before the stage reads the frame."""
    reader = LateReader()
    sources = [f"synthetic:160x120@1000?frames=60&seed={seed}&format=bgr" for seed in (1, 2)]
    detector = FakeDetector(batches_in_flight=2, max_batch=2)
    runtime, reader.sink, reader.cameras = runtime_of(sources, [reader], detector, offline=True)
    runtime.run(threading.Event())
    assert (reader.read, reader.unpublished, reader.unleased) == (120, 0, 0)
    assert [leased(camera) for camera in reader.cameras] == [0, 0]
