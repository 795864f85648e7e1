"""`vision plan CONFIG`: run the deployment with stand-in cameras and report throughput, latency and the bottleneck."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import msgspec

from vision.benchmark.loops import Durations
from vision.benchmark.pipeline import DeploymentRun, run_deployment
from vision.benchmark.stand_ins import PhasedSources, StandIn, repeated, stand_ins
from vision.config import AppConfig
from vision.detect.detector import Detector
from vision.detect.open import open_detector
from vision.runtime.status import resident_bytes

Part: TypeAlias = Literal["detector", "camera thread", "results thread", "inference thread", "CPU"]

SCHEMA: Final = "vision.plan/1"
MAX_CAMERAS: Final = 256
MAX_STEPS: Final = 6

_FULL: Final = 0.9  # from here on frames wait for each other

_ADVICE: Final[dict[Part, str]] = {
    "detector": "Lower `max_fps`, use a smaller model, or, with TensorRT, precision fp16 and a larger `max_batch`.",
    "camera thread": "Use the camera's smaller stream, or set a lower rate in the camera.",
    "results thread": "Publish MessagePack, raise `score_threshold`, or run two programs with half the cameras each.",
    "inference thread": "Run two programs with half of the cameras each.",
    "CPU": "Use the cameras' smaller streams, set lower rates in the cameras, or decode on the GPU.",
}
_NO_PART: Final = "No single part is full: the threads wait for each other, because one runs Python at a time. "
_FITS: Final = 0.97  # of the frames that were asked for
_AT_RANDOM: Final = 0.1  # at most so much of a rate may depend on when a short run begins
_BUSY_ELSEWHERE: Final = 0.1  # of the cores, by other programs: worth a note
_SEARCH_PART: Final = 0.5  # of `seconds`: length of a run that only asks whether the cameras fit
_SEARCH_LIMIT: Final = 6.0  # times `seconds`: no further step starts later than this


@dataclass(frozen=True, slots=True)
class Load:
    """Load of one part. `share` is 0 if the part was idle, and 1 if it was always busy."""

    part: Part
    share: float
    detail: str


@dataclass(frozen=True, slots=True)
class Capacity:
    """Result of a search."""

    fit: int  # largest number of cameras that was tried and fits; 0 if not even one fits
    too_many: int | None  # smallest number that was tried and does not fit; None if all fit

    def __str__(self) -> str:
        if self.too_many is None:
            return f"at least {self.fit}"
        return str(self.fit) if self.too_many == self.fit + 1 else f"{self.fit} to {self.too_many - 1}"


@dataclass(frozen=True, slots=True)
class CameraPlan:
    """Result of one camera. Rates are frames per second, latency is from capture to publication."""

    camera: str
    stand_in: str
    width_px: int
    height_px: int
    source_fps: float
    asked_fps: float
    published_fps: float
    dropped_fps: dict[str, float]  # by reason
    latency: Durations


@dataclass(frozen=True, slots=True)
class Plan:
    """Result of `vision plan`."""

    detector: str
    seconds: float  # that were measured
    cameras: tuple[CameraPlan, ...]
    asked_fps: float
    published_fps: float
    dropped_fps: dict[str, float]
    latency: Durations
    cpu_cores: float
    cpu_cores_others: float
    cores: int
    rss_mib: float
    device_mib: float | None  # GPU memory of the process; None without a GPU
    objects_per_frame: float
    loads: tuple[Load, ...]
    fits: bool
    verdict: str
    capacity: Capacity
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {"schema": SCHEMA, **msgspec.to_builtins(self)}


def make_plan(config: AppConfig, *, seconds: float, progress: Callable[[str], None] = lambda _: None) -> Plan:
    """Run the deployment with stand-in cameras, then find out how many cameras of this kind fit.

    Args:
        seconds: length of the run. The search takes at most six times as long.
        progress: receives a description of each step.

    Raises:
        VisionError: model, back-end, pipeline or a local source cannot be opened.
    """
    with tempfile.TemporaryDirectory(prefix="vision-plan-") as folder:
        progress("cameras")
        cameras = stand_ins(config, seconds, Path(folder))
        runs = _Runs(config, cameras, progress)
        run = runs.run(len(cameras), seconds)
        fits = runs.fits(run, len(cameras))
        end = time.monotonic() + _SEARCH_LIMIT * seconds
        capacity = find_capacity(
            lambda count: runs.fits(runs.run(count, _SEARCH_PART * seconds), count),
            len(cameras),
            tried_fits=fits,
            time_left=lambda: time.monotonic() < end,
        )
    return _plan(cameras, runs, run, fits=fits, capacity=capacity)


class _Runs:
    """Runs of one deployment with different numbers of cameras."""

    def __init__(self, config: AppConfig, cameras: Sequence[StandIn], progress: Callable[[str], None]) -> None:
        self._config = config
        self._cameras = cameras
        self._progress = progress
        self.parallel = 1
        self.detector = ""

    def run(self, count: int, seconds: float) -> DeploymentRun:
        self._progress(f"{count} camera{'s' * (count != 1)} for {seconds:g} s")
        gc.collect()  # the frame buffers of the last run are in reference cycles
        config, sources = repeated(self._config, self._cameras, count), PhasedSources(self._cameras)
        return run_deployment(config, seconds, self._open_detector, publish=True, open_source=sources)

    def fits(self, run: DeploymentRun, count: int) -> bool:
        """Return True if the cameras publish what they ask for.

        A run has one frame of a camera more or less, depending on when it begins.
        """
        asked = sum(self._cameras[index % len(self._cameras)].asked_fps for index in range(count))
        tolerance = min(count / max(run.seconds, 1e-9), _AT_RANDOM * asked)
        return run.published_per_s + tolerance >= _FITS * asked

    def _open_detector(self, *arguments: Any, **options: Any) -> Detector:
        detector = open_detector(*arguments, **options)
        self.parallel, self.detector = detector.spec.parallel, detector.spec.name
        return detector


def _plan(cameras: Sequence[StandIn], runs: _Runs, run: DeploymentRun, *, fits: bool, capacity: Capacity) -> Plan:
    cores = len(os.sched_getaffinity(0))
    loads = measure_loads(run, runs.parallel, cores)
    return Plan(
        detector=runs.detector,
        seconds=run.seconds,
        cameras=tuple(_camera_plans(cameras, run)),
        asked_fps=sum(camera.asked_fps for camera in cameras),
        published_fps=run.published_per_s,
        dropped_fps=dict(run.dropped_per_s),
        latency=run.latency,
        cpu_cores=run.cpu.own,
        cpu_cores_others=run.cpu.others,
        cores=cores,
        rss_mib=resident_bytes() / 2**20,
        device_mib=None if run.device_bytes is None else run.device_bytes / 2**20,
        objects_per_frame=run.objects_per_frame,
        loads=loads,
        fits=fits,
        verdict=verdict(loads, fits=fits),
        capacity=capacity,
        notes=tuple(_notes(cameras, run, cores)),
    )


def _camera_plans(cameras: Sequence[StandIn], run: DeploymentRun) -> Iterator[CameraPlan]:
    for camera in cameras:
        figures = run.cameras[camera.camera_id]
        yield CameraPlan(
            camera.camera_id,
            camera.source,
            camera.width_px,
            camera.height_px,
            camera.fps,
            camera.asked_fps,
            figures.published_per_s,
            dict(figures.dropped_per_s),
            figures.latency,
        )


def _notes(cameras: Sequence[StandIn], run: DeploymentRun, cores: int) -> Iterator[str]:
    yield from (camera.note for camera in cameras if camera.note)
    if not run.latency.has_p99:
        yield f"p99 comes from {run.latency.count} frames only: use a longer --seconds"
    if run.cpu.others > _BUSY_ELSEWHERE * cores:
        yield f"other programs used {run.cpu.others:.1f} of {cores} cores meanwhile"


def measure_loads(run: DeploymentRun, parallel: int, cores: int) -> tuple[Load, ...]:
    """Return the load of every part, the fullest first.

    Args:
        parallel: number of batches that the detector computes at the same time.
        cores: number of CPU cores that the process can use.
    """
    busy = sum(run.in_flight[:parallel]) / parallel
    in_use = run.cpu.own + run.cpu.others
    cameras = {name: share for name, share in run.threads.items() if name.startswith("camera-")}
    busiest = max(cameras, key=cameras.__getitem__, default="")
    loads = [
        Load("detector", busy, f"computing for {busy:.0%} of the time"),
        Load("camera thread", cameras.get(busiest, 0.0), f"{busiest.removeprefix('camera-')} is the busiest"),
        Load("results thread", run.threads.get("results", 0.0), "CPU time of tracking, counting and publishing"),
        Load("inference thread", run.threads.get("inference", 0.0), "CPU time of batching and submitting"),
        Load("CPU", in_use / cores, f"{run.cpu.own:.2f} cores used here, {run.cpu.others:.2f} by others, of {cores}"),
    ]
    return tuple(sorted(loads, key=lambda load: -load.share))


def busiest_part(loads: Sequence[Load]) -> Load:
    """Return the part with the highest load.

    A detector on the CPU loads both, so the CPU is returned only if its load is clearly higher.
    """
    fullest = max(load.share for load in loads)
    detector = next(load for load in loads if load.part == "detector")
    return detector if detector.share >= _FULL * fullest else max(loads, key=lambda load: load.share)


def verdict(loads: Sequence[Load], *, fits: bool) -> str:
    """Describe the part that limits throughput, and the remedy, in one or two sentences."""
    busiest = busiest_part(loads)
    if fits:
        return f"All cameras fit. The {busiest.part} is the busiest part, at {busiest.share:.0%}."
    if busiest.share < _FULL:
        return _NO_PART + _ADVICE["inference thread"]
    return f"The {busiest.part} is the bottleneck, at {busiest.share:.0%}. {_ADVICE[busiest.part]}"


def find_capacity(
    fits: Callable[[int], bool],
    tried: int,
    *,
    tried_fits: bool,
    max_steps: int = MAX_STEPS,
    time_left: Callable[[], bool] = lambda: True,
) -> Capacity:
    """Find the largest number of cameras that fits: double or halve it to bracket the limit, then bisect.

    Args:
        fits: runs that number of cameras, and returns True if every camera reaches its requested rate.
        tried: a number of cameras that was tried.
        tried_fits: True if `tried` cameras fit.
        max_steps: maximum number of calls of `fits`.
    """
    fit, too_many = (tried, None) if tried_fits else (0, tried)
    for _ in range(max_steps):
        count = _next(fit, too_many)
        if count is None or not time_left():
            break
        if fits(count):
            fit = count
        else:
            too_many = count
    return Capacity(fit, too_many)


def _next(fit: int, too_many: int | None) -> int | None:
    """Return the number of cameras to try next; None when the limit is exact."""
    if too_many is None:
        return min(2 * fit, MAX_CAMERAS) if fit < MAX_CAMERAS else None
    if too_many - fit < 2:
        return None
    return too_many // 2 if fit == 0 else (fit + too_many) // 2
