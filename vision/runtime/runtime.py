"""The threads, the double-buffered loop, start and stop: the only place where stages meet.

==================  ================================================================================
thread              loop
==================  ================================================================================
camera-<id>         `CameraSupervisor.run`: source -> `LatestSlot`
inference           `InferenceLoop.run`: `Batcher` -> detector -> bounded queue
results             queue -> stages -> sinks
main                `Runtime.run`: status every `interval_s`, the end of time, of the cameras, or of a thread;
                    whether the inference thread still moves
watchdog            `hang_watchdog`, for whoever asks for it: whether the interpreter still runs
==================  ================================================================================

A frame's lease ends when the detector is done with it. Only where a pipeline has a stage that looks at pixels it is
kept until the results thread has run the stages of that frame (docs/design.md, section 4).

All threads are children of `Runtime.run`: the first that fails stops the others, and its exception is raised again
once they have ended. Stopping goes with the stream: cameras and slots close, the batches in flight come back, the
results flush; what the caller opened (sockets, files, detector) it closes after that.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from vision.capture.supervisor import CameraSupervisor
from vision.detect.detector import Detector, ReportsMemory
from vision.errors import DeviceError
from vision.metrics import LatencyHistogram, Rate, span
from vision.runtime.batcher import Batcher
from vision.runtime.hang_watchdog import ProgressMonitor, thread_stacks
from vision.runtime.inference_loop import HANG_HINT, IDLE_S, InferenceLoop, Inferred
from vision.runtime.latest_slot import Clock, LatestSlot, release_together
from vision.runtime.results import RESULT_QUEUE_SIZE, ResultQueue
from vision.runtime.sink import Sink
from vision.runtime.status import CameraReport, DetectorReport, Report
from vision.stages.stage import Counting, PixelStage, Stage, step_of
from vision.types import Counts, Result

log = logging.getLogger(__name__)

FRAMES_HELD_BY_STAGES: Final = 2
"""Frames of a camera that wait for the results thread, or are there, while the detector has all of its own."""

_MARGIN: Final = 1.5  # of `hang_s`: the loop itself, which knows its batches, speaks first unless it is stuck in a call


@dataclass(frozen=True, slots=True)
class Camera:
    """One camera's two halves: the thread that writes, and the slot that it writes to."""

    slot: LatestSlot
    supervisor: CameraSupervisor


@dataclass(slots=True)
class _CameraMetrics:
    latency: LatencyHistogram
    rate: Rate
    published: int = 0
    objects: int = 0
    counts: Counts | None = None


class Runtime:
    """Cameras, one detector, stages and sinks, run until stopped."""

    def __init__(
        self,
        *,
        cameras: Sequence[Camera],
        detector: Detector,
        stages: Sequence[Stage] = (),
        sinks: Sequence[Sink] = (),
        model: str = "",
        status_interval_s: float = 1.0,
        stop_timeout_s: float = 1.5,
        hang_s: float = 30.0,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        """
        Args:
            stages: applied to each result in turn, by the results thread. With a `PixelStage` among them, the slots
                of `cameras` should have `FRAMES_HELD_BY_STAGES` more than the detector has slots.
            model: its name, for status messages.
            stop_timeout_s: longest orderly stop; what has not ended by then is left behind.
            hang_s: longer than any inference: a device that takes longer for a batch, or for a call, hangs.
        """
        self._detector = detector
        self._model = model
        self._cameras = list(cameras)
        self._stages = list(stages)
        self._steps = [(type(stage).__name__, step_of(stage)) for stage in stages]
        self._looks_at_pixels = any(isinstance(stage, PixelStage) for stage in stages)
        self._sinks = list(sinks)
        self._status_interval_s = status_interval_s
        self._stop_timeout_s = stop_timeout_s
        self._clock = clock
        self._stuck_ns = int(_MARGIN * hang_s * 1e9)
        self._queue = ResultQueue(RESULT_QUEUE_SIZE)
        self._failure: BaseException | None = None
        self._ended = threading.Event()  # a thread failed, or everything was published
        self._metrics = {camera.slot.camera_id: _CameraMetrics(LatencyHistogram(), Rate(clock)) for camera in cameras}
        self._excess = 0
        self._stage_latency = {name: LatencyHistogram() for name in ("queue", "detect", "results")}
        self._loop = InferenceLoop(
            detector,
            Batcher([camera.slot for camera in cameras], detector.spec.max_batch, clock=clock),
            self._deliver,
            clock,
            hang_s,
        )
        self._started_ns = clock()

    def run(
        self, stop: threading.Event, *, for_s: float | None = None, on_report: Callable[[Report], None] | None = None
    ) -> Report:
        """Run until `stop` is set, `for_s` has passed, or every camera has ended. Returns the last report.

        Raises:
            VisionError: what the first thread that failed raised, after all have ended.
            DeviceError: the inference thread does not come back from a call; it is left behind.
        """
        threads = self._start()
        try:
            self._watch(stop, for_s, on_report)
        finally:
            self._stop(threads)
        if self._failure is not None:
            raise self._failure
        return self._report(on_report)

    def _report(self, on_report: Callable[[Report], None] | None) -> Report:
        """A snapshot, sent to all who want it; latencies are since the last one."""
        report = Report(
            (self._clock() - self._started_ns) / 1e9,
            tuple(self._camera_report(camera) for camera in self._cameras),
            {name: histogram.snapshot(reset=True) for name, histogram in self._stage_latency.items()},
            self._queue.qsize(),
            self._detector.spec.name,
            self._model,
            self._counters(),
            _detector_report(self._detector),
        )
        for sink in self._sinks:
            sink.report(report)
        if on_report is not None:
            on_report(report)
        return report

    def _counters(self) -> dict[str, int]:
        parts: list[object] = [self._detector, *self._stages, *self._sinks]
        counters = {"detector.excess": self._excess}
        for part in parts:
            if isinstance(part, Counting):
                counters.update(part.counters())
        return counters

    def _camera_report(self, camera: Camera) -> CameraReport:
        camera_id = camera.slot.camera_id
        metrics = self._metrics[camera_id]
        return CameraReport(
            camera_id,
            camera.supervisor.status(),
            camera.slot.counts(),
            metrics.published,
            metrics.rate.per_s(),
            metrics.latency.snapshot(reset=True),
            metrics.objects,
            metrics.counts,
        )

    def _start(self) -> list[threading.Thread]:
        self._started_ns = self._clock()
        jobs: list[tuple[str, Callable[[], None]]] = [("results", self._handle_results), ("inference", self._infer)]
        jobs += [(f"camera-{camera.slot.camera_id}", camera.supervisor.run) for camera in self._cameras]
        # Daemons, because a camera's library may hang in a call that nothing can interrupt; all others are joined.
        threads = [threading.Thread(target=self._guard, args=job, name=job[0], daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        return threads

    def _guard(self, name: str, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001 - kept and raised again by run()
            log.error("%s failed: %s", name, error)
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self._ended.set()

    def _watch(self, stop: threading.Event, for_s: float | None, on_report: Callable[[Report], None] | None) -> None:
        end_ns = None if for_s is None else self._started_ns + int(for_s * 1e9)
        next_report_ns = self._started_ns
        stillness = ProgressMonitor(self._started_ns)
        while not (stop.is_set() or self._ended.is_set()):
            now_ns = self._clock()
            if end_ns is not None and now_ns >= end_ns:
                return
            if now_ns >= next_report_ns:
                self._report(on_report)
                next_report_ns = max(next_report_ns + int(self._status_interval_s * 1e9), now_ns)
            self._check_progress(stillness.look(self._loop.progress_ns, now_ns))
            self._ended.wait(0.05)

    def _check_progress(self, still_ns: int) -> None:
        """The loop cannot complain by itself while it is inside a call of the device that does not return."""
        if still_ns <= self._stuck_ns or self._loop.ended:
            return
        log.error("the inference thread is stuck; where every thread is:\n%s", thread_stacks())
        error = f"{self._detector.spec.name}: the inference thread has not moved for {still_ns / 1e9:.0f} s"
        self._fail(DeviceError(error, hint=HANG_HINT))

    def _stop(self, threads: Sequence[threading.Thread]) -> None:
        for camera in self._cameras:
            camera.supervisor.stop()
        for camera in self._cameras:
            camera.slot.close()
        deadline = time.monotonic() + self._stop_timeout_s
        # The camera threads come last: one that hangs in its library must not take the others' time.
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        blocked = {f"camera-{one.slot.camera_id}": one.supervisor.blocked_in() for one in self._cameras}
        for thread in threads:
            if thread.is_alive():
                where = blocked.get(thread.name, "")
                log.warning("%s did not end within %.1f s %s", thread.name, self._stop_timeout_s, where)
        self._release_queued()

    def _infer(self) -> None:
        try:
            self._loop.run()
        finally:
            self._put(None)

    def _deliver(self, batch: list[Inferred]) -> None:
        if not self._looks_at_pixels:
            release_together([one.lease for one in batch])
        self._put(batch)

    def _put(self, batch: list[Inferred] | None) -> None:
        while self._failure is None:
            try:
                self._queue.put(batch, timeout=IDLE_S)
            except queue.Full:
                self._loop.progress_ns = self._clock()  # a slow sink is no device that hangs
                continue
            return
        release_together([one.lease for one in batch or ()])

    def _handle_results(self) -> None:
        while (batch := self._next_results()) is not None:
            try:
                with span("results"):
                    for one in batch:
                        self._handle(one)
            finally:
                release_together([one.lease for one in batch])
        self._ended.set()

    def _release_queued(self) -> None:
        """What was still waiting when a failure ended the results thread."""
        with contextlib.suppress(queue.Empty):
            while True:
                release_together([one.lease for one in self._queue.get_nowait() or ()])

    def _next_results(self) -> list[Inferred] | None:
        while self._failure is None:
            try:
                return self._queue.get(timeout=IDLE_S)
            except queue.Empty:
                continue
        return None

    def _handle(self, inferred: Inferred) -> None:
        result = inferred.result
        self._excess += result.objects.truncated_candidates
        for name, step in self._steps:
            with span(name):
                result = step(result, inferred.lease.frame)
        inferred.lease.release()
        result = replace(result, timing=replace(result.timing, published_ns=self._clock()))
        with span("publish"):
            for sink in self._sinks:
                sink.publish(result)
        self._count(result)

    def _count(self, result: Result) -> None:
        timing, metrics = result.timing, self._metrics[result.meta.camera_id]
        metrics.published += 1
        metrics.objects = len(result.objects)
        metrics.counts = result.counts
        metrics.rate.tick()
        if result.meta.clock != "media":  # a recording's times say nothing about how long we took
            metrics.latency.observe(timing.published_ns - timing.captured_ns)
            self._stage_latency["queue"].observe(timing.submitted_ns - timing.captured_ns)
        self._stage_latency["detect"].observe(timing.inferred_ns - timing.submitted_ns)
        self._stage_latency["results"].observe(timing.published_ns - timing.inferred_ns)


def _detector_report(detector: Detector) -> DetectorReport:
    spec = detector.spec
    report = DetectorReport(spec.batches_in_flight, spec.max_batch)
    if spec.gpu is not None:
        report = replace(report, graphs=spec.gpu.graphs, graphs_off=spec.gpu.graphs_off)
    if isinstance(detector, ReportsMemory):
        memory = detector.memory()
        report = replace(report, device_bytes=memory.device_bytes, page_locked_bytes=memory.page_locked_bytes)
    return report
