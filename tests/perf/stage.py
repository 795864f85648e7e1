"""Speed of the detection stage, compared with its limit, on the GPU of this machine.

The stage turns frames in host memory into boxes in host memory. Two of its parts can run at the same time: the network
(graph replays on two streams that never wait for the host) and the copies of the frames. The slower part limits the
speed. One run measures all parts, so that their times are comparable.

    python -m tests.perf.stage --out stage.json [--seconds 0.8] [--batches 1,4,8,16,32] [--limit 185]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.perf.results import snake_case_keys
from tests.perf.stage_parts import (
    MODEL,
    MOST_SLOTS,
    Opened,
    agreement,
    clip_detections,
    copy_alone,
    engine_alone,
    frames_for,
    graph_and_eager,
    latency,
    naive,
    opened,
    stage,
    steps,
)
from vision.config import DetectConfig, ModelSpec, ProfileSpec, folder_of_model, load_model_spec, shipped_models
from vision.detect.tensorrt.detector import open_tensorrt_detector
from vision.engine.build_plan import BuildPlan
from vision.engine.library import find_library
from vision.gpu.cuda import open_device
from vision.types import Detections, PixelFormat

log = logging.getLogger("stage")

LARGE = (1920, 1080)
CLIP_FRAMES = 192
BYTES_OF_A_PIXEL: Mapping[PixelFormat, float] = {"bgr": 3, "bgrx": 4, "nv12": 1.5, "i420": 1.5}


class Report:
    """Measurements so far. After each part, they are written to a file. Parts after the time limit are skipped."""

    def __init__(self, out: Path, limit_s: float, about: Mapping[str, Any]) -> None:
        self.values: dict[str, Any] = dict(about)
        self._out = out
        self._ends_s = time.monotonic() + limit_s

    def save(self) -> None:
        """Write the measurements so far to the file."""
        self._out.write_text(json.dumps(snake_case_keys(self.values), indent=1) + "\n")

    def late(self) -> bool:
        """Return True if the time limit has passed."""
        return time.monotonic() > self._ends_s

    def part(self, name: str, work: Callable[[], Any]) -> None:
        """Measure one part. If it fails, record the error instead, so that the other parts are still measured."""
        if self.late():
            self.values.setdefault("left out for want of time", []).append(name)
            return
        began_s = time.monotonic()
        try:
            value = work()
        except Exception:
            log.exception("%s", name)
            value = {"error": traceback.format_exc()}
        self.values[name] = value
        log.info("%s: %s (%.1f s)", name, json.dumps(value), time.monotonic() - began_s)
        self.save()


def measure(report: Report, batches: Sequence[int], seconds: float) -> None:
    """Measure all parts in descending order of importance."""
    top = max(batches)
    detect = DetectConfig(score_threshold=0.35, max_batch=top, batches_in_flight=MOST_SLOTS)
    with opened(detect) as target:
        report.values["detector"] = target.detector.spec.name
        report.values["ends"] = {tensor.name: tensor.dtype for tensor in target.model.engine.tensors}
        report.values["start_s"] = target.phases.seconds
        report.save()
        for batch in batches:
            _one_batch(report, target, batch, seconds)
        for pixel_format in ("nv12", "i420", "bgrx"):
            _one_format(report, target, top, pixel_format, seconds)
        report.part(
            f"stage {top} nv12, decoded on the GPU", partial(_stages, target, top, "nv12", seconds, on_gpu=True)
        )
        for batch in (1, 2):
            report.part(f"graph against eager {batch}", partial(graph_and_eager, target, batch, seconds))
        for batch in (1, 8):
            frames = frames_for(target.detector, 1, batch, "bgr")[0]
            report.part(f"latency {batch}", partial(latency, target.detector, frames, seconds))
        report.part("naive, ms a frame", partial(naive, target.model, target.slots[0]))
        report.values["goals"] = goals(report.values, batches)
        for batch in sorted({min(8, top), top}):
            _large_frames(report, target, batch, seconds)
    variants(report, top, seconds)
    for what in ("first", "second"):
        report.part(f"start as configured by default, {what} time, s", start)
    report.values["goals"] = goals(report.values, batches)
    report.save()


def _one_batch(report: Report, target: Opened, batch: int, seconds: float) -> None:
    report.part(f"steps {batch} bgr, us", partial(_steps_of, target, batch, "bgr"))
    report.part(f"engine {batch}", partial(engine_alone, target.slots[:2], batch, seconds))
    report.part(f"engine {batch}, three streams", partial(engine_alone, target.slots[:3], batch, seconds))
    report.part(f"copy {batch} bgr", partial(copy_alone, frame_bytes("bgr"), batch, seconds))
    report.part(f"stage {batch} bgr", partial(_stages, target, batch, "bgr", seconds))


def _one_format(report: Report, target: Opened, batch: int, pixel_format: PixelFormat, seconds: float) -> None:
    report.part(f"steps {batch} {pixel_format}, us", partial(_steps_of, target, batch, pixel_format))
    report.part(f"copy {batch} {pixel_format}", partial(copy_alone, frame_bytes(pixel_format), batch, seconds))
    report.part(f"stage {batch} {pixel_format}", partial(_stages, target, batch, pixel_format, seconds))


def frame_bytes(pixel_format: PixelFormat, size: tuple[int, int] = (768, 576)) -> int:
    """Return the size of a frame in bytes."""
    return int(size[0] * size[1] * BYTES_OF_A_PIXEL[pixel_format])


def _large_frames(report: Report, target: Opened, batch: int, seconds: float) -> None:
    """Measure frames of 1920x1080 pixels. These frames have about five times as many bytes, so the bus is the limit."""
    slots = range(2, 5)
    for pixel_format in ("bgr", "nv12"):
        name = f"{batch} {pixel_format} {LARGE[0]}x{LARGE[1]}"
        report.part(f"copy {name}", partial(copy_alone, frame_bytes(pixel_format, LARGE), batch, seconds))
        report.part(f"stage {name}", partial(_stages, target, batch, pixel_format, seconds, counts=slots, size=LARGE))


# ------------------------------------------------------------------------------------------------ variants

_PLAIN = BuildPlan("fp16", 8, half_input=True, half_outputs=True)

VARIANTS: Mapping[str, BuildPlan] = {
    "ranges of batches": _PLAIN,
    "fixed batch": replace(_PLAIN, fixed_batches=True),
    "fixed batch, interleaved": replace(_PLAIN, fixed_batches=True, interleaved_input=True),
    "fixed batch, interleaved, folded": replace(_PLAIN, fixed_batches=True, interleaved_input=True, folded=True),
}


def variants(report: Report, batch: int, seconds: float) -> None:
    """Measure engines with different build settings at the largest batch, and compare their detections."""
    reference: list[list[Detections]] = []

    def found_alike(target: Opened) -> dict[str, float]:
        found = clip_detections(target.detector, CLIP_FRAMES)
        if not reference:
            reference.append(found)
        return agreement(found, reference[0])

    for name, settings in VARIANTS.items():
        with _opened_variant(report, name, settings, batch) as target:
            if target is None:
                continue
            report.part(f"{name}: steps {batch} bgr, us", partial(_steps_of, target, batch, "bgr"))
            for streams in (2, 3):
                alone = partial(engine_alone, target.slots[:streams], batch, seconds)
                report.part(f"{name}: engine {batch}, {streams} streams", alone)
            for pixel_format in ("bgr", "nv12"):
                whole = partial(_stages, target, batch, pixel_format, seconds, counts=range(3, 6))
                report.part(f"{name}: stage {batch} {pixel_format}", whole)
            report.part(f"{name}: boxes as with {next(iter(VARIANTS))}", partial(found_alike, target))


@contextlib.contextmanager
def _opened_variant(report: Report, name: str, plan: BuildPlan, batch: int) -> Iterator[Opened | None]:
    """Open an engine for the batch size `batch`. Yield None if an error occurs, or if the time limit has passed.

    Unless the plan has fixed batch sizes, the engine also accepts smaller batches, down to half of this size. The small
    range shortens the start.
    """
    if report.late():
        report.part(name, lambda: None)
        yield None
        return

    low_best_high = (batch if plan.fixed_batches else max(1, batch // 2), batch, batch)

    def upper_half(spec: ModelSpec) -> ModelSpec:
        return spec.model_copy(update={"profiles": (ProfileSpec.model_validate({"batch": low_best_high}),)})

    detect = DetectConfig(score_threshold=0.25, max_batch=batch, batches_in_flight=5)
    with contextlib.ExitStack() as resources:
        try:
            target = resources.enter_context(opened(detect, plan=replace(plan, max_batch=batch), update=upper_half))
        except Exception:
            log.exception("%s", name)
            report.values[name] = {"error": traceback.format_exc()}
            report.save()
            yield None
            return
        report.values[f"{name}: start_s"] = target.phases.seconds
        yield target


# ------------------------------------------------------------------------------------------------ report


def start() -> dict[str, float]:
    """Measure each phase of the start of a detector, in seconds. In a second start, the cache contains the engine."""
    folder = folder_of_model(MODEL, shipped_models())
    detector = open_tensorrt_detector(folder, load_model_spec(folder), DetectConfig())
    try:
        return {**detector.startup.seconds, "together": sum(detector.startup.seconds.values())}
    finally:
        detector.close()


def _steps_of(target: Opened, batch: int, pixel_format: PixelFormat) -> dict[str, float]:
    frames = frames_for(target.detector, 1, batch, pixel_format)[0]
    target.detector.submit(0, frames)
    target.detector.wait(0, 10.0)
    return steps(target.slots[0], batch)


def _stages(
    target: Opened,
    batch: int,
    pixel_format: PixelFormat,
    seconds: float,
    *,
    counts: Sequence[int] = range(1, MOST_SLOTS + 1),
    on_gpu: bool = False,
    size: tuple[int, int] = (768, 576),
) -> list[dict[str, float]]:
    """Measure the stage with each number of slots in `counts`."""
    batches = frames_for(target.detector, max(counts), batch, pixel_format, on_gpu=on_gpu, size=size)
    return [stage(target.detector, batches, slots, seconds) for slots in counts]


def best(report: Mapping[str, Any], name: str) -> float:
    """Return the shortest time per batch of a stage, in ms, among the measured numbers of slots."""
    return float(min(each["ms"] for each in report[name]))


def goals(report: Mapping[str, Any], batches: Sequence[int]) -> dict[str, Any]:
    """Return the ratios that the documentation states, and the same ratios for all other formats and batch sizes."""
    ratios: dict[str, Any] = {}
    top = max(batches)

    def ratio(name: str, over: Callable[[], float], under: Callable[[], float]) -> None:
        with contextlib.suppress(KeyError, TypeError):
            ratios[name] = over() / under()

    def stage_ms(name: str) -> Callable[[], float]:
        return lambda: best(report, f"stage {name}")

    for batch in batches:
        limit = partial(_limit, report, batch)
        ratio(f"limit over stage, batch {batch}", limit, stage_ms(f"{batch} bgr"))
    for pixel_format in ("nv12", "i420"):
        ratio(f"{pixel_format} over bgr, batch {top}", stage_ms(f"{top} bgr"), stage_ms(f"{top} {pixel_format}"))
    ratio("batch 8 over naive", lambda: float(report["naive, ms a frame"]) * 8, stage_ms("8 bgr"))
    for batch in (1, 2):
        found = report.get(f"graph against eager {batch}")
        if isinstance(found, dict) and "eager_over_graph" in found:
            ratios[f"graph over eager, batch {batch}"] = found["eager_over_graph"]
    large = f"{LARGE[0]}x{LARGE[1]}"
    for batch in batches:
        for pixel_format in ("bgr", "nv12"):
            name = f"{batch} {pixel_format} {large}"
            limit = partial(_limit, report, batch, f"copy {name}")
            ratio(f"limit over stage, {name}", limit, stage_ms(name))
        ratio(f"nv12 over bgr, {batch} {large}", stage_ms(f"{batch} bgr {large}"), stage_ms(f"{batch} nv12 {large}"))
    for name in VARIANTS:
        whole = f"{name}: stage {top}"
        ratio(f"{name}: nv12 over bgr", partial(best, report, f"{whole} bgr"), partial(best, report, f"{whole} nv12"))
    return ratios


def _limit(report: Mapping[str, Any], batch: int, copy: str = "") -> float:
    """Return the time per batch, in ms, of the network alone or of the copies alone, whichever is longer."""
    return max(float(report[f"engine {batch}"]), float(report[copy or f"copy {batch} bgr"]))


def main() -> None:
    """Measure the stage, write the results, and log the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("stage.json"), help="output file. Default: %(default)s")
    parser.add_argument("--seconds", type=float, default=0.8, help="duration of each measurement. Default: %(default)g")
    parser.add_argument("--batches", default="1,4,8,16,32", help="batch sizes. Default: %(default)s")
    parser.add_argument("--limit", type=float, default=185.0, help="seconds after which no further part is started")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(name)s %(message)s")
    device = open_device()
    about = {
        "gpu": device.name,
        "driver": device.driver_version,
        "library": str(find_library()),
        "cores": os.cpu_count(),
    }
    report = Report(arguments.out, arguments.limit, about)
    measure(report, [int(each) for each in arguments.batches.split(",")], arguments.seconds)
    for name, value in report.values["goals"].items():
        log.info("%-40s %.3f", name, value)


if __name__ == "__main__":
    main()
