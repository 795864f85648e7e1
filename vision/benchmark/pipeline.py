"""Short, measured runs of the pipeline of a deployment.

`vision plan` runs the cameras of a configuration this way, and `vision bench` runs synthetic cameras.
"""

from __future__ import annotations

import gc
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import psutil

from vision.benchmark.conditions import CpuMeter, CpuUse
from vision.benchmark.loops import WAIT_S, Durations, relative_error
from vision.benchmark.memory import ModelMemory, model_memory
from vision.capture.open import NamedOpener
from vision.config import AppConfig
from vision.detect.detector import Detector
from vision.pipelines import load_pipeline
from vision.runtime.builder import RunOptions
from vision.runtime.process_count import process_count
from vision.runtime.worker_process import worker_name
from vision.stages.stage import Report, Sink
from vision.types import Detections, Frame, FrameBuffer, FrameMeta, PixelFormat, Result, Timing

_WARM_UP_PART: Final = 0.25  # part of a run that is not measured, because cameras connect, and first batches are slow
_WORKER_START_S: Final = 3.0  # time for the start of the workers, which is not measured
_REPORTS: Final = 20  # minimum number of reports per run; a measurement starts and ends with a report
_WITHOUT_EFFECTS: Final = {
    "state_dir": None,
    "sinks": (),
    "snapshots": None,
    "recording": None,
    "archive": None,
    "http": None,
    "onvif": None,
    "page": None,
    "verify": (),
    "describe": (),
}
_SLICES: Final = 10  # number of parts of a run from which the error of the rate is estimated


class Published(NamedTuple):
    """Times of one published result, in nanoseconds of the monotonic clock."""

    at_ns: int  # publication
    captured_ns: int
    submitted_ns: int  # submission of the batch to the detector
    inferred_ns: int  # end of the inference


class CountingSink:
    """Sink that records when each result is published, and forwards results and reports to another sink, if any."""

    def __init__(self, behind: Sink | None = None) -> None:
        """Create the sink. `behind` receives the forwarded results and reports, or is None."""
        self.published: dict[str, list[Published]] = {}  # by camera
        self.objects = 0  # number of objects in all results
        self._behind = behind

    def publish(self, result: Result) -> None:
        """Record one result, and forward it to the other sink, if any. Call this method from the results thread."""
        if self._behind is not None:
            self._behind.publish(result)
        self.observe(result.meta, result.timing, len(result.objects), time.monotonic_ns())

    def observe(self, meta: FrameMeta, timing: Timing, objects: int, published_ns: int) -> None:
        """Record one result with `objects` objects that was published at `published_ns` (monotonic clock)."""
        times = Published(published_ns, meta.captured_ns, timing.submitted_ns, timing.inferred_ns)
        self.published.setdefault(meta.camera_id, []).append(times)
        self.objects += objects

    def report(self, report: Report) -> None:
        """Forward the report to the other sink, if any. Call this method from the main thread."""
        if self._behind is not None:
            self._behind.report(report)


@dataclass(frozen=True, slots=True)
class CameraRun:
    """Measurements of one camera."""

    grabbed_per_s: float
    published_per_s: float
    dropped_per_s: Mapping[str, float]  # by reason
    latency: Durations


@dataclass(frozen=True, slots=True)
class DeploymentRun:
    """Measurements of one run, except its warm-up."""

    seconds: float  # duration of the measurement
    cameras: Mapping[str, CameraRun]
    latency: Durations  # from capture to publication, of all cameras
    cpu: CpuUse
    threads: Mapping[str, float]  # part of the time in which a Python thread or a worker used a core, by name
    in_flight: tuple[float, ...]  # part of the time with at least 1, 2, ... batches in the detector
    objects_per_frame: float
    rate_error: float | None = None  # relative standard error of `published_per_s`
    device_bytes: int | None = None  # GPU memory of the detector; None without a GPU
    memory: ModelMemory | None = None  # when the least memory was free; None if the run was too short to measure it
    used_bytes: int = 0  # maximum memory of all processes together; 0 if the run was too short to measure it

    @property
    def published_per_s(self) -> float:
        """Published frames per second, summed over all cameras."""
        return sum(camera.published_per_s for camera in self.cameras.values())

    @property
    def grabbed_per_s(self) -> float:
        """Frames per second that the cameras delivered, summed over all cameras."""
        return sum(camera.grabbed_per_s for camera in self.cameras.values())

    @property
    def dropped_per_s(self) -> Mapping[str, float]:
        """Dropped frames per second by reason, summed over all cameras."""
        total: dict[str, float] = {}
        for camera in self.cameras.values():
            for reason, rate in camera.dropped_per_s.items():
                total[reason] = total.get(reason, 0.0) + rate
        return total


def synthetic_deployment(
    cameras: int, fps: float, width_px: int, height_px: int, pixel_format: str | None
) -> AppConfig:
    """Return a configuration with `cameras` synthetic cameras at `fps` frames/s each.

    If `pixel_format` is None, the cameras use the default format.
    """
    frame = f"synthetic:{width_px}x{height_px}@{f'{fps:.6f}'[:8]}"  # a source accepts at most eight characters
    suffix = f"&format={pixel_format}" if pixel_format else ""
    return AppConfig.model_validate(
        {"cameras": [{"id": f"camera-{n}", "source": f"{frame}?seed={n}{suffix}"} for n in range(cameras)]}
    )


def run_deployment(
    config: AppConfig,
    seconds: float,
    open_detector: Callable[..., Detector],
    *,
    publish: bool = False,
    open_source: NamedOpener | None = None,
) -> DeploymentRun:
    """Run the pipeline of a deployment for `seconds` seconds, and return the measurements of the run.

    The measurements cover about the last three quarters of the run. If the deployment has worker processes, their start
    makes the run longer. The run neither reads nor writes saved counters, writes no snapshots, sends nothing to sinks,
    and asks no language model.

    Args:
        config: configuration of the deployment.
        seconds: duration of the run, including its warm-up.
        open_detector: a function like `vision.detect.open.open_detector`. The pipeline closes the detectors.
        publish: True if the run publishes every result on a private socket.
        open_source: a replacement for `vision.capture.open.open_source`, or None for no replacement.
    """
    interval_s = min(config.status.interval_s, seconds / _REPORTS)
    status = config.status.model_copy(update={"interval_s": interval_s})
    config = config.model_copy(update={"status": status, **_WITHOUT_EFFECTS})
    with ExitStack() as resources:
        stop = threading.Event()
        counted = CountingSink()
        options = RunOptions(stop=stop, open_detector=open_detector, open_source=open_source)
        if publish:
            config, options = _private(config, resources), replace(options, observe=counted.observe)
        else:
            options = replace(options, sink=counted)
        runtime = load_pipeline(config.pipeline)(config, options, resources)
        # A garbage collection stops every thread. As in `vision run`, it skips the objects that exist at the start.
        gc.collect()
        gc.freeze()
        resources.callback(gc.unfreeze)
        start_s = _WORKER_START_S if process_count(config) > 1 else 0.0
        window = _Window(start_s + seconds * _WARM_UP_PART)
        last = runtime.run(stop, for_s=start_s + seconds, on_report=window.observe)
    run = _summary(counted, [camera.id for camera in config.cameras], *window.ends())
    device_bytes = last.node.detector.device_bytes if last.node.detector else None
    return replace(run, device_bytes=device_bytes, memory=window.memory, used_bytes=window.used_bytes)


class NonClosingDetector:
    """Wrapper that keeps a detector open when a pipeline closes it, and can lower the maximum batch size.

    The wrapper can pass `images` to the detector instead of the frames of synthetic cameras, because a network detects
    almost nothing in such frames. NMS and the results thread then have as much work as with real cameras, and the work
    of the camera threads does not change.
    """

    def __init__(self, detector: Detector, max_batch: int, images: Sequence[Sequence[Frame]] = ()) -> None:
        """Wrap a detector.

        Args:
            detector: the detector, which stays open.
            max_batch: maximum batch size, unless the maximum batch size of the detector is smaller.
            images: for each slot, at least `max_batch` frames in the format of the cameras. If `images` is empty, the
                detector processes the frames of the cameras.
        """
        self._detector = detector
        self._images = images
        self.spec = replace(detector.spec, max_batch=min(max_batch, detector.spec.max_batch))

    def frame_buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        return self._detector.frame_buffer(height_px, width_px, pixel_format)

    def submit(self, slot: int, frames: Sequence[Frame]) -> None:
        self._detector.submit(slot, self._images[slot][: len(frames)] if self._images else frames)

    def wait(self, slot: int, timeout_s: float) -> list[Detections]:
        return self._detector.wait(slot, timeout_s)

    def close(self) -> None:
        """Wait for the batches in flight, so that every slot is free for the next pipeline. Keep the detector open."""
        for slot in range(self._detector.spec.batches_in_flight):
            with suppress(ValueError):  # the slot is free
                self._detector.wait(slot, WAIT_S)


class _End(NamedTuple):
    """Counters of frames, CPU use, and CPU times of threads at the start or at the end of a measurement."""

    at_ns: int
    grabbed: Mapping[str, int]  # by camera
    dropped: Mapping[str, Counter[str]]  # by camera and reason
    cpu: CpuUse  # since the start of the measurement
    thread_s: Mapping[str, float]  # CPU time by the name of the thread


class _Window:
    """Measured part of a run, which leaves out the first `after_s` seconds (the warm-up).

    It lasts from the first status report after this time to the last status report before the stop.
    """

    def __init__(self, after_s: float) -> None:
        self._from_ns = time.monotonic_ns() + int(after_s * 1e9)
        self._meter: CpuMeter | None = None
        self._ends: list[_End] = []
        self.memory: ModelMemory | None = None  # when the least memory was free
        self.used_bytes = 0  # maximum memory of all processes together

    def observe(self, report: Report) -> None:
        now_ns = time.monotonic_ns()
        if now_ns < self._from_ns:
            return
        self._meter = self._meter or CpuMeter()
        # Results cannot be counted instead, because a camera whose frames are all dropped has no results.
        grabbed = {camera.camera: camera.grabbed for camera in report.cameras}
        dropped = {camera.camera: Counter(camera.dropped) for camera in report.cameras}
        self._ends.append(_End(now_ns, grabbed, dropped, self._meter.read(), _thread_times()))
        self.used_bytes = max(self.used_bytes, sum(report.node.memory_bytes.values()))
        memory = model_memory()
        if self.memory is None or memory.free_mib < self.memory.free_mib:
            self.memory = memory

    def ends(self) -> tuple[_End, _End]:
        """Return the counters at the start and at the end of the measurement. Call this after the run.

        If the measurement never started, return empty counters.
        """
        if not self._ends:
            nothing = _End(time.monotonic_ns(), {}, {}, CpuUse(0.0, 0.0), {})
            return nothing, nothing
        return self._ends[0], self._ends[-2 if len(self._ends) > 2 else -1]  # the last report comes after the stop


def _thread_times() -> dict[str, float]:
    """Return the CPU time in seconds of each Python thread of this process, and of each worker process, by name."""
    process = psutil.Process()
    seconds = {thread.id: thread.user_time + thread.system_time for thread in process.threads()}
    times = {
        thread.name: seconds[thread.native_id]
        for thread in threading.enumerate()
        if thread.native_id is not None and thread.native_id in seconds
    }
    for child in process.children():
        with suppress(psutil.Error):
            used = child.cpu_times()
            times[worker_name(child.cmdline())] = used.user + used.system
    return times


def _private(config: AppConfig, resources: ExitStack) -> AppConfig:
    """Return the configuration with a private address for messages. `resources` owns the folder of the address."""
    folder = resources.enter_context(tempfile.TemporaryDirectory(prefix="vision-"))
    publish = config.publish.model_copy(update={"bind": f"ipc://{folder}/results", "replay": None})
    return config.model_copy(update={"publish": publish})


def _summary(sink: CountingSink, camera_ids: Sequence[str], begin: _End, end: _End) -> DeploymentRun:
    seconds = max(1e-9, (end.at_ns - begin.at_ns) / 1e9)
    cameras = {}
    every: list[Published] = []
    for camera_id in camera_ids:
        within = [times for times in sink.published.get(camera_id, []) if begin.at_ns <= times.at_ns < end.at_ns]
        every += within
        dropped = end.dropped.get(camera_id, Counter()) - begin.dropped.get(camera_id, Counter())
        cameras[camera_id] = CameraRun(
            (end.grabbed.get(camera_id, 0) - begin.grabbed.get(camera_id, 0)) / seconds,
            len(within) / seconds,
            {reason: count / seconds for reason, count in dropped.items()},
            _latency(within),
        )
    batches = {(times.submitted_ns, times.inferred_ns) for times in every}
    results = sum(map(len, sink.published.values()))
    slices = np.histogram([times.at_ns for times in every], _SLICES, (begin.at_ns, end.at_ns + 1))[0]
    return DeploymentRun(
        seconds,
        cameras,
        _latency(every, len(batches)),  # the latencies within a batch are not independent
        end.cpu,
        {name: (s - begin.thread_s.get(name, 0.0)) / seconds for name, s in end.thread_s.items()},
        in_flight(batches, begin.at_ns, end.at_ns),
        sink.objects / results if results else 0.0,
        relative_error(slices.tolist()),
    )


def _latency(published: Sequence[Published], independent: int | None = None) -> Durations:
    return Durations.of([times.at_ns - times.captured_ns for times in published], independent)


def in_flight(batches: Iterable[tuple[int, int]], begin_ns: int, end_ns: int) -> tuple[float, ...]:
    """Return the fractions of the time from `begin_ns` to `end_ns` with at least 1, 2, ... batches in flight.

    Each of `batches` is a pair (start, end) in nanoseconds.
    """
    changes = sorted(
        change
        for begin, end in batches
        for change in ((max(begin, begin_ns), 1), (min(end, end_ns), -1))
        if begin < end_ns and end > begin_ns
    )
    times_ns, steps = np.array(changes, np.int64).reshape(-1, 2).T
    counts, intervals_ns = steps.cumsum()[:-1], np.diff(times_ns)
    levels = range(1, int(counts.max(initial=0)) + 1)
    return tuple(float(intervals_ns[counts >= level].sum()) / max(1, end_ns - begin_ns) for level in levels)
