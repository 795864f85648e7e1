"""`vision plan CONFIG`: what a site will come to on this machine, before it is put up, and whether it then does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from vision.assemble import model_of
from vision.config import ModelCard, SiteConfig
from vision.detect.detector import Detector
from vision.detect.open import open_detector, published_class_names
from vision.engine.profiles import batch_sizes
from vision.errors import ConfigError, DeviceMissing, SourceError
from vision.performance.advice import Load, Site, accepted_fps, advice, limit, loads
from vision.performance.compare import differences
from vision.performance.conditions import CpuUse, System, ThisSystem, cores_to_be_had, file_sha256, machine
from vision.performance.demand import Demand, decode_costs, demands
from vision.performance.document import Bench, HostCosts, Row
from vision.performance.model import BatchCost, DetectorCost, Forecast, HostCost, forecast, unhindered
from vision.performance.pictures import Image, convert, is_local, make_batches, read_pictures, shipped_clip
from vision.performance.pipeline import SiteRun, measure_threads, run_site, without_traces
from vision.performance.stage import measure_alone, measure_stage

_SECONDS: Final = 1.0
_PICTURES: Final = 16
_LONGEST_PAUSE_S: Final = 0.1
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
    site: SiteConfig,
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
    folder, card = model_of(site)
    known = bench.host.decode if bench is not None else decode_costs((shipped_clip(),))
    say("cameras")
    formats = _formats(site) if bench is None else ("nv12", "i420", "bgrx", "bgr")
    wanted = demands(site.cameras, formats, known)
    notes = [f"{each.camera_id}: {each.assumed}" for each in wanted if each.assumed]
    if bench is not None:
        notes += _refuse_foreign(bench, card, file_sha256(folder / card.file), system or ThisSystem())
        costs = costs_of(bench, site)
    else:
        costs = measure_costs(site, wanted, seconds, say)
    say("rehearsal")
    planned = forecast(wanted, costs.detector, costs.host)
    found = loads(wanted, costs.detector, costs.host)
    about = Site(
        costs.gpu,
        site.detect.precision,
        site.publish.encoding,
        costs.objects_per_frame,
        (card.input.width, card.input.height),
    )
    advised = advice(found, wanted, costs.detector, costs.host, about)
    cores = machine(system or ThisSystem()).cores
    if site.cascade is not None:
        notes.append(f"the second model, {site.cascade.model}, is not counted")
    if costs.host.cores < _BUSY * cores:
        notes.append(f"others use this machine: {costs.host.cores:.1f} of {cores} cores could be had")
    return Plan(tuple(wanted), costs, planned, found, limit(found), advised, tuple(notes))


def _formats(site: SiteConfig) -> tuple[Any, ...]:
    """Pixel formats that the back-end takes, without opening it."""
    return ("bgr",) if site.detect.backend == "fake" else ("nv12", "i420", "bgrx", "bgr")


# ------------------------------------------------------------------------------------------------ from a file


def _refuse_foreign(bench: Bench, card: ModelCard, sha256: str, system: System) -> list[str]:
    """
    Raises:
        ConfigError: another machine or another model.
    """
    faults = differences("machine", asdict(bench.machine), asdict(machine(system)))
    if bench.model_sha256 != sha256:
        faults.append(f"model: {bench.model!r} and {card.name!r}, or another file of it")
    if faults:
        raise ConfigError(
            "the benchmark is of another machine or model: " + "; ".join(faults),
            hint="`vision bench MODEL --json FILE` on this machine, or leave out --bench: it is measured then",
        )
    return [f"the benchmark is of {bench.measured_at}, with pictures of {bench.picture}"]


def costs_of(bench: Bench, site: SiteConfig) -> Costs:
    """What a benchmark knows of this configuration.

    Raises:
        ConfigError: it has no rows of the stage that fit.
    """
    precisions = sorted({row.case.precision for row in bench.rows_of("stage")})
    gpu = any(row.device_mib is not None for row in bench.rows)
    precision = site.detect.precision if gpu or not precisions else precisions[0]  # a CPU has no choice
    slots = site.detect.slots or bench.slots
    rows = bench.rows_of("stage", precision)
    full = _by_batch(row for row in rows if row.case.mode == "slots" and row.case.lanes == slots)
    alone = _by_batch(row for row in rows if row.case.mode == "alone" and row.case.lanes == slots)
    sizes = [size for size in full if size in alone and size <= site.detect.max_batch]
    if not sizes:
        raise ConfigError(
            f"the benchmark has no stage of precision {site.detect.precision} with {slots} slots: it has "
            + (", ".join(str(row.case) for row in bench.rows_of("stage")) or "no stage at all"),
            hint=f"`vision bench {bench.model} --precision {site.detect.precision} --json FILE`",
        )
    wanted = _wanted_cores(full[max(sizes)].cores_busy, gpu=gpu, cores=bench.machine.cores, threads=site.detect.threads)
    batches = {}
    for size in sizes:
        use, use_alone = (CpuUse(row.cores_busy, row.cores_others) for row in (full[size], alone[size]))
        cost = BatchCost(alone[size].durations.mean_ms, 1e3 * size / full[size].frames_per_s, full[size].durations)
        batches[size] = _for_itself(
            cost, use_alone, use, wanted=wanted, parallel=bench.parallel, cores=bench.machine.cores
        )
    picture_bytes = _bytes_of(bench.picture)
    detector = DetectorCost(bench.backend, max(sizes), slots, bench.parallel, batches, wanted, picture_bytes)
    objects = full[max(sizes)].objects_per_frame
    return Costs(detector, _host(bench.host), objects, f"benchmark of {bench.measured_at}", gpu)


def _by_batch(rows: Any) -> dict[int, Row]:
    return {row.case.batch: row for row in rows}


def _bytes_of(picture: str) -> int:
    size, _, pixel_format = picture.partition(" ")
    width, _, height = size.partition("x")
    return int(int(width) * int(height) * {"bgr": 3, "bgrx": 4}.get(pixel_format, 1.5))


def _host(costs: HostCosts) -> HostCost:
    return HostCost(costs.cores, costs.results_ms, costs.loop_ms, costs.camera_ms, costs.copy_gb_per_s)


def _wanted_cores(used: float, *, gpu: bool, cores: int, threads: int | None) -> float:
    """Cores that a detector keeps busy where it has them: on a GPU what it used, on a CPU all it has threads for."""
    return max(used, 0.01) if gpu else float(min(cores, threads or cores))


def _for_itself(cost: BatchCost, alone: CpuUse, full: CpuUse, *, wanted: float, parallel: int, cores: int) -> BatchCost:
    """What was measured, without what others on the machine added to it."""
    return BatchCost(
        cost.alone_ms * unhindered(max(wanted / parallel, min(1.0, wanted)), cores, alone.others),
        cost.interval_ms * unhindered(wanted, cores, full.others),
        cost.spread,
    )


# ------------------------------------------------------------------------------------------------ measured now


def measure_costs(
    site: SiteConfig, wanted: Sequence[Demand], seconds: float, say: Callable[[str], None] = lambda _: None
) -> Costs:
    """A short benchmark of just what this site uses.

    Raises:
        VisionError: model, back-end or pipeline are not there.
    """
    folder, card = model_of(site)
    cores = [cores_to_be_had()]
    say("detector")
    images = _images(site, wanted)
    with closing(open_detector(folder, card, site.detect)) as detector:
        gpu = detector.name.startswith("TensorRT")
        cost, objects = measure_detector(
            detector, images, len(wanted), seconds, pause_s=_pause_s(wanted), gpu=gpu, threads=site.detect.threads
        )
        say("threads")
        size_px = (images[0].shape[1], images[0].shape[0])
        names = published_class_names(card, site.detect)
        threads = measure_threads(site, names, round(objects), size_px=size_px)
    cores.append(cores_to_be_had())
    copied = _copy_gb_per_s(images[0].nbytes) if gpu else None
    host = HostCost(sum(cores) / 2, threads.results_ms, threads.loop_ms, threads.camera_ms, copied)
    return Costs(cost, host, objects, "measured now", gpu)


def measure_detector(
    detector: Detector,
    images: Sequence[Image],
    cameras: int,
    seconds: float,
    *,
    pause_s: float,
    gpu: bool,
    threads: int | None,
) -> tuple[DetectorCost, float]:
    """Cost of each batch size that so many cameras can fill, and objects in a picture."""
    cores = machine_cores()
    most = min(detector.max_batch, cameras)
    batches = {}
    wanted = objects = 0.0
    for size in batch_sizes(most):
        frames = make_batches(detector, images, detector.slots, size, "bgr")
        alone = measure_alone(detector, frames[0], seconds, pause_s=pause_s)
        full = measure_stage(detector, frames, seconds)
        wanted = _wanted_cores(full.cpu.own, gpu=gpu, cores=cores, threads=threads)
        cost = BatchCost(alone.durations.mean_ms, 1e3 * size / full.frames_per_s, full.durations)
        batches[size] = _for_itself(cost, alone.cpu, full.cpu, wanted=wanted, parallel=detector.parallel, cores=cores)
        objects = full.objects_per_frame
    cost_of_all = DetectorCost(
        detector.name, most, detector.slots, detector.parallel, batches, wanted, images[0].nbytes
    )
    return cost_of_all, objects


def _pause_s(wanted: Sequence[Demand]) -> float:
    """Between two pictures of the site, where the detector has nothing to do: half of the time, say."""
    return min(_LONGEST_PAUSE_S, 0.5 / sum(map(accepted_fps, wanted)))


def _images(site: SiteConfig, wanted: Sequence[Demand]) -> list[Image]:
    """Pictures of the site's own where they can be had, in the size that its cameras send most."""
    local = [camera.source for camera in site.cameras if is_local(camera.source)]
    try:
        images = read_pictures(local[0] if local else shipped_clip(), _PICTURES)
    except SourceError:
        images = read_pictures(shipped_clip(), _PICTURES)
    sizes = [(each.height_px, each.width_px) for each in wanted]
    height_px, width_px = max(set(sizes), key=sizes.count)
    return [convert(resized(image, height_px, width_px), "bgr") for image in images]


def resized(image: Image, height_px: int, width_px: int) -> Image:
    """A picture in another size: each pixel is the nearest of the old one."""
    rows = np.arange(height_px) * image.shape[0] // height_px
    columns = np.arange(width_px) * image.shape[1] // width_px
    return np.ascontiguousarray(image[rows][:, columns])


def _copy_gb_per_s(nbytes: int) -> float | None:
    try:
        from vision.performance.gpu import copy_gb_per_s
    except DeviceMissing:
        return None
    return copy_gb_per_s(nbytes)


# ------------------------------------------------------------------------------------------------ and whether it is so


@dataclass(frozen=True, slots=True)
class Check:
    """One figure: as planned, as it would have been planned with the cores that others left then, and as it came."""

    what: str
    planned: float
    then: float
    measured: float

    @property
    def error(self) -> float:
        """`then` over `measured`, less 1."""
        if self.measured == 0:
            return 0.0 if self.then == 0 else float("inf")
        return self.then / self.measured - 1


def verify(site: SiteConfig, plan: Plan, seconds: float) -> tuple[Check, ...]:
    """Run the site for `seconds`, with a socket that nobody knows, and put what it does beside the plan.

    Raises:
        VisionError: whatever the pipeline raises.
    """
    ran = run_site(without_traces(site), seconds, open_detector, publish=True)
    host = replace(plan.costs.host, cores=max(ran.cpu.own, machine_cores() - ran.cpu.others))
    return checks(plan.forecast, forecast(plan.demands, plan.costs.detector, host), ran)


def checks(planned: Forecast, then: Forecast, ran: SiteRun) -> tuple[Check, ...]:
    """Every camera's figures, and those of all."""
    found = [
        Check("frames/s", planned.published_per_s, then.published_per_s, ran.published_per_s),
        Check("drops/s", planned.dropped_per_s, then.dropped_per_s, ran.dropped_per_s),
    ]
    for camera, again in zip(planned.cameras, then.cameras, strict=True):
        came = ran.cameras[camera.camera_id]
        name = camera.camera_id
        found += [
            Check(f"{name}: frames/s", camera.published_per_s, again.published_per_s, came.published_per_s),
            Check(f"{name}: drops/s", camera.dropped_per_s, again.dropped_per_s, came.dropped_per_s),
            Check(f"{name}: p50 ms", camera.latency.p50_ms, again.latency.p50_ms, came.latency.p50_ms),
            Check(f"{name}: p99 ms", camera.latency.p99_ms, again.latency.p99_ms, came.latency.p99_ms),
        ]
    return tuple(found)


def machine_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
