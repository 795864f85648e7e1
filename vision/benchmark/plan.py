"""`vision plan CONFIG`: what a site will come to on this machine, before it is put up, and whether it then does."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np

from vision.benchmark.advice import Load, Site, accepted_fps, advice, limit, loads
from vision.benchmark.compare import differences
from vision.benchmark.conditions import CpuUse, System, ThisSystem, cores_to_be_had, file_sha256, machine
from vision.benchmark.demand import Demand, decode_costs, demands
from vision.benchmark.document import Bench, Row
from vision.benchmark.frames import Image, convert, is_local, load_frames, make_batches, shipped_clip
from vision.benchmark.handover import Handover, measure_handover
from vision.benchmark.model import BatchCost, DetectorCost, Forecast, HostCost, forecast, unhindered
from vision.benchmark.pipeline import SiteRun, ThreadCosts, measure_threads, run_site, without_traces
from vision.benchmark.samples import Durations
from vision.benchmark.stage import measure_alone, measure_stage
from vision.config import AppConfig, DetectConfig, ModelSpec
from vision.detect.detector import SLOTS_CPU, SLOTS_GPU, SLOTS_INTEGRATED, Detector
from vision.detect.open import open_detector, published_class_names
from vision.engine.profiles import batch_sizes
from vision.errors import ConfigError, DeviceMissing, SourceError
from vision.runtime.builder import find_model
from vision.types import PixelFormat

Backend: TypeAlias = Literal["tensorrt", "onnxruntime", "fake"]

_SECONDS: Final = 1.0
_FRAMES: Final = 16
_LONGEST_PAUSE_S: Final = 0.1
_HANDOVERS: Final = 2.0  # times as long as the others: it is the rare ones that count
_LEAST_CORES: Final = 0.05
_BUSY: Final = 0.85  # of its cores; with less, others work on the machine too


@dataclass(frozen=True, slots=True)
class Costs:
    """What this machine needs for each thing, and where that is known from."""

    detector: DetectorCost
    host: HostCost
    objects_per_frame: float
    source: str  # "measured now" or the date of a benchmark
    gpu: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """A forecast, and everything that it rests on."""

    demands: tuple[Demand, ...]
    costs: Costs
    forecast: Forecast
    loads: tuple[Load, ...]
    limit: str
    advice: tuple[str, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def make_plan(
    site: AppConfig,
    bench: Bench | None,
    *,
    seconds: float = _SECONDS,
    say: Callable[[str], None] = lambda _: None,
    system: System | None = None,
) -> Plan:
    """Look at the cameras, take costs from `bench` or measure them now, and rehearse the site.

    Raises:
        ConfigError: the benchmark is of another machine or model, or has no rows for this configuration.
        VisionError: model, back-end or pipeline are not there.
    """
    folder, spec = find_model(site)
    system = system or ThisSystem()
    if bench is not None:
        _refuse_foreign(bench, site.detect, spec, file_sha256(folder / spec.file), system)
    known = bench.host.decode if bench is not None else decode_costs((shipped_clip(),))
    say("cameras")
    formats = _formats(site) if bench is None else ("nv12", "i420", "bgrx", "bgr")
    wanted = demands(site.cameras, formats, known)
    notes = [f"{each.camera_id}: {each.assumed}" for each in wanted if each.assumed]
    if bench is not None:
        notes.append(f"the benchmark is of {bench.measured_at}, with frames of {bench.frame}")
        costs = costs_of(bench, site)
    else:
        costs = measure_costs(site, wanted, seconds, say)
    say("hand-overs")
    handover = _handover(site, spec, wanted, costs, seconds)
    costs = replace(costs, host=replace(costs.host, handover=handover))
    say("rehearsal")
    planned = forecast(wanted, costs.detector, costs.host)
    found = loads(wanted, costs.detector, costs.host)
    about = Site(
        costs.gpu,
        site.detect.precision,
        site.publish.encoding,
        costs.objects_per_frame,
        (spec.input.width, spec.input.height),
    )
    advised = advice(found, wanted, costs.detector, costs.host, about)
    cores = machine(system).cores
    if site.cascade is not None:
        notes.append(f"the second model, {site.cascade.model}, is not counted")
    if costs.host.cores < _BUSY * cores:
        notes.append(f"others use this machine: {costs.host.cores:.1f} of {cores} cores could be had")
    return Plan(tuple(wanted), costs, planned, found, limit(found), advised, tuple(notes))


def _formats(site: AppConfig) -> tuple[Any, ...]:
    """Pixel formats that the back-end takes, without opening it."""
    return ("bgr",) if site.detect.backend == "fake" else ("nv12", "i420", "bgrx", "bgr")


# ------------------------------------------------------------------------------------------------ from a file


def _refuse_foreign(bench: Bench, detect: DetectConfig, spec: ModelSpec, sha256: str, system: System) -> None:
    """
    Raises:
        ConfigError: another machine, model or back-end.
    """
    faults = differences("machine", asdict(bench.machine), asdict(machine(system)))
    if bench.model_sha256 != sha256:
        faults.append(f"model: {bench.model!r} and {spec.name!r}, or another file of it")
    measured, wanted = backend_of(bench.backend), resolved(detect.backend)
    if measured != wanted:
        faults.append(f"back-end: {measured}, and {wanted} of `detect: {{backend: {detect.backend}}}`")
    if faults:
        raise ConfigError(
            "the benchmark is of something else: " + "; ".join(faults),
            hint=f"`vision bench {spec.name} --backend {wanted} --json FILE` on this machine, or leave out --bench: it "
            "is measured then",
        )


def backend_of(name: str) -> Backend:
    """Which back-end a detector is, by its name."""
    if name.startswith("TensorRT"):
        return "tensorrt"
    return "onnxruntime" if name.startswith("onnxruntime") else "fake"


def resolved(backend: str) -> Backend:
    """Which back-end `detect.backend` means here."""
    if backend == "auto":
        return "tensorrt" if _has_tensorrt() else "onnxruntime"
    return "tensorrt" if backend == "tensorrt" else "onnxruntime" if backend == "onnxruntime" else "fake"


def _has_tensorrt() -> bool:
    try:
        from vision.benchmark import gpu

        gpu.require()
    except DeviceMissing:
        return False
    return True


def default_slots(bench: Bench) -> int:
    """Batches in flight where `detect.batches_in_flight` says nothing."""
    if bench.machine.jetson:
        return SLOTS_INTEGRATED
    return SLOTS_GPU if backend_of(bench.backend) == "tensorrt" else SLOTS_CPU


def costs_of(bench: Bench, site: AppConfig) -> Costs:
    """What a benchmark knows of this configuration.

    Raises:
        ConfigError: it has no rows of the stage that fit.
    """
    gpu = backend_of(bench.backend) == "tensorrt"
    slots = site.detect.batches_in_flight or default_slots(bench)
    full, alone = _stage_rows(bench, site.detect, slots)
    largest = max(full)
    cores, threads = bench.machine.cores, site.detect.threads
    wanted = _wanted_cores(bench.backend, full[largest].cores_busy, cores, threads)
    batches = {}
    for size, row in full.items():
        use, use_alone = (CpuUse(each.cores_busy, each.cores_others) for each in (row, alone[size]))
        cost = BatchCost(alone[size].durations.mean_ms, 1e3 * size / row.frames_per_s, row.durations)
        if _on_cpu(bench.backend):
            cost = _for_itself(cost, use_alone, use, wanted=wanted, parallel=bench.parallel, cores=cores)
        batches[size] = cost
    frame_bytes = _bytes_of(bench.frame)
    parallel = min(bench.parallel, max(1, slots - 1) if gpu else slots)  # the file's is of its last number of slots
    detector = DetectorCost(bench.backend, largest, slots, parallel, batches, wanted, frame_bytes)
    return Costs(detector, _host(bench), full[largest].objects_per_frame, f"benchmark of {bench.measured_at}", gpu)


def _stage_rows(bench: Bench, detect: DetectConfig, slots: int) -> tuple[dict[int, Row], dict[int, Row]]:
    """By batch size, of all slots in use and of one: those of this precision, and of sizes that may be used.

    Raises:
        ConfigError: there are none.
    """
    has = bench.rows_of("stage")
    # Only TensorRT has a choice of precision.
    precision = detect.precision if backend_of(bench.backend) == "tensorrt" or not has else has[0].case.precision
    rows = [row for row in has if row.case.precision == precision]
    found = {
        mode: {row.case.batch: row for row in rows if row.case.mode == mode and row.case.lanes == slots}
        for mode in ("slots", "alone")
    }
    sizes = sorted(size for size in found["slots"] if size in found["alone"])
    fit = [size for size in sizes if size <= detect.max_batch]
    if fit:
        return {size: found["slots"][size] for size in fit}, {size: found["alone"][size] for size in fit}
    missing = "" if has else " --parts engine,stage,pipeline"
    if has and not rows:
        missing += f" --precision {precision}"
    if has and not any(row.case.mode == "alone" and row.case.lanes == slots for row in rows or has):
        missing += f" --slots {slots}"
    if sizes:
        missing += f" --batch {','.join(map(str, batch_sizes(detect.max_batch)))}"
    raise ConfigError(
        f"the benchmark has no stage of precision {precision} with {slots} slots and batches of at most "
        f"{detect.max_batch}: it has " + (", ".join(str(row.case) for row in has) or "no stage at all"),
        hint=f"`vision bench {bench.model} --backend {backend_of(bench.backend)}{missing} --json FILE`",
    )


def _bytes_of(frame: str) -> int:
    size, _, pixel_format = frame.partition(" ")
    width, _, height = size.partition("x")
    return int(int(width) * int(height) * {"bgr": 3, "bgrx": 4}.get(pixel_format, 1.5))


def _host(bench: Bench) -> HostCost:
    """With the cores that others left during most of the rows: one moment is not the whole plan."""
    others = statistics.median(row.cores_others for row in bench.rows)
    costs, cores = bench.host, max(_LEAST_CORES, bench.machine.cores - others)
    return HostCost(cores, costs.results_ms, costs.loop_ms, costs.camera_ms, costs.copy_gb_per_s)


def _on_cpu(backend: str) -> bool:
    """Whether the detector of this name computes on the CPU, and so shares it with everything else."""
    return backend_of(backend) == "onnxruntime"


def _wanted_cores(backend: str, used: float, cores: int, threads: int | None) -> float:
    """Cores that a detector keeps busy where it has them: on a CPU all it has threads for, elsewhere what it used."""
    return float(min(cores, threads or cores)) if _on_cpu(backend) else max(used, 0.01)


def _for_itself(cost: BatchCost, alone: CpuUse, full: CpuUse, *, wanted: float, parallel: int, cores: int) -> BatchCost:
    """What was measured, without what others on the machine added to it."""
    return BatchCost(
        cost.alone_ms * unhindered(max(wanted / parallel, min(1.0, wanted)), cores, alone.others),
        cost.interval_ms * unhindered(wanted, cores, full.others),
        cost.spread,
    )


# ------------------------------------------------------------------------------------------------ measured now


def measure_costs(
    site: AppConfig, wanted: Sequence[Demand], seconds: float, say: Callable[[str], None] = lambda _: None
) -> Costs:
    """A short benchmark of just what this site uses; without hand-overs.

    Raises:
        VisionError: model, back-end or pipeline are not there.
    """
    folder, spec = find_model(site)
    cores = [cores_to_be_had()]
    say("detector")
    images = _images(site, wanted)
    with closing(open_detector(folder, spec, site.detect)) as detector:
        gpu = backend_of(detector.spec.name) == "tensorrt"
        cost, objects = measure_detector(detector, images, wanted, seconds, threads=site.detect.threads)
        say("threads")
        height_px, width_px, _ = _usual(wanted)
        names = published_class_names(spec, site.detect)
        threads = measure_threads(site, names, round(objects), size_px=(width_px, height_px))
    cores.append(cores_to_be_had())
    copied = _copy_gb_per_s(images[0].nbytes) if gpu else None
    host = HostCost(sum(cores) / 2, threads.results_ms, threads.loop_ms, threads.camera_ms, copied)
    return Costs(cost, host, objects, "measured now", gpu)


def _handover(site: AppConfig, spec: ModelSpec, wanted: Sequence[Demand], costs: Costs, seconds: float) -> Handover:
    """Measured now, also where the rest is of a file: that file is of this machine."""
    host = costs.host
    turns = ThreadCosts(host.results_ms, host.loop_ms, host.camera_ms)
    names, objects = published_class_names(spec, site.detect), round(costs.objects_per_frame)
    return measure_handover(site, names, objects, wanted, turns, seconds=_HANDOVERS * seconds)


def measure_detector(
    detector: Detector,
    images: Sequence[Image],
    wanted: Sequence[Demand],
    seconds: float,
    *,
    threads: int | None,
) -> tuple[DetectorCost, float]:
    """Cost of each batch size that these cameras can fill, and objects in a frame. `images` are in `_usual` form."""
    cores, pause_s = machine_cores(), _pause_s(wanted)
    _, _, pixel_format = _usual(wanted)
    most = min(detector.spec.max_batch, len(wanted))
    batches = {}
    used = objects = 0.0
    for size in batch_sizes(most):
        frames = make_batches(detector, images, detector.spec.batches_in_flight, size, pixel_format)
        alone = measure_alone(detector, frames[0], seconds, pause_s=pause_s)
        full = measure_stage(detector, frames, seconds)
        used = _wanted_cores(detector.spec.name, full.cpu.own, cores, threads)
        cost = BatchCost(alone.durations.mean_ms, 1e3 * size / full.frames_per_s, full.durations)
        if _on_cpu(detector.spec.name):
            parallel = detector.spec.parallel
            cost = _for_itself(cost, alone.cpu, full.cpu, wanted=used, parallel=parallel, cores=cores)
        batches[size] = cost
        objects = full.objects_per_frame
    cost_of_all = DetectorCost(
        detector.spec.name,
        most,
        detector.spec.batches_in_flight,
        detector.spec.parallel,
        batches,
        used,
        images[0].nbytes,
    )
    return cost_of_all, objects


def _pause_s(wanted: Sequence[Demand]) -> float:
    """Between two frames of the site, where the detector has nothing to do: half of the time, say."""
    return min(_LONGEST_PAUSE_S, 0.5 / sum(map(accepted_fps, wanted)))


def _images(site: AppConfig, wanted: Sequence[Demand]) -> list[Image]:
    """Frames of the site's own where they can be had, in the size and format that its cameras send most."""
    local = [camera.source for camera in site.cameras if is_local(camera.source)]
    try:
        images = load_frames(local[0] if local else shipped_clip(), _FRAMES)
    except SourceError:
        images = load_frames(shipped_clip(), _FRAMES)
    height_px, width_px, pixel_format = _usual(wanted)
    return [convert(resized(image, height_px, width_px), pixel_format) for image in images]


def _usual(wanted: Sequence[Demand]) -> tuple[int, int, PixelFormat]:
    """Height, width and format that the cameras send most."""
    forms = [(each.height_px, each.width_px, each.pixel_format) for each in wanted]
    return max(forms, key=forms.count)


def resized(image: Image, height_px: int, width_px: int) -> Image:
    """A frame in another size: each pixel is the nearest of the old one."""
    rows = np.arange(height_px) * image.shape[0] // height_px
    columns = np.arange(width_px) * image.shape[1] // width_px
    return np.ascontiguousarray(image[rows][:, columns])


def _copy_gb_per_s(nbytes: int) -> float | None:
    try:
        from vision.benchmark.gpu import copy_gb_per_s
    except DeviceMissing:
        return None
    return copy_gb_per_s(nbytes)


# ------------------------------------------------------------------------------------------------ and whether it is so


@dataclass(frozen=True, slots=True)
class Check:
    """One figure: as planned, as it came, and as planned anew with the cores that others left while it was measured."""

    what: str
    planned: float
    then: float
    measured: float

    @property
    def error(self) -> float | None:
        """Of the plan: `planned` over `measured`, less 1. None: nothing came."""
        return _error(self.planned, self.measured)

    @property
    def error_then(self) -> float | None:
        """What is left of it where the machine had been as it was then: `then` over `measured`, less 1."""
        return _error(self.then, self.measured)

    def as_json(self) -> dict[str, Any]:
        """With both errors."""
        return {**asdict(self), "error": self.error, "error_then": self.error_then}


def _error(planned: float, measured: float) -> float | None:
    if measured == 0:
        return 0.0 if planned == 0 else None
    return planned / measured - 1


def verify(site: AppConfig, plan: Plan, seconds: float) -> tuple[Check, ...]:
    """Run the site for `seconds`, with a socket that nobody knows, and put what it does beside the plan.

    Raises:
        VisionError: whatever the pipeline raises.
    """
    ran = run_site(without_traces(site), seconds, open_detector, publish=True)
    host = replace(plan.costs.host, cores=max(ran.cpu.own, machine_cores() - ran.cpu.others))
    return checks(plan.forecast, forecast(plan.demands, plan.costs.detector, host), ran)


def checks(planned: Forecast, then: Forecast, ran: SiteRun) -> tuple[Check, ...]:
    """Figures of all cameras together, and every camera's."""
    found = _checks("", planned, then, ran)
    for camera, again in zip(planned.cameras, then.cameras, strict=True):
        found += _checks(f"{camera.camera_id}: ", camera, again, ran.cameras[camera.camera_id])
    return tuple(found)


class _Figures(Protocol):
    """Of one camera or of all, planned or measured."""

    @property
    def published_per_s(self) -> float: ...
    @property
    def dropped_per_s(self) -> float: ...
    @property
    def latency(self) -> Durations: ...


def _checks(name: str, planned: _Figures, then: _Figures, came: _Figures) -> list[Check]:
    times, again, measured = planned.latency, then.latency, came.latency
    return [
        Check(f"{name}frames/s", planned.published_per_s, then.published_per_s, came.published_per_s),
        Check(f"{name}drops/s", planned.dropped_per_s, then.dropped_per_s, came.dropped_per_s),
        Check(f"{name}p50 ms", times.p50_ms, again.p50_ms, measured.p50_ms),
        Check(f"{name}p99 ms", times.p99_ms, again.p99_ms, measured.p99_ms),
    ]


def machine_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
