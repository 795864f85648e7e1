"""`Runtime`, which starts the threads of a pipeline, reports the status, and stops and joins the threads.

Without workers, each camera has a thread that runs `CameraSupervisor.run`: source -> `LatestSlot`. The inference
thread runs `InferenceLoop.run`: `Batcher` -> detector -> result queue. The results thread runs `ResultHandler.run`:
result queue -> stages -> sinks. docs/architecture.md lists all threads.

The lease of a frame ends when the detector has finished with the frame. In a pipeline with a stage that reads pixels,
the lease ends when the results thread has run the stages on the frame
(docs/decisions/004-leases-for-stages-that-read-pixels.md).

If a thread fails, the other threads stop, and `Runtime.run` raises the exception once all threads have ended. A stop
follows the path of the data: cameras and slots close, the batches in flight finish, and their results are published.
After that, the caller closes what it opened (sockets, files, detector).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from vision.capture.camera_status import CameraStatus
from vision.capture.supervisor import CameraSupervisor
from vision.detect.detector import Detector
from vision.errors import DeviceError, SourceError
from vision.messaging.own_processes import OWN_PROCESSES
from vision.messaging.schema import REMOVED, CameraReport, NodeReport
from vision.messaging.times import rfc3339
from vision.runtime.batcher import Batcher
from vision.runtime.camera_set import Camera, CameraSet, StepQueue
from vision.runtime.camera_threads import MAX_ABANDONED, CameraThreads
from vision.runtime.capture_processes import CaptureProcesses
from vision.runtime.descriptors import DescriptorReserve
from vision.runtime.hang_watchdog import Part, Watchdog
from vision.runtime.inference_loop import HANG_HINT, InferenceLoop
from vision.runtime.latest_slot import Clock
from vision.runtime.result_processes import ResultProcesses
from vision.runtime.results import ResultHandler
from vision.runtime.stage_runner import Observe
from vision.runtime.status import (
    Instant,
    camera_counts,
    camera_status,
    detector_status,
    percentiles,
    removed,
    resident_bytes,
    summary,
)
from vision.stages.stage import HasCounters, HasProgress, Report, Sink, Stage
from vision.state.service_manager import notify
from vision.version import version

if TYPE_CHECKING:
    from vision.runtime.camera_factory import CameraFactory

log = logging.getLogger(__name__)

_POLL_S: Final = 0.05
"""Maximum time in seconds until the main thread notices that the program must stop."""

_FRAMES_S: Final = 0.5
"""Time in seconds within which the thread `frames` must end after the capture workers have ended."""

_STEP_S: Final = 0.005
"""Time in seconds between two steps of a configuration change."""

_LONG_HANGS: Final = 1.5
"""Multiple of `hang_s` after which the watchdog reports parts that wait for other parts.

The inference loop itself reports a batch that takes longer than `hang_s`, unless the loop is stuck inside a call.
"""

_STUCK_HINT: Final = "the stacks of the threads in the log show the call that hangs"
_CAMERA_HINT: Final = "reconnect the camera, or set a different `reader`; `dmesg` can show why its driver hangs"


class Runtime:
    """The running pipeline: the threads of its cameras, detector, stages, and sinks."""

    def __init__(
        self,
        *,
        cameras: Sequence[Camera],
        detector: Detector,
        capture: CaptureProcesses | None = None,
        factory: CameraFactory | None = None,
        stages: Sequence[Stage] = (),
        sinks: Sequence[Sink] = (),
        workers: ResultProcesses | None = None,
        observe: Observe | None = None,
        model: str = "",
        status_interval_s: float = 1.0,
        stop_timeout_s: float = 1.5,
        hang_s: float = 30.0,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        """Create the runtime. `run` starts the threads.

        Args:
            capture: the workers that read the cameras. None means that each camera has a thread.
            factory: object that creates cameras while the program runs. None means that the cameras cannot change.
            stages: stages to run on each result, in this order. If one of the stages is a `PixelStage`, the slots of
                `cameras` need `FRAMES_HELD_BY_STAGES` more leases than the detector has batches in flight.
            observe: see `ResultMetrics`. Not used if workers run the stages.
            workers: workers that run the stages and the sinks, instead of `stages` and `sinks`.
            stop_timeout_s: maximum duration of a stop, in seconds. Threads that have not ended after this time are
                abandoned.
            hang_s: duration in seconds above which a batch, a call, or the handling of a result counts as hanging.
        """
        self.steps = StepQueue()
        self.last_report: Report | None = None
        self._detector = detector
        self._model = model
        self._status_interval_s = status_interval_s
        self._stop_timeout_s = stop_timeout_s
        self._clock = clock
        self._hang_s = hang_s
        self._failure: BaseException | None = None
        self._ended = threading.Event()  # a thread failed, or everything was published
        slots = {camera.slot.camera_id: camera.slot for camera in cameras}
        self.results = workers or ResultHandler(stages, sinks, list(slots), clock, observe)
        batcher = Batcher(list(slots.values()), detector.spec.max_batch, clock=clock)
        self._loop = InferenceLoop(detector, batcher, self.results.put, clock, hang_s)
        self._started = Instant(clock(), time.time_ns())
        own = {camera.slot.camera_id: camera.supervisor for camera in cameras}
        supervisors = {name: each for name, each in own.items() if isinstance(each, CameraSupervisor)}
        threads = CameraThreads(supervisors, {name: slots[name] for name in supervisors}, self._guard)
        self.cameras = CameraSet(cameras, batcher, threads, capture, factory)
        self._beat: int | None = None  # changes while the main thread works

    def add_stage(self, stage: Stage) -> None:
        """Append a stage. Call this before `run`, and only if no workers run the stages."""
        assert isinstance(self.results, ResultHandler)
        self.results.add_stage(stage)

    def run(
        self,
        stop: threading.Event,
        *,
        for_s: float | None = None,
        on_report: Callable[[Report], None] | None = None,
        end_process: bool = False,
    ) -> Report:
        """Run until `stop` is set, `for_s` seconds have passed, or every camera has ended. Return the final report.

        A camera whose library hangs gets a new thread. If another part hangs, the run fails. If `end_process` is True,
        the process ends even if it cannot end in order (see `Watchdog.running`).

        Raises:
            SourceError: a file or folder could not be read to its end, and `stop` was not set.
            DeviceError: a part hangs, and cannot be replaced.
            Unavailable: no file descriptor has been free for 5 s.
            BaseException: a thread, `on_report`, or the `report` of a sink failed. The first exception is raised
                unchanged.
        """
        with (
            self._watchdog().running(self._hang_s, end_process=end_process),
            closing(DescriptorReserve()) as descriptors,
        ):
            threads = self._start()  # after the watchdog, because even the first frame can cause a hang
            try:
                notify("READY=1", "STATUS=started")
                self._watch(stop, for_s, on_report, descriptors)
            finally:
                notify("STOPPING=1")
                self._stop(threads)
        if self._failure is not None:
            raise self._failure
        report = self._report(on_report)
        failures = [
            f"camera {name}: {reason}"
            for name, camera in self.cameras.cameras.items()
            if (reason := camera.supervisor.failure)
        ]
        if failures and not stop.is_set():
            raise SourceError("; ".join(failures), code="source-failed")
        return report

    # --- the main thread ----------------------------------------------------------------------------------------------

    def _start(self) -> list[threading.Thread]:
        self._started = Instant(self._clock(), time.time_ns())
        jobs: list[tuple[str, Callable[[], None]]] = [("results", self._handle_results), ("inference", self._infer)]
        if self.cameras.capture is not None:
            jobs.append(("frames", self.cameras.capture.receive_frames))
        # Daemon threads, because a stage or the library of the detector can hang in a call.
        threads = [threading.Thread(target=self._guard, args=job, name=job[0], daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        self.cameras.threads.start()
        return threads

    def _watchdog(self) -> Watchdog:
        """Return a watchdog for all parts. A part that waits for another part has a longer time limit."""
        watchdog, results, long_s = Watchdog(self._fail_hung), self.results, _LONG_HANGS * self._hang_s
        self.cameras.observe(watchdog, self._hang_s)
        parts = [
            Part("results", results.progress, self._hang_s),
            Part("inference", lambda: None if self._loop.ended else self._loop.progress_ns, long_s),
            Part("main", lambda: self._beat, long_s),
            self.chain(),
        ]
        own_threads: list[object] = [*results.parts]
        for owner in own_threads:
            if isinstance(owner, HasProgress):
                parts += [Part(name, partial(_progress_of, owner, name), self._hang_s) for name in owner.progress()]
        for part in parts:
            watchdog.watch(part)
        return watchdog

    def chain(self) -> Part:
        """Return the pipeline from waiting frame to result, as a part of the program that the watchdog observes.

        The part makes progress if it produces results, and has nothing to do if no frame waits.
        """
        batcher, results = self.cameras.batcher, self.results
        slowest_s = max((slot.interval_s for slot in batcher.slots), default=0.0)

        def progress() -> int | None:
            return results.handled if any(slot.has_frame for slot in batcher.slots) else None

        return Part("frames", progress, _LONG_HANGS * (_LONG_HANGS * self._hang_s + slowest_s))

    def _watch(
        self,
        stop: threading.Event,
        for_s: float | None,
        on_report: Callable[[Report], None] | None,
        descriptors: DescriptorReserve,
    ) -> None:
        end_ns = None if for_s is None else self._started.monotonic_ns + int(for_s * 1e9)
        next_report_ns = self._started.monotonic_ns
        while not (stop.is_set() or self._ended.is_set()):
            now_ns = self._clock()
            if end_ns is not None and now_ns >= end_ns:
                return
            if now_ns >= next_report_ns:
                self._report(on_report)
                next_report_ns = max(next_report_ns + int(self._status_interval_s * 1e9), now_ns)
            descriptors.check()
            self._beat = now_ns
            self.steps.advance()
            wait_s = _STEP_S if self.steps.busy else _POLL_S
            if self.cameras.capture is None:
                self._ended.wait(wait_s)
            else:
                self.cameras.capture.poll(wait_s)

    def _fail_hung(self, part: Part, still_s: float) -> None:
        """Make `run` fail because a part hangs."""
        if part.name == "inference":
            error = f"{self._detector.spec.name}: the inference thread has made no progress for {still_s:.0f} s"
            self._fail(DeviceError(error, hint=HANG_HINT, code="inference-stuck"))
        elif part.name.startswith("camera-"):
            error = f"{part.name}: a call of the library has not returned for {still_s:.0f} s, and {MAX_ABANDONED} "
            error += "threads that hang like this were abandoned already, or the source cannot be opened again"
            self._fail(DeviceError(error, hint=_CAMERA_HINT, code="camera-stuck"))
        else:
            error = f"{part.name}: no progress for {still_s:.0f} s"
            self._fail(DeviceError(error, hint=_STUCK_HINT, code="stuck"))

    def _stop(self, threads: Sequence[threading.Thread]) -> None:
        self.steps.close()
        self.cameras.batcher.is_changing = False
        for camera in self.cameras.cameras.values():
            camera.supervisor.stop()
        for camera in self.cameras.cameras.values():
            camera.slot.close()
        self._beat = None
        deadline = time.monotonic() + self._stop_timeout_s
        if self.cameras.capture is not None:
            self.cameras.capture.stop(self._stop_timeout_s)
            deadline = max(deadline, time.monotonic() + _FRAMES_S)  # the thread `frames` ends after the workers
        # The camera threads come last, so that a camera that hangs in its library does not use up the time of others.
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        late = [thread.name for thread in threads if thread.is_alive()]
        for name in late + self.cameras.threads.join(deadline):
            log.warning("%s did not end within %.1f s", name, self._stop_timeout_s)
        self.results.release_queued()

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self.results.abort()
        self._ended.set()

    # --- the other threads --------------------------------------------------------------------------------------------

    def _guard(self, name: str, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001 - stored; `run` raises it
            log.error("%s failed: %s", name, error)
            self._fail(error)

    def _infer(self) -> None:
        try:
            self._loop.run()
        finally:
            self.results.end()

    def _handle_results(self) -> None:
        self.results.run()
        self._ended.set()

    # --- status -------------------------------------------------------------------------------------------------------

    def _report(self, on_report: Callable[[Report], None] | None) -> Report:
        """Build a report about the status and the counts of all cameras, and pass it to the sinks and `on_report`.

        Latencies cover the time since the previous report.
        """
        results, now = self.results, Instant(time.monotonic_ns(), time.time_ns())
        # The published frames are read first, because frames that are published later can be missing in `slots`.
        published = {camera_id: metrics.published for camera_id, metrics in results.metrics.cameras.items()}
        slots = {camera_id: camera.slot.counts() for camera_id, camera in self.cameras.cameras.items()}
        cameras, counts = self.cameras.take_departed(), {}
        for camera_id, camera in self.cameras.cameras.items():
            metrics = results.metrics.cameras[camera_id]
            status, slot = self._status(camera), slots[camera_id]
            cameras.append(camera_status(camera_id, status, slot, metrics, now, published=published[camera_id]))
            if (counted := camera_counts(camera_id, metrics, now)) is not None:
                counts[camera_id] = counted
            # Release the GIL, because the inference thread would otherwise wait for it for 5 ms again and again. The
            # reports of 128 cameras take 14 ms of CPU time.
            time.sleep(0)
        unfinished = sum(slot.unfinished for slot in slots.values())
        report = Report(self._node_report(cameras, unfinished, now), tuple(cameras), counts)
        for sink in results.sinks:
            sink.report(report)
        self.last_report = report
        notify(f"STATUS={summary(report)}")
        if on_report is not None:
            self._beat = None  # a terminal can block the output for any time
            on_report(report)
        return report

    def _node_report(self, cameras: Sequence[CameraReport], unfinished: int, now: Instant) -> NodeReport:
        results = self.results
        dropped = self.cameras.dropped.copy()
        for camera in cameras:
            if camera.state != REMOVED:
                dropped.update(camera.dropped)
        return NodeReport(
            at=rfc3339(now.utc_ns),
            at_monotonic_ns=now.monotonic_ns,
            uptime_s=round((self._clock() - self._started.monotonic_ns) / 1e9, 3),
            started_at=rfc3339(self._started.utc_ns),
            version=version(),
            backend=self._detector.spec.name,
            model=self._model,
            rates={
                "grabbed": round(sum(camera.fps for camera in cameras), 2),
                "published": round(sum(camera.published_fps for camera in cameras), 2),
            },
            latency_ms={
                name: percentiles(latency.snapshot(reset=True)) for name, latency in results.metrics.latency.items()
            },
            dropped=dict(dropped),
            queues={"results": unfinished},
            rss_bytes=resident_bytes(),
            memory_bytes=OWN_PROCESSES.memory_bytes(),
            counters=self._counters(),
            detector=detector_status(self._detector),
        )

    def remove_camera(self, camera_id: str) -> None:
        """Forget a camera that was retired for good. The next report contains the final state of the camera."""
        now, camera = Instant(time.monotonic_ns(), time.time_ns()), self.cameras.cameras[camera_id]
        metrics = self.results.metrics.cameras.pop(camera_id)
        status, published = self._status(camera), metrics.published
        last = camera_status(camera_id, status, camera.slot.counts(), metrics, now, published=published)
        self.cameras.remove(camera_id, removed(last))

    def _status(self, camera: Camera) -> CameraStatus:
        status = camera.supervisor.status()
        return replace(status, epoch=status.epoch + self.results.new_epochs(camera.slot.camera_id))

    def _counters(self) -> dict[str, int]:
        counters = {
            "detector.truncated_candidates": self.results.metrics.truncated_candidates,
            "cameras.abandoned_threads": self.cameras.threads.abandoned,
        }
        if isinstance(self._detector, HasCounters):
            counters.update(self._detector.counters())
        return counters | self.results.counters()


def _progress_of(owner: HasProgress, name: str) -> object:
    return owner.progress().get(name)
