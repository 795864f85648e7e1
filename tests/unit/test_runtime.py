"""Threads, the double-buffered loop, start and stop, with the shipped fakes and real threads."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest

from vision.batching import LatestSlot
from vision.capture.open import open_source, supervision_of
from vision.capture.supervisor import CameraSupervisor
from vision.capture.synthetic import Synthetic, SyntheticSpec
from vision.config import CameraConfig
from vision.detect.fake import FakeDetector
from vision.errors import DeviceError
from vision.report import Report
from vision.runtime import Camera, InferenceLoop, Runtime, Stage
from vision.types import Detections, DropReason, Frame, Result

MS = 1_000_000


@dataclass
class Collector:
    """A sink that keeps everything."""

    results: dict[str, list[Result]] = field(default_factory=lambda: defaultdict(list))
    reports: list[Report] = field(default_factory=list)

    def publish(self, result: Result) -> None:
        self.results[result.meta.camera_id].append(result)

    def report(self, report: Report) -> None:
        self.reports.append(report)


def make_runtime(
    sources: list[str],
    detector: FakeDetector,
    *,
    offline: bool = False,
    stages: tuple[Stage, ...] = (),
    **options: object,
) -> tuple[Runtime, Collector, list[Camera]]:
    changed, cameras = threading.Condition(), []
    for number, source in enumerate(sources):
        config = CameraConfig.model_validate({"id": f"camera-{number}", "source": source} | options)
        slot = LatestSlot(
            config.id,
            detector.frame_buffer,
            leases=detector.slots,
            lossless=offline,
            max_fps=config.max_fps,
            staleness_s=config.staleness_s,
            changed=changed,
        )
        factory = partial(open_source, config, offline=offline, pixel_formats=detector.pixel_formats)
        cameras.append(Camera(slot, CameraSupervisor(config.id, factory, slot, supervision_of(config))))
    sink = Collector()
    return Runtime(cameras=cameras, detector=detector, sinks=[sink], stages=stages), sink, cameras


def check_accounts(camera: Camera, published: list[Result]) -> None:
    """grabbed = published + dropped, and each message told its share of the drops."""
    counts = camera.slot.counts()
    assert counts.grabbed == len(published) + sum(counts.dropped.values())
    told = sum(sum(result.dropped_before.values()) for result in published)
    assert told <= sum(counts.dropped.values())


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_offline_every_frame_comes_once_in_order_with_its_objects(slots: int) -> None:
    sources = [f"synthetic:160x120@1000?frames={frames}&seed={frames}" for frames in (50, 120, 7)]
    detector = FakeDetector(slots=slots, max_batch=2, service_ns=MS)
    runtime, sink, cameras = make_runtime(sources, detector, offline=True)
    report = runtime.run(threading.Event())
    for camera, frames in zip(cameras, (50, 120, 7), strict=True):
        results = sink.results[camera.slot.camera_id]
        assert [result.meta.index for result in results] == list(range(frames))
        assert camera.slot.counts().dropped == {}
        truth = Synthetic(SyntheticSpec.parse(f"synthetic:160x120@1000?frames={frames}&seed={frames}"))
        for result in results:
            boxes, class_ids = truth.truth(result.meta.index)
            found = result.objects
            order = np.lexsort((found.boxes_xyxy[:, 0], found.class_ids))
            expected = np.lexsort((boxes[:, 0], class_ids))
            np.testing.assert_allclose(found.boxes_xyxy[order], boxes[expected], atol=1.0)
            assert (found.class_ids[order] == class_ids[expected]).all()
    assert {camera.published for camera in report.cameras} == {50, 120, 7}


def test_a_detector_slower_than_its_cameras_gets_the_newest_frames() -> None:
    detector = FakeDetector(max_batch=1, service_ns=40 * MS)
    runtime, sink, cameras = make_runtime(["synthetic:160x120@50"] * 4, detector)
    runtime.run(threading.Event(), for_s=3)
    for camera in cameras:
        results = sink.results[camera.slot.camera_id]
        assert len(results) >= 8
        ages_ms = np.array([(result.timing.batched_ns - result.timing.captured_ns) / MS for result in results])
        # The newest frame is at most one interval of 20 ms old; the rest is what a busy machine adds.
        assert np.median(ages_ms) <= 25
        assert camera.slot.counts().dropped[DropReason.SUPERSEDED] > 50
        check_accounts(camera, results)


def test_max_fps_is_kept_live() -> None:
    runtime, sink, cameras = make_runtime(["synthetic:160x120@50"], FakeDetector(), max_fps=10)
    runtime.run(threading.Event(), for_s=3)
    assert 22 <= len(sink.results["camera-0"]) <= 33
    check_accounts(cameras[0], sink.results["camera-0"])


def test_stale_frames_are_never_inferred() -> None:
    detector = FakeDetector(max_batch=1, service_ns=300 * MS, slots=1)
    runtime, sink, cameras = make_runtime(["synthetic:160x120@4"] * 3, detector, staleness_s=0.1)
    runtime.run(threading.Event(), for_s=3)
    results = [result for of_camera in sink.results.values() for result in of_camera]
    assert results
    assert all(result.timing.batched_ns - result.timing.captured_ns <= 100 * MS for result in results)
    assert sum(camera.slot.counts().dropped.get(DropReason.STALE, 0) for camera in cameras) > 0
    for camera in cameras:
        check_accounts(camera, sink.results[camera.slot.camera_id])


def test_a_dead_camera_disturbs_no_other() -> None:
    runtime, sink, _ = make_runtime(["missing.mp4", "synthetic:160x120@20"], FakeDetector())
    report = runtime.run(threading.Event(), for_s=2)
    assert report.cameras[0].status.state != "streaming"
    assert "missing.mp4" in report.cameras[0].status.last_error
    assert len(sink.results["camera-1"]) >= 25


def test_a_change_of_size_is_a_new_epoch() -> None:
    runtime, sink, cameras = make_runtime(
        ["synthetic:160x120@50?frames=60&resize=30:200x100"], FakeDetector(), offline=True
    )
    runtime.run(threading.Event())
    results = sink.results["camera-0"]
    assert {(result.meta.epoch, result.meta.width_px) for result in results} == {
        (results[0].meta.epoch, 160),
        (results[0].meta.epoch + 1, results[-1].meta.width_px),
    }
    assert results[-1].meta.width_px != 160
    check_accounts(cameras[0], results)


@pytest.mark.parametrize("culprit", ["detector", "stage", "sink"])
def test_the_first_failure_stops_all_and_is_raised(culprit: str) -> None:
    def broken(_result: Result) -> Result:
        raise DeviceError("stage broke")

    class BrokenSink(Collector):
        def publish(self, result: Result) -> None:
            raise DeviceError("sink broke")

    detector = FakeDetector(fail_at=3 if culprit == "detector" else None)
    runtime, _, _ = make_runtime(
        ["synthetic:160x120@100"] * 2, detector, stages=(broken,) if culprit == "stage" else ()
    )
    if culprit == "sink":
        runtime._sinks.append(BrokenSink())
    before = threading.active_count()
    with pytest.raises(DeviceError):
        runtime.run(threading.Event(), for_s=20)
    assert threading.active_count() == before


def test_a_stop_drains_what_is_in_flight() -> None:
    detector = FakeDetector(service_ns=200 * MS, slots=2)
    runtime, sink, cameras = make_runtime(["synthetic:160x120@30"] * 2, detector)
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    began = time.monotonic()
    runtime.run(stop)
    assert time.monotonic() - began < 2.5
    for camera in cameras:
        check_accounts(camera, sink.results[camera.slot.camera_id])


def test_reports_count_what_was_published() -> None:
    runtime, sink, _ = make_runtime(["synthetic:160x120@50?frames=100"], FakeDetector(), offline=True)
    seen: list[Report] = []
    last = runtime.run(threading.Event(), on_report=seen.append)
    assert seen[-1] == last == sink.reports[-1]
    assert last.backend == "fake"
    assert last.cameras[0].published == last.cameras[0].counts.grabbed == 100
    assert last.cameras[0].status.state == "ended"


class HangingDetector(FakeDetector):
    """Takes a batch and never gives it back."""

    def wait(self, slot: int, timeout_s: float) -> list[Detections]:
        time.sleep(min(timeout_s, 0.01))
        raise TimeoutError


def test_a_device_that_hangs_is_an_error() -> None:
    detector = HangingDetector()
    slot = LatestSlot("a", detector.frame_buffer)
    slot.configure(4, 6, "bgr")
    assert slot.write_buffer(0) is not None
    from vision.batching import Batcher
    from vision.types import FrameMeta

    slot.commit(FrameMeta("a", 0, 0, 0, 0, 6, 4))
    loop = InferenceLoop(detector, Batcher([slot], 1), lambda _results: None, hang_s=0.1)
    with pytest.raises(DeviceError, match="has not come back"):
        loop.run()


def test_frames_of_several_formats_share_a_batch() -> None:
    sources = [f"synthetic:160x120@50?frames=20&format={name}" for name in ("bgr", "bgrx", "nv12", "i420")]
    seen: list[str] = []

    class Watching(FakeDetector):
        def submit(self, slot: int, frames: list[Frame]) -> None:  # type: ignore[override]
            seen.extend(frame.pixel_format for frame in frames)
            super().submit(slot, frames)

    runtime, sink, _ = make_runtime(sources, Watching(max_batch=4), offline=True)
    runtime.run(threading.Event())
    assert {len(results) for results in sink.results.values()} == {20}
    assert set(seen) == {"bgr", "bgrx", "nv12", "i420"}
