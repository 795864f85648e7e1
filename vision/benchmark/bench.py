"""`vision bench MODEL`: the network alone, the whole stage, the whole program, in one run on one machine."""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from vision.benchmark.conditions import (
    Clocks,
    CpuUse,
    System,
    ThisSystem,
    clocks,
    cores_to_be_had,
    file_sha256,
    machine,
)
from vision.benchmark.conditions import versions as installed_versions
from vision.benchmark.document import Bench, Case, HostCosts, Part, Row
from vision.benchmark.engine import Alone, Lane, ThreadLane, measure_engine
from vision.benchmark.frames import CLIP, Image, convert, load_frames, make_batches, shipped_clip, size_of
from vision.benchmark.pipeline import NonClosingDetector, run_deployment, synthetic_deployment
from vision.benchmark.samples import Durations
from vision.benchmark.stage import Measured, measure_alone, measure_stage
from vision.config import DetectConfig, ModelSpec
from vision.detect.detector import Detector
from vision.detect.open import open_detector
from vision.errors import ConfigError, DeviceMissing, ModelError, redact
from vision.runtime.status import resident_bytes
from vision.types import Frame, PixelFormat

Backend: TypeAlias = Literal["tensorrt", "onnxruntime", "fake"]

_STREAMS: Final = (1, 2)
_MOST_CAMERAS: Final = 32
_OVERLOAD: Final = 1.5  # of the stage's rate: what cameras offer to find the rate of the whole program
_PARTS_OF_MOST: Final = (1.0, 0.5, 0.25, 0.12)  # tried in turn: Python publishes less than a GPU infers
_NEAR: Final = 0.9  # of the stage's rate: no other load will show more
_FEW: Final = 0.01  # dropped: a lower rate publishes less
_HALF: Final = 0.5
_MOST_FPS: Final = 1000.0  # of a synthetic camera
_LEAST_PIPELINE_S: Final = 1.0
_MOST_PIPELINE_S: Final = 60.0  # however slow its cameras are
_LEAST_FRAMES: Final = 4  # of each camera
_FRAMES: Final = 32


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What to measure."""

    backend: str = "auto"
    batches: tuple[int, ...] = (1, 2, 4, 8)
    precisions: tuple[str, ...] = ("fp16",)
    slots: tuple[int, ...] = ()  # from one to the detector's own number where empty
    seconds: float = 2.0
    parts: tuple[Part, ...] = ("engine", "stage", "pipeline")
    source: str = ""  # of the frames; the shipped recording where empty
    pixel_format: PixelFormat = "bgr"
    score: float = 0.35


class ClockSampler:
    """Looks at the clocks once, in a thread of its own, while something else keeps the machine at work."""

    def __init__(self, system: System) -> None:
        self._clocks = Clocks()
        self._thread = threading.Thread(target=self._look, args=(system,), name="clocks")
        self._thread.start()

    def _look(self, system: System) -> None:
        self._clocks = clocks(system)

    def done(self) -> bool:
        """Whether it has looked."""
        return not self._thread.is_alive()

    def result(self) -> Clocks:
        """Return the clocks; wait for them."""
        self._thread.join()
        return self._clocks


class Benchmark:
    """One run of `vision bench`. `say` is told what is being measured."""

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        settings: BenchSettings,
        *,
        say: Callable[[str], None] = lambda _: None,
        system: System | None = None,
    ) -> None:
        self._folder = folder
        self._card = spec
        self._settings = settings
        self._say = say
        self._system = system or ThisSystem()
        self._max_batch = max(DetectConfig().max_batch, *settings.batches)  # so it is the engine of `vision run`
        self._images: list[Image] = []
        self._rows: list[Row] = []
        self._notes: list[str] = []
        self._gpu: Any = None  # vision.benchmark.gpu, where the back-end is TensorRT
        self._cores: list[float] = []

    def run(self) -> Bench:
        """Measure everything.

        Raises:
            VisionError: the model, the back-end or the frames are not there, or nothing of it could be measured.
        """
        settings = self._settings
        source = settings.source or shipped_clip()
        self._images = _frames(source, settings.pixel_format)
        self._cores.append(cores_to_be_had())
        backend = self._backend()
        described = self._measure(backend)
        if not self._rows:
            raise ConfigError("; ".join(("nothing could be measured", *self._notes)))
        self._cores.append(cores_to_be_had())
        height_px, width_px = size_of(self._images[0], settings.pixel_format)
        return Bench(
            model=self._card.name,
            model_sha256=file_sha256(self._folder / self._card.file),
            input=f"{self._card.input.width}x{self._card.input.height}",
            backend=described.name,
            slots=described.slots,
            parallel=described.parallel,
            frame=f"{width_px}x{height_px} {settings.pixel_format}",
            seconds=settings.seconds,
            measured_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            machine=machine(self._system),
            versions=installed_versions(self._system),
            host=HostCosts(min(self._cores)),
            rows=tuple(self._rows),
            notes=tuple(self._notes),
            settings={"score": settings.score, "max_batch": self._max_batch},
            source=redact(settings.source) or CLIP,
        )

    def _backend(self) -> Backend:
        """Which one `auto` means here.

        Raises:
            DeviceMissing: TensorRT was asked for and is not there.
        """
        wanted = self._settings.backend
        if wanted in ("tensorrt", "auto"):
            try:
                from vision.benchmark import gpu

                gpu.require()
            except DeviceMissing as missing:
                if wanted == "tensorrt":
                    raise
                self._note(f"no TensorRT here, so ONNX Runtime is measured: {missing.args[0]}")
                return "onnxruntime"
            self._gpu = gpu
            return "tensorrt"
        return "fake" if wanted == "fake" else "onnxruntime"

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)

    # --- the parts ---

    def _measure(self, backend: Backend) -> _Described:
        """All rows. Returns what the detector said of itself, the last time one was opened."""
        settings = self._settings
        if backend == "tensorrt":
            precisions: Sequence[str] = settings.precisions
        else:
            precisions = ("fp32",)
            self._note(f"{backend} has no choice of precision: everything is measured once")
        described = _Described("", 0, 0)
        for precision in precisions:
            if "engine" in settings.parts:
                self._engines(backend, precision)
            described = self._stages(backend, precision)
        return described

    def _engines(self, backend: Backend, precision: str) -> None:
        if backend == "fake":
            self._note("the fake back-end has no network")
            return
        modes = ("eager", "graph") if backend == "tensorrt" else ("eager",)
        with self._lanes(backend, precision) as make:
            for batch in self._settings.batches:
                for mode in modes:
                    for streams in _STREAMS:
                        case = Case("engine", mode, streams, precision, batch)
                        with self._allowed_to_fail(case):
                            self._engine(case, make)

    @contextmanager
    def _allowed_to_fail(self, case: Case) -> Iterator[None]:
        """Note a model error, such as one fixed batch size, and go on with the other cases."""
        try:
            yield
        except ModelError as error:
            self._note(f"{case}: {error.args[0]}")

    @contextmanager
    def _lanes(self, backend: Backend, precision: str) -> Iterator[Callable[[Case], list[Lane]]]:
        if backend == "tensorrt":
            with self._gpu.opened_engine(self._folder, self._card, self._detect(backend, precision)) as engine:
                yield lambda case: [
                    self._gpu.GpuLane(
                        engine,
                        self._gpu.frame_shapes(engine, self._card, case.batch),
                        graph=case.mode == "graph",
                    )
                    for _ in range(case.lanes)
                ]
        else:
            yield self._cpu_lanes

    def _cpu_lanes(self, case: Case) -> list[Lane]:
        from vision.detect.onnxruntime.network import OnnxNetwork

        cores = machine(self._system).cores
        path = self._folder / self._card.file
        threads = max(1, cores // case.lanes)
        return [ThreadLane(OnnxNetwork(path, self._card, case.batch, threads=threads).run) for _ in range(case.lanes)]

    def _engine(self, case: Case, make: Callable[[Case], list[Lane]]) -> None:
        self._say(str(case))
        with ExitStack() as made:
            lanes = make(case)
            for lane in lanes:
                made.callback(lane.close)
            sampler = ClockSampler(self._system)
            alone: Alone = measure_engine(lanes, self._settings.seconds, warm=sampler.done)
            row = self._row(case, alone.durations, alone.batches_per_s * case.batch, alone.cpu, sampler)
        self._rows.append(replace(row, rate_error=alone.rate_error))

    def _stages(self, backend: Backend, precision: str) -> _Described:
        """Stage and pipeline, since they share a detector. Slots of a GPU are independent, so one detector shows them
        all; on the CPU they share out the cores, so each number of slots has a detector of its own.
        """
        wanted = self._settings.slots
        if backend == "tensorrt":
            with self._opened(backend, precision, max(wanted, default=None)) as detector:
                return self._stage(detector, precision, wanted or _up_to(detector.spec.batches_in_flight), last=True)
        if not wanted:
            with self._opened(backend, precision, None) as detector:
                wanted = _up_to(detector.spec.batches_in_flight)
        described = _Described("", 0, 0)
        for count in wanted:
            with self._opened(backend, precision, count) as detector:
                described = self._stage(detector, precision, (count,), last=count == wanted[-1])
        return described

    @contextmanager
    def _opened(self, backend: Backend, precision: str, slots: int | None) -> Iterator[Detector]:
        detect = self._detect(backend, precision).model_copy(update={"batches_in_flight": slots})
        with closing(open_detector(self._folder, self._card, detect)) as detector:
            yield detector

    def _stage(self, detector: Detector, precision: str, slots: Sequence[int], *, last: bool) -> _Described:
        rates = self._stage_rows(detector, precision, slots)
        if rates and last and "pipeline" in self._settings.parts:
            self._pipelines(detector, precision, rates)
        return _Described(detector.spec.name, detector.spec.batches_in_flight, detector.spec.parallel)

    def _detect(self, backend: Backend, precision: str) -> DetectConfig:
        return DetectConfig.model_validate(
            {
                "backend": backend,
                "precision": precision,
                "max_batch": self._max_batch,
                "score_threshold": self._settings.score,
            }
        )

    def _stage_rows(self, detector: Detector, precision: str, slots: Sequence[int]) -> dict[int, float]:
        """Rows of the stage; frames/s of each batch size with the most slots."""
        rates = {}
        possible = [batch for batch in self._settings.batches if batch <= detector.spec.max_batch]
        if len(possible) < len(self._settings.batches):
            self._note(f"{detector.spec.name}: no batches of more than {detector.spec.max_batch}")
        for batch in possible:
            for count in slots:
                case = Case("stage", "slots", count, precision, batch)
                self._say(str(case))
                batches = make_batches(detector, self._images, count, batch, self._settings.pixel_format)
                sampler = ClockSampler(self._system)
                measured: Measured = measure_stage(detector, batches, self._settings.seconds, warm=sampler.done)
                rates[batch] = measured.frames_per_s
                if "stage" in self._settings.parts:
                    self._rows.append(self._stage_row(case, measured, sampler))
            if "stage" in self._settings.parts:
                self._alone(detector, precision, batch)
        return rates

    def _alone(self, detector: Detector, precision: str, batch: int) -> None:
        """One batch at a time on a detector that could take more: what a site with much room sees."""
        case = Case("stage", "alone", detector.spec.batches_in_flight, precision, batch)
        self._say(str(case))
        frames = make_batches(detector, self._images, 1, batch, self._settings.pixel_format)[0]
        sampler = ClockSampler(self._system)
        measured = measure_alone(detector, frames, self._settings.seconds, warm=sampler.done)
        self._rows.append(self._stage_row(case, measured, sampler))

    def _stage_row(self, case: Case, measured: Measured, sampler: ClockSampler) -> Row:
        row = self._row(case, measured.durations, measured.frames_per_s, measured.cpu, sampler)
        return replace(row, objects_per_frame=measured.objects_per_frame, rate_error=measured.rate_error)

    def _pipelines(self, detector: Detector, precision: str, rates: dict[int, float]) -> None:
        most_per_s = math.inf
        for batch, rate in rates.items():
            cameras = min(_MOST_CAMERAS, batch * detector.spec.batches_in_flight)
            case = Case("pipeline", "full", cameras, precision, batch)
            shown = make_batches(
                detector, self._images, detector.spec.batches_in_flight, batch, self._settings.pixel_format
            )
            offered_per_s = _OVERLOAD * min(rate, most_per_s)
            row = self._full_load(detector, case, shown, offered_per_s, enough_per_s=_NEAR * rate)
            if row.frames_per_s == 0:
                self._note(f"{case}: nothing was published; more --seconds may help")
                continue
            most_per_s = 2 * row.frames_per_s  # larger batches do not double it again
            half = self._pipeline(detector, replace(case, mode="half"), shown, _HALF * row.frames_per_s)
            self._rows += [row, half]

    def _full_load(
        self,
        detector: Detector,
        case: Case,
        shown: Sequence[Sequence[Frame]],
        most_per_s: float,
        enough_per_s: float,
    ) -> Row:
        """Find the camera rate at which most is published. More than that publishes less: their threads take Python's
        time from the others.
        """
        rows: list[Row] = []
        for part in _PARTS_OF_MOST:
            row = self._pipeline(detector, case, shown, part * most_per_s)
            rows.append(row)
            if row.frames_per_s >= enough_per_s or row.dropped_per_s < _FEW * row.offered_per_s:
                break
        return max(rows, key=lambda row: row.frames_per_s)

    def _pipeline(self, detector: Detector, case: Case, shown: Sequence[Sequence[Frame]], offered_per_s: float) -> Row:
        """`shown`: frames of the stage, which the detector gets in place of the cameras' own."""
        self._say(f"{case} at {offered_per_s:.0f} frames/s")
        height_px, width_px = size_of(self._images[0], self._settings.pixel_format)
        fps, seconds = pace(offered_per_s, case.lanes, self._settings.seconds)
        config = synthetic_deployment(case.lanes, fps, width_px, height_px, self._settings.pixel_format)
        sampler = ClockSampler(self._system)
        ran = run_deployment(config, seconds, lambda *_: NonClosingDetector(detector, case.batch, shown))
        gc.collect()  # the buffers of its cameras are held in circles, and are not the next row's memory
        row = self._row(case, ran.latency, ran.published_per_s, ran.cpu, sampler)
        return replace(
            row,
            offered_per_s=ran.grabbed_per_s,
            dropped_per_s=sum(ran.dropped_per_s.values()),
            objects_per_frame=ran.objects_per_frame,
            rate_error=ran.rate_error,
        )

    def _row(self, case: Case, durations: Durations, frames_per_s: float, cpu: CpuUse, sampler: ClockSampler) -> Row:
        device_mib = self._gpu.device_mib() if self._gpu is not None else None
        rss_mib = resident_bytes() / 2**20
        return Row(case, durations, frames_per_s, cpu.own, cpu.others, rss_mib, device_mib, sampler.result())


def pace(offered_per_s: float, cameras: int, seconds: float) -> tuple[float, float]:
    """Frames/s of each camera, and how many seconds to run them: a quarter is warm-up, and slow ones take longer."""
    fps = min(_MOST_FPS, offered_per_s / cameras)
    slow_s = min(_MOST_PIPELINE_S, _LEAST_FRAMES / fps)
    return fps, max(_LEAST_PIPELINE_S, 2 * seconds, slow_s)


def _frames(source: str, pixel_format: PixelFormat) -> list[Image]:
    """Load and convert the frames.

    Raises:
        SourceError: it cannot be opened or read, or has no frame.
        ConfigError: its frames cannot have this format.
    """
    images = load_frames(source, _FRAMES)
    try:
        return [convert(frame, pixel_format) for frame in images]
    except ValueError as error:
        raise ConfigError(f"the frames of {source} cannot be had in this format: {error}") from error


def _up_to(count: int) -> tuple[int, ...]:
    return tuple(range(1, count + 1))


@dataclass(frozen=True, slots=True)
class _Described:
    """What a detector said of itself before it was closed."""

    name: str
    slots: int
    parallel: int


def measure(
    folder: Path, spec: ModelSpec, settings: BenchSettings, say: Callable[[str], None] = lambda _: None
) -> Bench:
    """One run of `vision bench`. Errors as of `Benchmark.run`."""
    return Benchmark(folder, spec, settings, say=say).run()
