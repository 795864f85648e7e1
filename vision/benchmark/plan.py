"""Measurements of `vision plan CONFIG`: throughput, latency, and bottleneck of a deployment with stand-in cameras."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import msgspec

from vision.benchmark.language_load import LanguageRun, language_load
from vision.benchmark.loops import Durations
from vision.benchmark.memory import ModelMemory
from vision.benchmark.pipeline import DeploymentRun, run_deployment
from vision.benchmark.stand_ins import StandIn, phased_sources, repeated, stand_ins
from vision.config import AppConfig
from vision.detect.detector import Detector
from vision.detect.open import open_detector
from vision.state.scratch import scratch_folder

Part: TypeAlias = Literal[
    "detector", "camera thread", "capture worker", "results thread", "result worker", "inference thread", "CPU"
]

SCHEMA: Final = "vision.plan/1"
MAX_CAMERAS: Final = 256
"""Largest number of cameras that the search tries."""
MAX_STEPS: Final = 6
"""Maximum number of runs of the search."""

_FULL: Final = 0.9  # load from which frames queue

_ADVICE: Final[dict[Part, str]] = {
    "detector": "Lower `max_fps` or use a smaller model. With TensorRT, use precision fp16 and a larger `max_batch`.",
    "camera thread": "Use a smaller stream of the camera, or set a lower frame rate in the camera.",
    "capture worker": "Increase `processes`, use smaller streams, or set lower frame rates in the cameras.",
    "results thread": "Set `processes` to 2 or more, publish MessagePack, or raise `score_threshold`.",
    "result worker": "Increase `processes`, publish MessagePack, or raise `score_threshold`.",
    "inference thread": "Set `processes` to 2 or more. If it is set, run two programs with half the cameras each.",
    "CPU": "Use smaller streams of the cameras, set lower frame rates in the cameras, or decode on the GPU.",
}
_NO_PART: Final = "No single part is at its limit. The threads wait for each other, because one runs Python at a time. "
_FITS: Final = 0.97  # part of the requested frames that must be published
_AT_RANDOM: Final = 0.1  # maximum part of a rate that can depend on the start time of a short run
_BUSY_ELSEWHERE: Final = 0.1  # part of the cores used by other programs from which a note is added
_SEARCH_PART: Final = 0.5  # duration of a run of the search, as a part of `seconds`
_SEARCH_LIMIT: Final = 6.0  # time limit for the start of a run of the search, as a multiple of `seconds`


@dataclass(frozen=True, slots=True)
class Load:
    """Load of one part of the program. `share` is 0 if the part was idle, and 1 if it was always busy."""

    part: Part
    share: float
    detail: str  # explanation for the user


@dataclass(frozen=True, slots=True)
class Capacity:
    """Largest number of cameras whose frames this machine can process at the requested rates, as found by a search."""

    fit: int  # largest tried number of cameras that fits; 0 if none fits
    too_many: int | None  # smallest tried number of cameras that does not fit; None if all tried numbers fit

    def __str__(self) -> str:
        if self.too_many is None:
            return f"at least {self.fit}"
        return str(self.fit) if self.too_many == self.fit + 1 else f"{self.fit} to {self.too_many - 1}"


@dataclass(frozen=True, slots=True)
class CameraPlan:
    """Measurements of one camera. Rates are in frames per second. Latency is from capture to publication."""

    camera: str
    stand_in: str  # description of the stand-in
    width_px: int
    height_px: int
    source_fps: float  # rate that the camera delivers
    asked_fps: float  # requested rate: `source_fps`, limited by `max_fps`
    published_fps: float
    dropped_fps: dict[str, float]  # by reason
    latency: Durations


@dataclass(frozen=True, slots=True)
class Plan:
    """Result of `vision plan`."""

    detector: str  # name of the detector
    seconds: float  # duration of the measurement
    cameras: tuple[CameraPlan, ...]
    asked_fps: float  # requested rate of all cameras
    published_fps: float  # published rate of all cameras
    dropped_fps: dict[str, float]  # by reason
    latency: Durations  # from capture to publication, of all cameras
    cpu_cores: float  # mean number of CPU cores that the program used
    cpu_cores_others: float  # mean number of CPU cores that other programs used
    cores: int  # number of CPU cores that the program can use
    rss_mib: float  # maximum memory of all processes together
    device_mib: float | None  # GPU memory of the process; None without a GPU
    memory: ModelMemory | None  # during the run, when the least memory was free; None if the run was too short
    language: LanguageRun | None  # answers during all runs; None without a language model on this machine
    objects_per_frame: float
    loads: tuple[Load, ...]  # highest load first
    fits: bool  # True if the configured cameras fit
    verdict: str
    capacity: Capacity
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the plan as data that JSON can represent."""
        return {"schema": SCHEMA, **msgspec.to_builtins(self)}


def make_plan(config: AppConfig, *, seconds: float, progress: Callable[[str], None] = lambda _: None) -> Plan:
    """Run the deployment with stand-in cameras, and find out how many such cameras this machine can process.

    Return the plan. If `language` in the configuration names a server on this machine, keep the server busy during all
    runs.

    Args:
        config: configuration of the deployment.
        seconds: duration of the first run, which includes all cameras of the deployment. The other runs, which search
            for the number of cameras, together take at most about six times as long.
        progress: function that receives a description of each step.

    Raises:
        VisionError: the model, the back-end, the pipeline, or a local source cannot be opened.
    """
    with scratch_folder("vision-plan-") as folder, language_load(config.language) as load:
        progress("opening the cameras")
        cameras = stand_ins(config, seconds, folder)
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
        language = None if load is None else load.result()
    return _plan(cameras, runs, run, fits=fits, capacity=capacity, language=language)


class _Runs:
    """Runs of one deployment with different numbers of stand-in cameras."""

    def __init__(self, config: AppConfig, cameras: Sequence[StandIn], progress: Callable[[str], None]) -> None:
        self._config = config
        self._cameras = cameras
        self._progress = progress
        self.parallel = 1
        self.detector = ""

    def run(self, count: int, seconds: float) -> DeploymentRun:
        self._progress(f"{count} camera{'s' * (count != 1)} for {seconds:g} s")
        gc.collect()  # the frame buffers of the last run are in reference cycles
        config, sources = repeated(self._config, self._cameras, count), phased_sources(self._cameras)
        return run_deployment(config, seconds, self._open_detector, publish=True, open_source=sources)

    def fits(self, run: DeploymentRun, count: int) -> bool:
        """Return True if `run`, with `count` cameras, published at least the fraction `_FITS` of the requested frames.

        Depending on its start time, a run can contain one frame more or less of each camera. Tolerate this difference,
        up to the fraction `_AT_RANDOM` of the requested rate.
        """
        requested_per_s = sum(self._cameras[index % len(self._cameras)].asked_fps for index in range(count))
        tolerance_per_s = min(count / max(run.seconds, 1e-9), _AT_RANDOM * requested_per_s)
        return run.published_per_s + tolerance_per_s >= _FITS * requested_per_s

    def _open_detector(self, *arguments: Any, **options: Any) -> Detector:
        detector = open_detector(*arguments, **options)
        self.parallel, self.detector = detector.spec.parallel, detector.spec.name
        return detector


def _plan(
    cameras: Sequence[StandIn],
    runs: _Runs,
    run: DeploymentRun,
    *,
    fits: bool,
    capacity: Capacity,
    language: LanguageRun | None,
) -> Plan:
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
        rss_mib=run.used_bytes / 2**20,
        device_mib=None if run.device_bytes is None else run.device_bytes / 2**20,
        memory=run.memory,
        language=language,
        objects_per_frame=run.objects_per_frame,
        loads=loads,
        fits=fits,
        verdict=verdict(loads, fits=fits),
        capacity=capacity,
        notes=tuple(_notes(cameras, run, cores, language)),
    )


def _camera_plans(cameras: Sequence[StandIn], run: DeploymentRun) -> Iterator[CameraPlan]:
    for camera in cameras:
        measured = run.cameras[camera.camera_id]
        yield CameraPlan(
            camera.camera_id,
            camera.source,
            camera.width_px,
            camera.height_px,
            camera.fps,
            camera.asked_fps,
            measured.published_per_s,
            dict(measured.dropped_per_s),
            measured.latency,
        )


def _notes(cameras: Sequence[StandIn], run: DeploymentRun, cores: int, language: LanguageRun | None) -> Iterator[str]:
    yield from (camera.note for camera in cameras if camera.note)
    if not run.latency.has_p99:
        yield f"p99 is based on only {run.latency.count} frames; increase --seconds"
    if language is not None and not language.durations.count:
        codes = ", ".join(language.failures) or "too-slow"
        yield f"the language model gave no answer ({codes}), so the plan does not account for it"
    if run.cpu.others > _BUSY_ELSEWHERE * cores:
        yield f"other programs used {run.cpu.others:.1f} of {cores} cores during the measurement"


def measure_loads(run: DeploymentRun, parallel: int, cores: int) -> tuple[Load, ...]:
    """Return the load of every part of the program during a run, in descending order.

    The load of several threads or workers of one kind is the load of the busiest thread or worker.

    Args:
        run: measurements of the run.
        parallel: number of batches that the detector computes at the same time.
        cores: number of CPU cores that the process can use.
    """
    busy = sum(run.in_flight[:parallel]) / parallel
    in_use = run.cpu.own + run.cpu.others
    loads = [
        Load("detector", busy, f"computing for {busy:.0%} of the time"),
        Load("results thread", run.threads.get("results", 0.0), "CPU time of tracking, counting and publishing"),
        Load("inference thread", run.threads.get("inference", 0.0), "CPU time of batching and submitting"),
        Load("CPU", in_use / cores, f"{run.cpu.own:.2f} of {cores} cores, and {run.cpu.others:.2f} by other programs"),
    ]
    groups: list[tuple[Part, str]] = [
        ("camera thread", "camera-"),
        ("capture worker", "capture worker "),
        ("result worker", "result worker "),
    ]
    for part, prefix in groups:
        shares = {name: share for name, share in run.threads.items() if name.startswith(prefix)}
        if shares:
            busiest = max(shares, key=shares.__getitem__)
            loads.append(Load(part, shares[busiest], f"{busiest.removeprefix(prefix)} is the busiest"))
    return tuple(sorted(loads, key=lambda load: -load.share))


def busiest_part(loads: Sequence[Load]) -> Load:
    """Return the load of the busiest part. Prefer the detector if its load is almost as high.

    A detector on the CPU also loads the CPU, so the loads of these two parts are often similar.
    """
    fullest = max(load.share for load in loads)
    detector = next(load for load in loads if load.part == "detector")
    return detector if detector.share >= _FULL * fullest else max(loads, key=lambda load: load.share)


def verdict(loads: Sequence[Load], *, fits: bool) -> str:
    """Return a text that names the part that limits the throughput, and recommends a change.

    `fits` is True if the machine processes the frames of all cameras at the requested rates. The text then only names
    the busiest part.
    """
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
    """Search for the largest number of cameras whose requested rates the machine reaches, and return the result.

    The search doubles or halves the number to bracket the limit, and then bisects. Doubling stops at `MAX_CAMERAS`.

    Args:
        fits: function that runs a number of cameras, and returns True if the cameras reach their requested rates.
        tried: number of cameras that a run has already tried.
        tried_fits: True if the cameras reached their requested rates in this run.
        max_steps: maximum number of calls to `fits`.
        time_left: function that returns True if another run may start.
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
    """Return the number of cameras to try next, or None if the search is complete.

    The machine reached the requested rates of `fit` cameras, but not those of `too_many` cameras. If `too_many` is
    None, it reached the rates in every run.
    """
    if too_many is None:
        return min(2 * fit, MAX_CAMERAS) if fit < MAX_CAMERAS else None
    if too_many - fit < 2:
        return None
    return too_many // 2 if fit == 0 else (fit + too_many) // 2
