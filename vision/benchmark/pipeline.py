"""The whole program on cameras that are made up, with a sink that only counts; and what its threads cost by themselves.

The cost of the threads is measured with a detector that costs nothing, on the site's own pipeline, so that whatever a
pipeline does to results is in it, also one that nobody here has seen.
"""

from __future__ import annotations

import gc
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np

from vision.benchmark.canned import StubDetector
from vision.benchmark.conditions import CpuMeter, CpuUse, ThisSystem
from vision.benchmark.demand import demand
from vision.benchmark.samples import Durations, relative_error
from vision.config import AppConfig, CameraConfig
from vision.detect.detector import Detector
from vision.messaging.schema import CameraStatusMessage
from vision.pipelines import load_pipeline
from vision.runtime.builder import RunOptions, open_publisher
from vision.runtime.sink import Sink
from vision.runtime.status import Report
from vision.types import Detections, Frame, FrameBuffer, PixelFormat, Result

_WARM_PART: Final = 0.25  # of a run, before it counts: connections, first batches, what the batcher learns
_WAIT_S: Final = 60.0
_REPORTS: Final = 20  # of a run: what counts lies between two of them
_SLICES: Final = 10  # of a run, that tell how steady its rate was
_HOST_FRAMES: Final = 1200
_HOST_CAMERAS: Final = 4
_HOST_S: Final = 30.0  # at most


class _Came(NamedTuple):
    """A result: when, how long after its frame was captured, and when its batch was done."""

    at_ns: int
    latency_ns: int
    inferred_ns: int


@dataclass
class CountingSink:
    """Keeps what came when, and hands everything on to `behind` where there is one."""

    behind: Sink | None = None
    clock: Callable[[], int] = time.monotonic_ns
    latencies_ns: dict[str, list[_Came]] = field(default_factory=dict)  # by camera
    objects: int = 0
    report_last: Report | None = None
    thread_ns: list[int] = field(default_factory=list)  # CPU time of the results thread at each result

    def publish(self, result: Result) -> None:
        """Called by the results thread."""
        if self.behind is not None:
            self.behind.publish(result)
        now_ns, camera_id = self.clock(), result.meta.camera_id
        timing = result.timing
        self.latencies_ns.setdefault(camera_id, []).append(
            _Came(now_ns, now_ns - timing.captured_ns, timing.inferred_ns)
        )
        self.objects += len(result.objects)
        self.thread_ns.append(time.thread_time_ns())

    def report(self, report: Report) -> None:
        """Called by the main thread."""
        self.report_last = report
        if self.behind is not None:
            self.behind.report(report)


@dataclass(frozen=True, slots=True)
class CameraRun:
    """What one camera came to."""

    published_per_s: float
    dropped_per_s: float
    latency: Durations
    offered_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SiteRun:
    """What a run of a site came to, without its beginning."""

    seconds: float
    cameras: Mapping[str, CameraRun]
    latency: Durations  # of all cameras
    cpu: CpuUse
    objects_per_frame: float
    rate_error: float | None = None  # relative standard error of `published_per_s`

    @property
    def published_per_s(self) -> float:
        """Of all cameras."""
        return sum(camera.published_per_s for camera in self.cameras.values())

    @property
    def dropped_per_s(self) -> float:
        """Of all cameras."""
        return sum(camera.dropped_per_s for camera in self.cameras.values())

    @property
    def offered_per_s(self) -> float:
        """Of all cameras: what they grabbed."""
        return sum(camera.offered_per_s for camera in self.cameras.values())


def synthetic_site(cameras: int, fps: float, width_px: int, height_px: int, pixel_format: str | None) -> AppConfig:
    """A site of made-up cameras."""
    frame = f"synthetic:{width_px}x{height_px}@{f'{fps:.6f}'[:8]}"  # what the form has room for
    suffix = f"&format={pixel_format}" if pixel_format else ""
    return AppConfig.model_validate(
        {"cameras": [{"id": f"camera-{n}", "source": f"{frame}?seed={n}{suffix}"} for n in range(cameras)]}
    )


def run_site(
    site: AppConfig,
    seconds: float,
    open_detector: Callable[..., Detector],
    *,
    publish: bool = False,
    clock: Callable[[], int] = time.monotonic_ns,
) -> SiteRun:
    """Run a site's pipeline for `seconds`, of which about the last three quarters count.

    Args:
        open_detector: as `vision.detect.open.open_detector`; the pipeline closes what it opens.
        publish: send every result to a socket too, one that nobody else knows.

    Raises:
        VisionError: whatever the pipeline raises.
    """
    counted = CountingSink(clock=clock)
    interval_s = min(site.status.interval_s, seconds / _REPORTS)
    site = site.model_copy(update={"status": site.status.model_copy(update={"interval_s": interval_s})})
    with ExitStack() as resources:
        stop = threading.Event()
        if publish:
            counted.behind = private_publisher(site, resources)
        options = RunOptions(stop=stop, sink=counted, open_detector=open_detector)
        runtime = load_pipeline(site.pipeline)(site, options, resources)
        with as_the_program_collects():
            window = _Window(seconds * _WARM_PART, clock)
            runtime.run(stop, for_s=seconds, on_report=window.see)
    return _summary(counted, [camera.id for camera in site.cameras], *window.ends())


@contextmanager
def as_the_program_collects() -> Iterator[None]:
    """What was made before stays out of collections, as in `vision run`: each would hold every thread for long."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class NonClosingDetector:
    """A `Detector` that a pipeline may close and that stays open, with batches of its own greatest size.

    It can be shown `frames` in place of what made-up cameras draw, where a network finds next to nothing: so NMS and
    the results thread have as much to do as with real cameras, and the cameras' threads no less than before.
    """

    def __init__(self, detector: Detector, max_batch: int, images: Sequence[Sequence[Frame]] = ()) -> None:
        """`frames`: one batch for each slot, each of at least `max_batch` frames, of the cameras' size and format."""
        self._detector = detector
        self._frames = images
        self.spec = replace(detector.spec, max_batch=min(max_batch, detector.spec.max_batch))

    def frame_buffer(self, height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
        return self._detector.frame_buffer(height_px, width_px, pixel_format)

    def submit(self, slot: int, frames: Sequence[Frame]) -> None:
        self._detector.submit(slot, self._frames[slot][: len(frames)] if self._frames else frames)

    def wait(self, slot: int, timeout_s: float) -> list[Detections]:
        return self._detector.wait(slot, timeout_s)

    def close(self) -> None:
        """Wait for what the pipeline left behind, so that every slot is free for the next one."""
        for slot in range(self._detector.spec.batches_in_flight):
            with suppress(ValueError):  # nothing was submitted there
                self._detector.wait(slot, _WAIT_S)


@dataclass(frozen=True, slots=True)
class _End:
    """One end of what counts."""

    at_ns: int
    cameras: Mapping[str, CameraStatusMessage]  # by camera
    cpu: CpuUse  # since the first end


class _Window:
    """What counts of a run: from the first report after `after_s` to the last one before it was stopped."""

    def __init__(self, after_s: float, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._from_ns = clock() + int(after_s * 1e9)
        self._meter: CpuMeter | None = None
        self._seen: list[_End] = []

    def see(self, report: Report) -> None:
        now_ns = self._clock()
        if now_ns < self._from_ns:
            return
        if self._meter is None:
            self._meter = CpuMeter(ThisSystem())
        cameras = {camera.camera: camera for camera in report.cameras}
        self._seen.append(_End(now_ns, cameras, self._meter.read()))

    def ends(self) -> tuple[_End, _End]:
        """Once the run is over. The last report came after the cameras were stopped, and stopping takes its time."""
        if not self._seen:
            nothing = _End(self._clock(), {}, CpuUse(0.0, 0.0))
            return nothing, nothing
        return self._seen[0], self._seen[-2 if len(self._seen) > 2 else -1]


def private_publisher(site: AppConfig, resources: ExitStack) -> Sink:
    folder = resources.enter_context(tempfile.TemporaryDirectory(prefix="vision-"))
    private = site.publish.model_copy(update={"bind": f"ipc://{folder}/results"})
    options = RunOptions(stop=threading.Event())
    return open_publisher(site.model_copy(update={"publish": private}), options, resources)


def _summary(counted: CountingSink, camera_ids: Sequence[str], begin: _End, end: _End) -> SiteRun:
    seconds = max(1e-9, (end.at_ns - begin.at_ns) / 1e9)
    cameras = {}
    published: list[_Came] = []
    for camera_id in camera_ids:
        within = [one for one in counted.latencies_ns.get(camera_id, []) if begin.at_ns <= one.at_ns < end.at_ns]
        published += within
        offered, dropped = _grown(begin.cameras.get(camera_id), end.cameras.get(camera_id))
        latency = Durations.of([one.latency_ns for one in within])
        cameras[camera_id] = CameraRun(len(within) / seconds, dropped / seconds, latency, offered / seconds)
    batches = len({one.inferred_ns for one in published})  # frames of one batch are late together
    latency = Durations.of([one.latency_ns for one in published], batches)
    results = sum(map(len, counted.latencies_ns.values()))
    objects = counted.objects / results if results else 0.0
    steady = np.histogram([one.at_ns for one in published], _SLICES, (begin.at_ns, end.at_ns + 1))[0]
    return SiteRun(seconds, cameras, latency, end.cpu, objects, relative_error(steady.tolist()))


def _grown(begin: CameraStatusMessage | None, end: CameraStatusMessage | None) -> tuple[int, int]:
    """Frames that a camera's slot was given and that it dropped, by its own count: what drops all has no result."""
    if begin is None or end is None:
        return 0, 0
    return end.grabbed - begin.grabbed, sum(end.dropped.values()) - sum(begin.dropped.values())


@dataclass(frozen=True, slots=True)
class ThreadCosts:
    """CPU time that each kind of thread spends on a frame, without decoding and without the detector."""

    results_ms: float
    loop_ms: float
    camera_ms: float


def measure_threads(
    site: AppConfig,
    class_names: Sequence[str],
    objects: int,
    *,
    size_px: tuple[int, int] = (64, 64),
    images: int = _HOST_FRAMES,
) -> ThreadCosts:
    """Run the site's pipeline with made-up cameras and a detector that finds `objects` at once, publishing all.

    Args:
        size_px: width and height of the frames: those of the site, where lines and zones lie in them.

    Raises:
        VisionError: whatever the pipeline raises.
    """
    detector = StubDetector(class_names, objects, max_batch=site.detect.max_batch)
    ids = [camera.id for camera in site.cameras][:_HOST_CAMERAS]
    source = f"synthetic:{size_px[0]}x{size_px[1]}@1000?objects=1&format=bgr&frames={images // len(ids)}"
    made_up = without_traces(site).model_copy(
        update={
            "cameras": tuple(CameraConfig(id=camera_id, source=source) for camera_id in ids),
            "analytics": {camera_id: one for camera_id, one in site.analytics.items() if camera_id in ids},
            "rules": (),
            "cascade": None,
        }
    )
    counted = CountingSink()
    with ExitStack() as resources:
        stop = threading.Event()
        counted.behind = private_publisher(made_up, resources)
        options = RunOptions(stop=stop, offline=True, sink=counted, open_detector=lambda *_: detector)
        runtime = load_pipeline(made_up.pipeline)(made_up, options, resources)
        cpu_ns = time.process_time_ns()
        runtime.run(stop, for_s=_HOST_S)
        cpu_ns = time.process_time_ns() - cpu_ns
    times = counted.thread_ns
    results_ms = (times[-1] - times[0]) / 1e6 / (len(times) - 1) if len(times) > 1 else 0.0
    others_ms = cpu_ns / 1e6 / max(1, len(times)) - results_ms - detector.ms_per_frame
    drawing_ms = demand(made_up.cameras[0], ("bgr",)).cpu_ms
    return ThreadCosts(results_ms, detector.ms_per_frame, max(0.0, others_ms - drawing_ms))


def without_traces(site: AppConfig) -> AppConfig:
    """The same site, run to measure it: it neither reads nor writes what outlives a run."""
    return site.model_copy(update={"state": None, "snapshots": None})
