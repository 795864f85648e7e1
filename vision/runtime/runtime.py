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
import faulthandler
import logging
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, TypeAlias, runtime_checkable

from vision.capture.supervisor import CameraSupervisor
from vision.detect.detector import Detector, OnGpu
from vision.errors import DeviceError
from vision.metrics import LatencyHistogram, Rate, span
from vision.runtime.latest_slot import Batcher, LatestSlot, Lease, SubmitScheduler, release_together
from vision.runtime.status import CameraReport, DetectorReport, Report
from vision.types import Counts, Detections, Frame, Result, Timing

log = logging.getLogger(__name__)

Clock = Callable[[], int]
PlainStage: TypeAlias = Callable[[Result], Result]

FRAMES_HELD_BY_STAGES: Final = 2
"""Frames of a camera that wait for the results thread, or are there, while the detector has all of its own."""

RESULT_QUEUE_SIZE: Final = 2048
"""Results that wait for the results thread at most, but for the last batch: two seconds of what one interpreter can
publish, so that no camera drops a frame while that thread pauses. In frames, because many cameras make many batches
of one frame. A stage that looks at pixels is bounded by its leases, long before."""

POLL_S = 0.001  # while a slot is free and another runs: how late a fresh frame or a finished batch is seen at worst
_IDLE_S = 0.1  # how late the loop sees that it should stop, with nothing to do
_MARGIN = 1.5  # of `hang_s`: the loop itself, which knows its batches, speaks first unless it is stuck in a call
_LONGEST_LOOK_NS = 1_000_000_000  # that counts: between two looks are 50 ms and a report
_STANDARD_ERROR = 2
_HANG_HINT = "the device hangs: `dmesg` may say why; restart the program (systemd does)"


@runtime_checkable
class PixelStage(Protocol):
    """A stage that looks at the frame too."""

    def with_frame(self, result: Result, frame: Frame) -> Result:
        """Called by the results thread. `frame` is valid until this returns: what is to last is copied out of it."""


Stage: TypeAlias = PlainStage | PixelStage


@runtime_checkable
class Counting(Protocol):
    """A detector, stage or sink that counts something which an operator should see."""

    def counters(self) -> Mapping[str, int]:
        """By name, such as ``cascade.skipped``, since the start. Called by the main thread."""


class Sink(Protocol):
    """Where results and reports end: sockets, files, a test's list."""

    def publish(self, result: Result) -> None:
        """Called by the results thread, in order per camera."""

    def report(self, report: Report) -> None:
        """Called by the main thread, once an interval and at the end."""


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


@dataclass(frozen=True, slots=True)
class Inferred:
    """One frame's result, and the lease on the frame: whoever is given it releases it."""

    result: Result
    lease: Lease


@dataclass(slots=True)
class _Batch:
    slot: int
    leases: list[Lease]
    submitted_ns: int


@dataclass(slots=True)
class InferenceLoop:
    """Keeps the detector's slots full: binds late, submits, waits for the oldest, hands results on in order."""

    detector: Detector
    batcher: Batcher
    deliver: Callable[[list[Inferred]], None]
    clock: Clock = time.monotonic_ns
    hang_s: float = 30.0  # longer than any inference: a batch this old means a device that hangs
    progress_ns: int = 0  # when the loop last did something useful, or knew that there was nothing to do
    ended: bool = False
    _free: deque[int] = field(default_factory=deque)
    _running: deque[_Batch] = field(default_factory=deque)
    _timer: SubmitScheduler = field(init=False)
    _last_size: int = 1

    def __post_init__(self) -> None:
        self._free.extend(range(self.detector.slots))
        self._timer = SubmitScheduler(self.detector.parallel)

    def run(self) -> None:
        """Until all cameras are finished and every batch came back.

        Raises:
            DeviceError: the detector failed or hangs.
        """
        try:
            while self._step():
                pass
        finally:
            self.ended = True
            for batch in self._running:
                release_together(batch.leases)

    def _step(self) -> bool:
        now_ns = self.clock()
        bind_at_ns = self._timer.bind_at_ns(self._last_size) if self._running else 0
        if not self._free:
            self._collect(_IDLE_S)
        elif now_ns < bind_at_ns:
            self._collect((bind_at_ns - now_ns) / 1e9)
        elif leases := self._bind():
            self._submit(leases)
        elif self._running:
            self._collect(POLL_S)
        elif self.batcher.finished:
            return False
        else:
            self.progress_ns = now_ns
            self.batcher.wait_frame(_IDLE_S)
        return True

    def _bind(self) -> list[Lease]:
        with span("bind"):
            return self.batcher.next()

    def _submit(self, leases: list[Lease]) -> None:
        slot = self._free.popleft()
        try:
            with span("submit"):
                self.detector.submit(slot, [lease.frame for lease in leases])
        except BaseException:
            release_together(leases)
            raise
        now_ns = self.clock()
        self._last_size = len(leases)
        self._timer.submitted(len(leases), now_ns)
        self._running.append(_Batch(slot, leases, now_ns))

    def _collect(self, timeout_s: float) -> None:
        batch = self._running[0]
        try:
            with span("wait"):
                found = self.detector.wait(batch.slot, timeout_s)
        except TimeoutError:
            if self.clock() - batch.submitted_ns > self.hang_s * 1e9:
                raise DeviceError(
                    f"{self.detector.name}: a batch of {len(batch.leases)} has not come back for {self.hang_s:.0f} s",
                    hint=_HANG_HINT,
                ) from None
            return
        now_ns = self.progress_ns = self.clock()
        self._running.popleft()
        self._free.append(batch.slot)
        self._timer.done(now_ns)
        self.deliver([self._result(batch, lease, one, now_ns) for lease, one in zip(batch.leases, found, strict=True)])

    @staticmethod
    def _result(batch: _Batch, lease: Lease, found: Detections, now_ns: int) -> Inferred:
        meta = lease.frame.meta
        timing = Timing(meta.captured_ns, lease.taken_ns, batch.submitted_ns, now_ns)
        return Inferred(Result(meta, found, timing, lease.dropped_before), lease)


class _ResultQueue(queue.Queue[list[Inferred] | None]):
    """Batches for the results thread, counted and bounded by their frames. None: no more come."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._frames = 0

    def _qsize(self) -> int:
        return self._frames

    def _put(self, item: list[Inferred] | None) -> None:
        super()._put(item)
        self._frames += self._weight(item)

    def _get(self) -> list[Inferred] | None:
        item = super()._get()
        self._frames -= self._weight(item)
        return item

    @staticmethod
    def _weight(item: list[Inferred] | None) -> int:
        return max(1, len(item or ()))  # without weight, the last one would not be found


@dataclass(slots=True)
class ProgressMonitor:
    """For how long something has not moved while somebody looked: the whole process may have been stopped meanwhile."""

    looked_ns: int
    progress_ns: int = 0
    still_ns: int = 0

    def look(self, progress_ns: int, now_ns: int) -> int:
        """What has moved has another `progress_ns` than at the last look."""
        since_ns = min(now_ns - self.looked_ns, _LONGEST_LOOK_NS)
        self.still_ns = self.still_ns + since_ns if progress_ns == self.progress_ns else 0
        self.progress_ns, self.looked_ns = progress_ns, now_ns
        return self.still_ns


def _blind(stage: PlainStage) -> Callable[[Result, Frame], Result]:
    return lambda result, _frame: stage(result)


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
        self._steps = [
            (type(stage).__name__, stage.with_frame if isinstance(stage, PixelStage) else _blind(stage))
            for stage in stages
        ]
        self._looks_at_pixels = any(isinstance(stage, PixelStage) for stage in stages)
        self._sinks = list(sinks)
        self._status_interval_s = status_interval_s
        self._stop_timeout_s = stop_timeout_s
        self._clock = clock
        self._stuck_ns = int(_MARGIN * hang_s * 1e9)
        self._queue = _ResultQueue(RESULT_QUEUE_SIZE)
        self._failure: BaseException | None = None
        self._ended = threading.Event()  # a thread failed, or everything was published
        self._metrics = {camera.slot.camera_id: _CameraMetrics(LatencyHistogram(), Rate(clock)) for camera in cameras}
        self._excess = 0
        self._stage_latency = {name: LatencyHistogram() for name in ("queue", "detect", "results")}
        self._loop = InferenceLoop(
            detector,
            Batcher([camera.slot for camera in cameras], detector.max_batch, clock=clock),
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
            self._detector.name,
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
        log.error("the inference thread is stuck; where every thread is:\n%s", _stacks())
        error = f"{self._detector.name}: the inference thread has not moved for {still_ns / 1e9:.0f} s"
        self._fail(DeviceError(error, hint=_HANG_HINT))

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
                self._queue.put(batch, timeout=_IDLE_S)
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
                return self._queue.get(timeout=_IDLE_S)
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
    slots, most = detector.slots, detector.max_batch
    if not isinstance(detector, OnGpu):
        return DetectorReport(slots, most)
    off = detector.graphs_off
    return DetectorReport(slots, most, not off, off, detector.device_bytes, detector.page_locked_bytes)


def _stacks() -> str:
    """Where every thread is now."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )


@contextlib.contextmanager
def hang_watchdog(limit_s: float = 60.0) -> Iterator[None]:
    """End the process, should no thread come to run Python for `limit_s`: exit code 1, all stacks on standard error.

    Calls that queue work for the GPU keep the GIL (`vision.gpu.driver_calls`). One that never returned would stop
    every thread,
    those that look after the others included; only a thread of faulthandler's, which needs no GIL, can end that. It is
    put off by a thread that does nothing else: the main thread may wait for a terminal or for a stop that takes long.
    A process that is stopped (Ctrl-Z) or frozen for `limit_s` ends too when it goes on.
    """
    over = threading.Event()

    def put_off() -> None:
        faulthandler.dump_traceback_later(limit_s, exit=True, file=_STANDARD_ERROR)

    def keep_putting_off() -> None:
        while not over.wait(limit_s / 10):  # each time makes a thread of C
            put_off()

    thread = threading.Thread(target=keep_putting_off, name="watchdog", daemon=True)
    thread.start()
    try:
        put_off()
        yield
    finally:
        over.set()
        thread.join()
        faulthandler.cancel_dump_traceback_later()
