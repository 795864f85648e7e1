"""Tests of the threads, the inference loop, the start, and the stop of a program, with fake cameras and detectors."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
from msgspec.structs import replace

from tests.messages.processes import REPOSITORY, wait_until
from vision.capture.open import open_source, supervisor_policy
from vision.capture.supervisor import CameraSupervisor
from vision.capture.synthetic.source import SyntheticSource
from vision.capture.synthetic.spec import SyntheticSpec
from vision.config import CameraConfig
from vision.detect.fake import FakeDetector
from vision.errors import EXIT_RUNTIME, DeviceError, SourceError
from vision.runtime.camera_set import Camera
from vision.runtime.hang_watchdog import ProgressMonitor
from vision.runtime.inference_loop import InferenceLoop
from vision.runtime.latest_slot import MAX_UNFINISHED, LatestSlot, SlotCounts
from vision.runtime.runtime import Runtime
from vision.stages.analytics import TrackStage
from vision.stages.stage import Report, Stage
from vision.types import Detections, DropReason, Frame, Result

MS = 1_000_000


@dataclass
class Collector:
    """Sink that stores all results, by camera, and all reports."""

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
    sink: Collector | None = None,
    hang_s: float = 30.0,
    clock: Callable[[], int] = time.monotonic_ns,
    leases: int | None = None,
    **options: object,
) -> tuple[Runtime, Collector, list[Camera]]:
    changed, cameras = threading.Condition(), []
    for number, source in enumerate(sources):
        config = CameraConfig.model_validate({"id": f"camera-{number}", "source": source} | options)
        slot = LatestSlot(
            config.id,
            detector.frame_buffer,
            leases=leases or detector.spec.batches_in_flight,
            lossless=offline,
            max_fps=config.max_fps,
            max_frame_age_s=config.max_frame_age_s,
            changed=changed,
        )
        factory = partial(open_source, config, offline=offline, pixel_formats=detector.spec.pixel_formats)
        cameras.append(Camera(slot, CameraSupervisor(config.id, factory, slot, supervisor_policy(config))))
    sink = sink or Collector()
    runtime = Runtime(cameras=cameras, detector=detector, sinks=[sink], stages=stages, hang_s=hang_s, clock=clock)
    return runtime, sink, cameras


def check_accounts(camera: Camera, published: list[Result]) -> None:
    """Check that grabbed = published + dropped, and that the messages report every dropped frame."""
    counts = camera.slot.counts()
    assert counts.grabbed == len(published) + sum(counts.dropped.values())
    reported = sum(sum(result.dropped_before.values()) for result in published)
    assert reported <= sum(counts.dropped.values())


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_offline_run_publishes_every_frame_once_in_order(slots: int) -> None:
    sources = [f"synthetic:160x120@1000?frames={frames}&seed={frames}" for frames in (50, 120, 7)]
    detector = FakeDetector(batches_in_flight=slots, max_batch=2, service_ns=MS)
    runtime, sink, cameras = make_runtime(sources, detector, offline=True)
    report = runtime.run(threading.Event())
    for camera, frames in zip(cameras, (50, 120, 7), strict=True):
        results = sink.results[camera.slot.camera_id]
        assert [result.meta.index for result in results] == list(range(frames))
        assert camera.slot.counts().dropped == {}
        truth = SyntheticSource(SyntheticSpec.parse(f"synthetic:160x120@1000?frames={frames}&seed={frames}"))
        for result in results:
            boxes, class_ids = truth.truth(result.meta.index)
            found = result.objects
            order = np.lexsort((found.boxes_xyxy[:, 0], found.class_ids))
            expected = np.lexsort((boxes[:, 0], class_ids))
            np.testing.assert_allclose(found.boxes_xyxy[order], boxes[expected], atol=1.0)
            assert (found.class_ids[order] == class_ids[expected]).all()
    assert {camera.published for camera in report.cameras} == {50, 120, 7}


@pytest.mark.integration
def test_slow_detector_gets_the_newest_frames() -> None:
    detector = FakeDetector(max_batch=1, service_ns=40 * MS)
    runtime, sink, cameras = make_runtime(["synthetic:160x120@50"] * 4, detector)
    runtime.run(threading.Event(), for_s=3)
    for camera in cameras:
        results = sink.results[camera.slot.camera_id]
        assert len(results) >= 8
        ages_ms = np.array([(result.timing.batched_ns - result.meta.captured_ns) / MS for result in results])
        # The newest frame is at most one interval of 20 ms old. A busy machine adds the rest.
        assert np.median(ages_ms) <= 25
        assert camera.slot.counts().dropped[DropReason.SUPERSEDED] > 50
        check_accounts(camera, results)


@pytest.mark.integration
def test_max_fps_limits_a_live_camera() -> None:
    runtime, sink, cameras = make_runtime(["synthetic:160x120@50"], FakeDetector(), max_fps=10)
    runtime.run(threading.Event(), for_s=3)
    assert 22 <= len(sink.results["camera-0"]) <= 33
    check_accounts(cameras[0], sink.results["camera-0"])


@pytest.mark.integration
def test_stale_frames_are_never_inferred() -> None:
    detector = FakeDetector(max_batch=1, service_ns=300 * MS, batches_in_flight=1)
    runtime, sink, cameras = make_runtime(["synthetic:160x120@4"] * 3, detector, max_frame_age_s=0.1)
    runtime.run(threading.Event(), for_s=3)
    results = [result for of_camera in sink.results.values() for result in of_camera]
    assert results
    assert all(result.timing.batched_ns - result.meta.captured_ns <= 100 * MS for result in results)
    assert sum(camera.slot.counts().dropped.get(DropReason.STALE, 0) for camera in cameras) > 0
    for camera in cameras:
        check_accounts(camera, sink.results[camera.slot.camera_id])


@pytest.mark.integration
def test_dead_camera_does_not_disturb_the_others() -> None:
    runtime, sink, _ = make_runtime(["http://127.0.0.1:9/video", "synthetic:160x120@20"], FakeDetector())
    report = runtime.run(threading.Event(), for_s=2)
    assert report.cameras[0].state != "streaming"
    assert "port 9" in (report.cameras[0].last_error or "")
    assert len(sink.results["camera-1"]) >= 25


@pytest.mark.parametrize("offline", [True, False])
def test_unreadable_file_is_an_error_after_the_others_have_ended(*, offline: bool) -> None:
    """Unlike a camera, an unreadable file is not reopened, because a second attempt would not help."""
    runtime, sink, _ = make_runtime(
        ["missing.mp4", "synthetic:160x120@50?frames=20", "lost.mp4"], FakeDetector(), offline=offline
    )
    with pytest.raises(SourceError) as raised:
        runtime.run(threading.Event())
    assert raised.value.code == "source-failed"
    assert raised.value.exit_code == EXIT_RUNTIME
    assert "missing.mp4" in str(raised.value)
    assert "lost.mp4" in str(raised.value)
    assert len(sink.results["camera-1"]) > 10


def test_size_change_starts_a_new_epoch() -> None:
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
def test_first_failure_stops_all_threads_and_is_raised(culprit: str) -> None:
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
        runtime.results.sinks.append(BrokenSink())
    before = threading.active_count()
    with pytest.raises(DeviceError):
        runtime.run(threading.Event(), for_s=20)
    assert threading.active_count() == before


@pytest.mark.integration
def test_stop_publishes_the_batches_in_flight() -> None:
    detector = FakeDetector(service_ns=200 * MS, batches_in_flight=2)
    runtime, sink, cameras = make_runtime(["synthetic:160x120@30"] * 2, detector)
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    runtime.run(stop)
    for camera in cameras:
        check_accounts(camera, sink.results[camera.slot.camera_id])


def test_reports_count_what_was_published() -> None:
    runtime, sink, _ = make_runtime(["synthetic:160x120@50?frames=100"], FakeDetector(), offline=True)
    seen: list[Report] = []
    last = runtime.run(threading.Event(), on_report=seen.append)
    assert seen[-1] == last == sink.reports[-1]
    assert last.node.backend == "fake"
    assert last.cameras[0].published == last.cameras[0].grabbed == 100
    assert last.cameras[0].state == "ended"


def test_report_counts_no_frame_that_is_published_while_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, _, cameras = make_runtime(["synthetic:160x120@50?frames=100"], FakeDetector(), offline=True)
    runtime.run(threading.Event())
    count = cameras[0].slot.counts

    def publish_after_count() -> SlotCounts:
        counts = count()
        runtime.results.metrics.cameras["camera-0"].published += 1
        return counts

    monkeypatch.setattr(cameras[0].slot, "counts", publish_after_count)
    report = runtime._report(None).cameras[0]
    assert (report.grabbed, report.published) == (100, 100)


class HangingDetector(FakeDetector):
    """Detector that never returns the results of a batch."""

    def wait(self, slot: int, timeout_s: float) -> list[Detections]:
        time.sleep(min(timeout_s, 0.01))
        raise TimeoutError


def test_hanging_device_is_an_error() -> None:
    detector = HangingDetector()
    slot = LatestSlot("a", detector.frame_buffer)
    slot.configure(4, 6, "bgr")
    assert slot.write_buffer(0) is not None
    from vision.runtime.batcher import Batcher
    from vision.types import FrameMeta

    slot.commit(FrameMeta("a", 0, 0, 0, 0, 6, 4))
    loop = InferenceLoop(detector, Batcher([slot], 1), lambda _results: None, hang_s=0.1)
    with pytest.raises(DeviceError) as caught:
        loop.run()
    assert caught.value.code == "batch-hangs"


class StuckDetector(FakeDetector):
    """Detector with a device call that does not return."""

    def __init__(self) -> None:
        super().__init__()
        self.returns = threading.Event()

    def submit(self, slot: int, frames: Sequence[Frame]) -> None:
        self.returns.wait()
        super().submit(slot, frames)


@pytest.mark.integration
def test_call_that_does_not_return_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    detector = StuckDetector()
    runtime, _, _ = make_runtime(["synthetic:160x120@50"], detector, hang_s=0.2)
    try:
        with pytest.raises(DeviceError) as caught:
            runtime.run(threading.Event(), for_s=20)
        assert (caught.value.code, caught.value.exit_code) == ("inference-stuck", EXIT_RUNTIME)
        assert "inference:\n" in caplog.text
        assert "self.returns.wait()" in caplog.text
    finally:
        detector.returns.set()
        for thread in threading.enumerate():
            if thread.name == "inference":
                thread.join()


def test_time_without_observation_does_not_count_as_stuck() -> None:
    still, now_ns = ProgressMonitor(0), 0
    for _ in range(900):
        now_ns += 50 * MS
        seen_ns = still.look(7, now_ns)
    assert seen_ns == 899 * 50 * MS
    assert still.look(7, now_ns + 3600 * 1000 * MS) == seen_ns + 1000 * MS
    assert still.look(8, now_ns + 3601 * 1000 * MS) == 0


# The watchdog is slow to start, as on a busy machine, so a frame would arrive before the watchdog works.
KEEPS_THE_GIL = """
import ctypes, threading, time
from tests.unit.runtime.test_runtime import make_runtime
from vision.detect.fake import FakeDetector
from vision.runtime.hang_watchdog import Watchdog

class KeepsTheGil(FakeDetector):
    def submit(self, slot, frames):
        ctypes.PyDLL(None).sleep(600)

watch = Watchdog.watch
Watchdog.watch = lambda *arguments: (time.sleep(0.2), watch(*arguments))
runtime, _, _ = make_runtime(["synthetic:160x120@50"], KeepsTheGil(), hang_s=1.0)
runtime.run(threading.Event(), end_process=True)
"""

NOT_STUCK = """
import ctypes, contextlib, threading, time
from vision.runtime.hang_watchdog import Watchdog

with Watchdog(print).running(1.5, end_process=True):
    time.sleep(4)
with contextlib.suppress(ZeroDivisionError), Watchdog(print).running(0.5, end_process=True):
    1 / 0
threads = threading.active_count()
ctypes.PyDLL(None).usleep(1_500_000)  # the watchdog has ended
print(threads)
"""


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program to its end. Fail if this takes longer than 60 s."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.integration
def test_call_that_keeps_the_gil_ends_the_process() -> None:
    done = run_python(KEEPS_THE_GIL)
    assert done.returncode == EXIT_RUNTIME, done.stderr
    assert "Timeout (" in done.stderr
    assert "in submit" in done.stderr


@pytest.mark.integration
def test_watchdog_does_not_end_a_working_process() -> None:
    done = run_python(NOT_STUCK)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@dataclass
class PausingSink(Collector):
    """Sink that calls `pause` before it accepts the first result."""

    pause: Callable[[], None] = lambda: None

    def publish(self, result: Result) -> None:
        if not self.results:
            self.pause()
        super().publish(result)


@pytest.mark.integration
@pytest.mark.parametrize("max_batch", [1, 8])
def test_unfinished_results_are_bounded_while_the_results_thread_pauses(max_batch: int) -> None:
    """A camera has at most `MAX_UNFINISHED` unfinished results, in addition to the results of batches in flight."""
    waiting: list[int] = []

    def until_refused() -> None:
        for camera in cameras:
            wait_until(lambda slot=camera.slot: slot.counts().unfinished >= MAX_UNFINISHED, "refused", 60)  # type: ignore[misc]
        time.sleep(0.1)
        waiting.extend(camera.slot.counts().unfinished for camera in cameras)

    sources = [f"synthetic:64x48@1000?frames=100&objects=0&seed={seed}" for seed in range(3)]
    detector = FakeDetector(max_batch=max_batch)
    runtime, sink, cameras = make_runtime(sources, detector, offline=True, sink=PausingSink(pause=until_refused))
    runtime.run(threading.Event())
    assert len(waiting) == 3
    assert max(waiting) < MAX_UNFINISHED + detector.spec.batches_in_flight
    assert [len(results) for results in sink.results.values()] == [100] * 3
    assert [camera.slot.counts().unfinished for camera in cameras] == [0] * 3


@pytest.mark.integration
def test_loop_that_waits_for_the_results_thread_makes_progress() -> None:
    """The loop reports progress while it waits, so that the watchdog does not treat it as hanging."""

    def move() -> None:
        before_ns = runtime._loop.progress_ns
        wait_until(lambda: runtime._loop.progress_ns > before_ns, "the loop moves")

    def until_moved() -> None:
        for camera in cameras:
            wait_until(lambda slot=camera.slot: slot.counts().unfinished >= MAX_UNFINISHED, "refused", 60)  # type: ignore[misc]
        for _ in range(3):
            move()

    sources = [f"synthetic:64x48@1000?frames=50&objects=0&seed={seed}" for seed in range(2)]
    runtime, sink, cameras = make_runtime(sources, FakeDetector(), offline=True, sink=PausingSink(pause=until_moved))
    runtime.run(threading.Event())
    assert [len(results) for results in sink.results.values()] == [50] * 2


def test_ended_loop_is_not_stuck() -> None:
    later_ns = 0

    def an_hour_passes() -> None:
        nonlocal later_ns
        later_ns += 3600 * 1000 * MS
        reports = len(sink.reports)
        wait_until(lambda: len(sink.reports) > reports, "the main thread looks")

    def until_looked_at() -> None:
        wait_until(lambda: runtime._loop.ended, "the last batch came back")
        for _ in range(4):
            an_hour_passes()

    runtime, sink, _ = make_runtime(
        ["synthetic:64x48@1000?frames=2"],
        FakeDetector(),
        offline=True,
        sink=PausingSink(pause=until_looked_at),
        hang_s=0.6,
        clock=lambda: time.monotonic_ns() + later_ns,
    )
    runtime.run(threading.Event())
    assert len(sink.results["camera-0"]) == 2


class CrowdedDetector(FakeDetector):
    """Detector that reports three truncated candidates per frame."""

    def wait(self, slot: int, timeout_s: float) -> list[Detections]:
        return [replace(found, truncated_candidates=3) for found in super().wait(slot, timeout_s)]


@pytest.mark.parametrize("stages", [(), (TrackStage(),)], ids=["detections", "tracks"])
def test_truncated_candidates_are_reported_and_counted(stages: tuple[Stage, ...]) -> None:
    runtime, sink, _ = make_runtime(["synthetic:160x120@50?frames=40"], CrowdedDetector(), offline=True, stages=stages)
    report = runtime.run(threading.Event())
    assert [result.objects.truncated_candidates for result in sink.results["camera-0"]] == [3] * 40
    assert report.node.counters["detector.truncated_candidates"] == 120


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
