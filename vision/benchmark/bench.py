"""Measurements of `vision bench MODEL`: the speed of the network alone, of the detection stage, and of the program."""

from __future__ import annotations

import gc
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Any, Final

from vision.benchmark.conditions import Clocks, available_cores, clocks, machine, versions
from vision.benchmark.document import Bench, Case, Part, Row
from vision.benchmark.frames import CLIP, Image, convert, load_frames, make_batches, shipped_clip, size_of
from vision.benchmark.loops import Lane, Measured, ThreadLane, measure_alone, measure_engine, measure_stage
from vision.benchmark.pipeline import NonClosingDetector, run_deployment, synthetic_deployment
from vision.config import DetectConfig, ModelSpec
from vision.detect.detector import Detector, DetectorSpec
from vision.detect.open import open_detector
from vision.errors import ConfigError, DeviceMissing, ModelError, redact
from vision.runtime.status import resident_bytes
from vision.types import Frame, PixelFormat

_STREAMS: Final = (1, 2)  # numbers of streams to measure
_MAX_CAMERAS: Final = 32  # maximum number of cameras in a run of the program
_OVERLOAD: Final = 1.5  # first rate of the cameras at full load, as a multiple of the stage's rate
_PARTS_OF_MAX: Final = (1.0, 0.5, 0.25, 0.12)  # parts of the first rate to try, for GPUs faster than the program
_NEAR: Final = 0.9  # part of the stage's rate from which no other rate is tried
_FEW: Final = 0.01  # if a smaller part of the frames is dropped, a lower rate would publish less
_HALF: Final = 0.5  # part of the highest throughput that the cameras deliver at half load
_MAX_FPS: Final = 1000.0  # highest rate of a synthetic camera
_MIN_PIPELINE_S: Final = 1.0  # minimum duration of a run of the program
_MAX_PIPELINE_S: Final = 60.0  # longest duration to which slow cameras extend a run of the program
_MIN_FRAMES: Final = 4  # minimum number of frames per camera in a run of the program
_FRAMES: Final = 32  # number of different frames


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """Options of `vision bench`."""

    backend: str = "auto"
    batches: tuple[int, ...] = (1, 2, 4, 8)
    precisions: tuple[str, ...] = ("fp16",)
    batches_in_flight: tuple[int, ...] = ()  # empty means from 1 to the number of slots of the detector
    seconds: float = 2.0  # duration of each measurement
    parts: tuple[Part, ...] = ("engine", "stage", "pipeline")
    source: str = ""  # video or synthetic camera that supplies the frames; empty means the shipped clip
    pixel_format: PixelFormat = "bgr"
    score: float = 0.35  # score threshold


def measure(
    folder: Path, spec: ModelSpec, settings: BenchSettings, say: Callable[[str], None] = lambda _: None
) -> Bench:
    """Measure all parts in `settings`, and return the results. `say` receives a description of each step.

    Raises:
        VisionError: the model, the back-end, or the frames are missing, the frames cannot be converted, or nothing can
            be measured.
    """
    source = settings.source or shipped_clip()
    frames = load_frames(source, _FRAMES)
    try:
        images = [convert(frame, settings.pixel_format) for frame in frames]
    except ValueError as error:
        raise ConfigError(f"cannot convert the frames of {source} to {settings.pixel_format}: {error}") from error
    cores = available_cores()
    benchmark = _Benchmark(folder, spec, settings, images, say)
    detector = benchmark.run()
    if not benchmark.rows:
        raise ConfigError("; ".join(("nothing could be measured", *benchmark.notes)), code="nothing-measured")
    height_px, width_px = size_of(images[0], settings.pixel_format)
    return Bench(
        model=spec.name,
        model_sha256=_file_sha256(folder / spec.file),
        input=f"{spec.input.width}x{spec.input.height}",
        backend=detector.name,
        slots=detector.batches_in_flight,
        parallel=detector.parallel,
        frame=f"{width_px}x{height_px} {settings.pixel_format}",
        seconds=settings.seconds,
        measured_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        machine=machine(),
        versions=versions(),
        cores_available=min(cores, available_cores()),
        source=redact(settings.source) or CLIP,
        rows=tuple(benchmark.rows),
        notes=tuple(benchmark.notes),
        settings={"score": settings.score, "max_batch": benchmark.max_batch},
    )


def load_gpu(backend: str) -> tuple[Any, str]:
    """Return the module `vision.benchmark.gpu` and an empty note, if the back-end uses the GPU.

    If `backend` is "auto", but the GPU, its driver, or TensorRT is missing, return None and a note that states the
    reason. If `backend` is neither "tensorrt" nor "auto", return None and an empty note.

    Raises:
        DeviceMissing: `backend` is "tensorrt", but the GPU, its driver, or TensorRT is missing.
        DeviceError: the GPU does not work.
    """
    if backend not in ("tensorrt", "auto"):
        return None, ""
    try:
        from vision.benchmark import gpu

        gpu.require()
    except DeviceMissing as missing:
        if backend == "tensorrt":
            raise
        return None, f"no NVIDIA GPU with TensorRT ({missing.args[0]}), so ONNX Runtime on the CPU is measured"
    return gpu, ""


class _Benchmark:
    """One run of a benchmark. `rows` and `notes` contain the results."""

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        settings: BenchSettings,
        images: Sequence[Image],
        say: Callable[[str], None],
    ) -> None:
        self.rows: list[Row] = []
        self.max_batch = max(DetectConfig().max_batch, *settings.batches)  # as in `vision run`
        self._folder = folder
        self._spec = spec
        self._settings = settings
        self._images = images
        self._say = say
        self._gpu, note = load_gpu(settings.backend)
        self.notes = [note] if note else []
        self._backend = "tensorrt" if self._gpu else "fake" if settings.backend == "fake" else "onnxruntime"
        self._sampler = ThreadPoolExecutor(1, "clocks")  # reads the clocks during a warm-up, under load

    def run(self) -> DetectorSpec:
        """Measure all rows. Return the specification of the most recently opened detector."""
        precisions: Sequence[str] = self._settings.precisions
        if self._gpu is None:
            precisions = ("fp32",)
            self._note(f"{self._backend} has only one precision, so everything is measured once")
        with self._sampler:
            for precision in precisions:
                if "engine" in self._settings.parts:
                    self._engines(precision)
                spec = self._stages(precision)
        return spec

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    # --- the network alone ---

    def _engines(self, precision: str) -> None:
        if self._backend == "fake":
            self._note("the fake back-end has no network, so only the other parts are measured")
            return
        modes = ("eager", "graph") if self._gpu else ("eager",)
        with self._open_lanes(precision) as open_lanes:
            for batch, mode, streams in product(self._settings.batches, modes, _STREAMS):
                self._engine(Case("engine", mode, streams, precision, batch), open_lanes)

    @contextmanager
    def _open_lanes(self, precision: str) -> Iterator[Callable[[Case], list[Lane]]]:
        gpu = self._gpu
        if gpu is None:
            yield self._cpu_lanes
            return
        with gpu.opened_engine(self._folder, self._spec, self._detect(precision)) as engine:
            yield lambda case: [
                gpu.GpuLane(engine, gpu.network_shapes(engine, self._spec, case.batch), graph=case.mode == "graph")
                for _ in range(case.lanes)
            ]

    def _cpu_lanes(self, case: Case) -> list[Lane]:
        from vision.detect.onnxruntime.network import OnnxNetwork

        path = self._folder / self._spec.file
        threads = max(1, len(os.sched_getaffinity(0)) // case.lanes)
        return [ThreadLane(OnnxNetwork(path, self._spec, case.batch, threads=threads).run) for _ in range(case.lanes)]

    def _engine(self, case: Case, open_lanes: Callable[[Case], list[Lane]]) -> None:
        """Measure the speed of the network alone with the batch size, precision, and mode of `case`, and add a row.

        If the model cannot run this case, add a note instead.
        """
        self._say(str(case))
        try:
            with ExitStack() as resources:
                lanes = open_lanes(case)
                for lane in lanes:
                    resources.callback(lane.close)
                now = self._sampler.submit(clocks)
                measured = measure_engine(lanes, self._settings.seconds, batch_size=case.batch, warm=now.done)
                self.rows.append(self._row(case, measured, now))
        except ModelError as error:
            self._note(f"{case}: {error.args[0]}")

    # --- the stage ---

    def _stages(self, precision: str) -> DetectorSpec:
        """Measure the detection stage and the program. Return the specification of the most recently opened detector.

        Each slot of a detector holds one batch in flight. On a GPU, slots are independent, so one detector serves all
        numbers of slots. On a CPU, slots share the cores, so each number of slots needs its own detector.
        """
        counts: Sequence[int] = self._settings.batches_in_flight
        if self._gpu:
            return self._stage(precision, max(counts, default=None), counts, last=True)
        if not counts:
            with closing(self._open(precision, None)) as detector:
                counts = range(1, detector.spec.batches_in_flight + 1)
        return [self._stage(precision, count, (count,), last=count == counts[-1]) for count in counts][-1]

    def _open(self, precision: str, slots: int | None) -> Detector:
        return open_detector(self._folder, self._spec, self._detect(precision, slots))

    def _detect(self, precision: str, slots: int | None = None) -> DetectConfig:
        sizes = {"max_batch": self.max_batch, "batches_in_flight": slots}
        kind = {"backend": self._backend, "precision": precision, "score_threshold": self._settings.score}
        return DetectConfig.model_validate(sizes | kind)

    def _stage(self, precision: str, slots: int | None, counts: Sequence[int], *, last: bool) -> DetectorSpec:
        with closing(self._open(precision, slots)) as detector:
            pixel_format, formats = self._settings.pixel_format, detector.spec.pixel_formats
            if pixel_format not in formats:
                self._note(
                    f"{detector.spec.name} accepts {' and '.join(formats)}, so it is not measured with {pixel_format}"
                )
                return detector.spec
            counts = counts or range(1, detector.spec.batches_in_flight + 1)
            rates = self._stage_rows(detector, precision, counts)
            if last and "pipeline" in self._settings.parts:
                self._pipelines(detector, precision, rates)
            return detector.spec

    def _stage_rows(self, detector: Detector, precision: str, counts: Sequence[int]) -> Mapping[int, float]:
        """Measure the detection stage for each batch size and each number of batches in flight in `counts`.

        Add rows if they are requested. Return the throughput in frames/s by batch size, with ``counts[-1]`` batches in
        flight.
        """
        rates = {}
        possible = [batch for batch in self._settings.batches if batch <= detector.spec.max_batch]
        if len(possible) < len(self._settings.batches):
            self._note(f"{detector.spec.name} runs batches of up to {detector.spec.max_batch}; larger ones are skipped")
        for batch in possible:
            for count in counts:
                case = Case("stage", "slots", count, precision, batch)
                rates[batch] = self._stage_row(case, detector).frames_per_s
            if "stage" in self._settings.parts:
                self._stage_row(Case("stage", "alone", detector.spec.batches_in_flight, precision, batch), detector)
        return rates

    def _stage_row(self, case: Case, detector: Detector) -> Measured:
        """Measure the detection stage with the batch size and the mode of `case`, and return the result.

        Add a row if rows of the stage are requested. In the mode "alone", only one batch at a time is in flight.
        """
        self._say(str(case))
        now, seconds = self._sampler.submit(clocks), self._settings.seconds
        if case.mode == "alone":
            (frames,) = self._batches(detector, 1, case.batch)
            measured = measure_alone(detector, frames, seconds, warm=now.done)
        else:
            measured = measure_stage(detector, self._batches(detector, case.lanes, case.batch), seconds, warm=now.done)
        if "stage" in self._settings.parts:
            self.rows.append(self._row(case, measured, now))
        return measured

    def _batches(self, detector: Detector, slots: int, batch: int) -> list[list[Frame]]:
        return make_batches(detector, self._images, slots, batch, self._settings.pixel_format)

    def _row(self, case: Case, measured: Measured, now: Future[Clocks]) -> Row:
        return Row(
            case,
            measured.durations,
            measured.frames_per_s,
            measured.cpu.own,
            measured.cpu.others,
            rss_mib=resident_bytes() / 2**20,
            device_mib=self._gpu.device_mib() if self._gpu else None,
            clocks=now.result(),
            objects_per_frame=measured.objects_per_frame,
            rate_error=measured.rate_error,
        )

    # --- the program ---

    def _pipelines(self, detector: Detector, precision: str, rates: Mapping[int, float]) -> None:
        max_per_s = math.inf
        for batch, rate in rates.items():
            cameras = min(_MAX_CAMERAS, batch * detector.spec.batches_in_flight)
            case = Case("pipeline", "full", cameras, precision, batch)
            shown = self._batches(detector, detector.spec.batches_in_flight, batch)
            offered_per_s = _OVERLOAD * min(rate, max_per_s)
            row = self._full_load(detector, case, shown, offered_per_s, enough_per_s=_NEAR * rate)
            if row.frames_per_s == 0:
                self._note(f"{case}: no frame was published in time; increase --seconds")
                continue
            max_per_s = 2 * row.frames_per_s  # the next larger batch at most doubles the throughput
            half = self._pipeline(detector, replace(case, mode="half"), shown, _HALF * row.frames_per_s)
            self.rows += [row, half]

    def _full_load(
        self, detector: Detector, case: Case, shown: Sequence[Sequence[Frame]], max_per_s: float, enough_per_s: float
    ) -> Row:
        """Measure the program at several camera rates, `max_per_s` first. Return the row with the highest throughput.

        If the cameras deliver more frames than the program can process, the program publishes fewer results, because
        the camera threads compete with other threads for the GIL. Therefore, try lower rates until the throughput
        reaches `enough_per_s`, or almost no frames are dropped.
        """
        rows: list[Row] = []
        for part in _PARTS_OF_MAX:
            row = self._pipeline(detector, case, shown, part * max_per_s)
            rows.append(row)
            if row.frames_per_s >= enough_per_s or row.dropped_per_s < _FEW * row.offered_per_s:
                break
        return max(rows, key=lambda row: row.frames_per_s)

    def _pipeline(self, detector: Detector, case: Case, shown: Sequence[Sequence[Frame]], offered_per_s: float) -> Row:
        """Measure the program with synthetic cameras, and return the row.

        The detector receives the frames `shown` instead of the frames of the cameras.
        """
        self._say(f"{case} at {offered_per_s:.0f} frames/s")
        height_px, width_px = size_of(self._images[0], self._settings.pixel_format)
        fps, seconds = pace(offered_per_s, case.lanes, self._settings.seconds)
        config = synthetic_deployment(case.lanes, fps, width_px, height_px, self._settings.pixel_format)
        now = self._sampler.submit(clocks)
        ran = run_deployment(config, seconds, lambda *_: NonClosingDetector(detector, case.batch, shown))
        gc.collect()  # the buffers of cameras are in reference cycles, and must not count as memory of the next row
        measured = Measured(ran.latency, ran.published_per_s, ran.cpu, ran.rate_error, ran.objects_per_frame)
        dropped_per_s = sum(ran.dropped_per_s.values())
        return replace(self._row(case, measured, now), offered_per_s=ran.grabbed_per_s, dropped_per_s=dropped_per_s)


def pace(offered_per_s: float, cameras: int, seconds: float) -> tuple[float, float]:
    """Return the rate of each camera in frames/s, and the duration of a run in seconds, including its warm-up.

    Args:
        offered_per_s: frames per second that all cameras together must deliver.
        cameras: number of cameras.
        seconds: requested duration of a measurement.
    """
    fps = min(_MAX_FPS, offered_per_s / cameras)
    slow_s = min(_MAX_PIPELINE_S, _MIN_FRAMES / fps)
    return fps, max(_MIN_PIPELINE_S, 2 * seconds, slow_s)


def _file_sha256(path: Path) -> str:
    with suppress(OSError):  # the fake back-end needs no model file
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return ""
