"""Measurements of `vision bench MODEL --precisions`: speed, size, memory, and accuracy of a network.

The program creates the int8 model and the sparse model for the measurement. It uses the same frames or random inputs to
calibrate these models and to compare the outputs. Without a GPU, ONNX Runtime runs the float32 model and the int8
models.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

from vision.benchmark.bench import load_gpu
from vision.benchmark.conditions import machine, versions
from vision.benchmark.frames import load_frames, shipped_clip
from vision.benchmark.loops import Durations, ThreadLane, measure_engine
from vision.config import ModelSpec
from vision.errors import ConfigError, DeviceError, ModelError
from vision.optimize.calibration import collect
from vision.optimize.onnx_graph import Graph, open_graph, open_session
from vision.optimize.quantize import quantize, quantized_inputs
from vision.optimize.samples import (
    Difference,
    Outputs,
    Samples,
    Shapes,
    compare,
    frame_samples,
    random_samples,
    run_samples,
    with_fixed_shapes,
)
from vision.optimize.sparsity import eligible_layers, sparsify
from vision.optimize.thresholds import thresholds
from vision.runtime.status import resident_bytes

SCHEMA: Final = "vision.precisions/1"

_FRAMES: Final = 32  # number of frames that calibrate the models and compare the outputs
_ON_CPU: Final = ("fp32", "int8", "int8-sparse")


@dataclass(frozen=True, slots=True)
class PrecisionSettings:
    """Options of `vision bench --precisions`."""

    precisions: tuple[str, ...]
    batches: tuple[int, ...] = (1,)
    seconds: float = 2.0
    """Duration of each measurement."""
    backend: str = "auto"
    source: str = ""
    """Source of the frames; empty means the shipped clip."""
    shapes: Shapes | None = None
    """Shapes of inputs that are not fixed in the file."""


@dataclass(frozen=True, slots=True)
class PrecisionRow:
    """Results of one precision and batch size, or the reason why there are no results."""

    precision: str
    batch: int
    reason: str = ""
    """Reason why the precision was not measured; otherwise empty."""
    durations: Durations | None = None
    """Times of a batch; on a GPU, with a CUDA graph."""
    without_graph: Durations | None = None
    """Times of a batch on a GPU without a CUDA graph. None on the CPU."""
    rows_per_s: float = 0.0
    """Throughput in rows of the batch, such as frames."""
    size_bytes: int = 0
    """Size of the engine, or of the model for ONNX Runtime."""
    memory_mib: float = 0.0
    """GPU memory that the network added, or memory of the process for ONNX Runtime."""
    difference: Difference | None = None
    """Difference of the outputs from those of the float32 model in ONNX Runtime."""


@dataclass(frozen=True, slots=True)
class PrecisionReport:
    """Results of one comparison of the precisions of a model."""

    model: str
    backend: str
    inputs: str
    """Origin of the inputs."""
    rows: tuple[PrecisionRow, ...]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the report as JSON."""
        document = {
            "schema": SCHEMA,
            "measured_at": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "machine": machine(),
            "versions": versions(),
            **asdict(self),
        }
        return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


@dataclass(frozen=True, slots=True)
class Network:
    """Network in one precision, opened and ready to run, with its size, its memory, and its outputs for the samples."""

    size_bytes: int
    """Size of the engine, or of the model for ONNX Runtime."""
    memory_mib: float
    """Memory that the network added."""
    outputs: list[Outputs]
    """Outputs for each batch of the samples."""
    lane: Any
    """`Lane` that runs the network on the first batch."""
    without_graph: Any
    """The same lane without a CUDA graph. None on the CPU."""
    close: Callable[[], None]
    """Function that frees all resources."""


Open = Callable[[Graph, str, Samples], Network]
"""Function that opens a model in a precision. It raises `VisionError` with the reason if this is not possible."""


def measure_precisions(
    path: Path, spec: ModelSpec | None, settings: PrecisionSettings, say: Callable[[str], None] = lambda _: None
) -> PrecisionReport:
    """Measure a network in all precisions and batch sizes of `settings`. Return the report.

    Args:
        path: the ONNX file.
        spec: specification of a detection model, or None for any other network, which receives random inputs.
        settings: the options.
        say: function that receives a description of each step.

    Raises:
        VisionError: the model, the back-end, or the frames cannot be used.
    """
    gpu, note = load_gpu(settings.backend)
    notes = [note] if note else []
    graph = open_graph(path)
    rows: list[PrecisionRow] = []
    origin = ""
    for batch in settings.batches:
        samples = _samples(graph, spec, settings, batch)
        origin = samples.origin
        fixed = with_fixed_shapes(graph, samples.shapes)
        reference = run_samples(open_session(fixed.serialized()), samples)
        if gpu is None:
            opening: Open = open_on_cpu
        else:
            from vision.benchmark.fixed_engine import open_on_gpu as opening
        for precision in settings.precisions:
            say(f"{precision}, batch {batch}")
            rows.append(_measured(fixed, precision, samples, reference, opening=opening, seconds=settings.seconds))
    if "int8-sparse" in settings.precisions:
        notes.append("int8-sparse is pruned by magnitude, without repair, so its speed is right, but not its accuracy")
    backend = "onnxruntime" if gpu is None else gpu.library_name()
    return PrecisionReport(path.stem, backend, origin, tuple(rows), tuple(notes))


def _samples(graph: Graph, spec: ModelSpec | None, settings: PrecisionSettings, batch: int) -> Samples:
    if spec is None:
        return random_samples(graph, batch, settings.shapes or {})
    return frame_samples(graph, spec, load_frames(settings.source or shipped_clip(), _FRAMES), batch)


def _measured(
    graph: Graph, precision: str, samples: Samples, reference: Sequence[Outputs], *, opening: Open, seconds: float
) -> PrecisionRow:
    """Measure the network with one precision for `seconds` seconds. Return the row.

    The row includes a comparison of the outputs with the outputs `reference`.

    If the network cannot be opened with this precision, return a row that states only the reason.
    """
    batch = next(iter(samples.shapes.values()))[0]
    try:
        network = opening(_variant(graph, precision, samples), precision, samples)
    except (ConfigError, ModelError, DeviceError) as error:
        return PrecisionRow(precision, batch, reason=str(error.args[0]))
    with closing(network):
        measured = measure_engine([network.lane], seconds, batch_size=batch)
        without_graph = None
        if network.without_graph is not None:
            without_graph = measure_engine([network.without_graph], seconds, batch_size=batch).durations
    difference = compare(samples, reference, network.outputs)
    return PrecisionRow(
        precision,
        batch,
        "",
        measured.durations,
        without_graph,
        measured.frames_per_s,
        network.size_bytes,
        network.memory_mib,
        difference,
    )


def _variant(graph: Graph, precision: str, samples: Samples) -> Graph:
    """Return the model to run in a precision: quantized, sparse, or unchanged.

    Raises:
        ModelError: the model cannot be quantized, or has no layer that can be sparse.
    """
    if precision not in ("int8", "int8-sparse"):
        return graph
    if precision == "int8-sparse":
        if all(eligible_layers(graph).values()):
            raise ModelError("no layer of the model can be sparse", code="no-layers")
        graph = sparsify(graph)
    names = quantized_inputs(graph)
    session = open_session(graph.with_outputs(list(names)))
    histograms = collect(session, names, ((each, 1) for each in samples.batches), "the model", lambda _: None)
    return quantize(graph, thresholds(histograms, "mse"))


def open_on_cpu(graph: Graph, precision: str, samples: Samples) -> Network:
    """Open a model with ONNX Runtime on all cores. Raise `ConfigError` if `precision` is not in `_ON_CPU`."""
    if precision not in _ON_CPU:
        raise ConfigError(f"ONNX Runtime on the CPU has no {precision} kernels for these layers; this needs a GPU")
    contents = graph.serialized()
    before = resident_bytes()
    session = open_session(contents, threads=len(os.sched_getaffinity(0)))
    outputs = run_samples(session, samples)
    added = max(0, resident_bytes() - before) / 2**20
    lane = ThreadLane(partial(session.run, None, dict(samples.batches[0])))
    return Network(len(contents), added, outputs, lane, None, lane.close)


def print_precisions(report: PrecisionReport, console: Console) -> None:
    """Print a table of all rows, the reasons for missing rows, and the notes."""
    columns = (
        "precision",
        "batch",
        "mean ms",
        "p50",
        "p95",
        "p99",
        "no graph",
        "rows/s",
        "MiB",
        "memory MiB",
        "error %",
        "same %",
    )
    table = Table(*columns, title=f"{report.model}, {report.backend}, {report.inputs}")
    for row in report.rows:
        if row.durations is None or row.difference is None:
            table.add_row(row.precision, str(row.batch), *["-"] * (len(columns) - 2))
            continue
        times = row.durations
        ms = [f"{value:.2f}" for value in (times.mean_ms, times.p50_ms, times.p95_ms, times.p99_ms)]
        same = row.difference.agreement
        table.add_row(
            row.precision,
            str(row.batch),
            *ms,
            "" if row.without_graph is None else f"{row.without_graph.mean_ms:.2f}",
            f"{row.rows_per_s:.0f}",
            f"{row.size_bytes / 2**20:.1f}",
            f"{row.memory_mib:.0f}",
            "-" if row.difference.error is None else f"{100 * row.difference.error:.3f}",
            "" if same is None else f"{100 * same:.1f}",
        )
    console.print(table)
    missing = {f"{row.precision}, batch {row.batch}: {row.reason}" for row in report.rows if row.reason}
    for row in report.rows:
        if row.difference is not None and row.difference.error is None:
            missing.add(f"{row.precision}, batch {row.batch}: the outputs contain NaN or infinite values")
    for text in (*sorted(missing), *report.notes):
        console.print(text, soft_wrap=True, highlight=False, markup=False)
    legend = "error: difference of the outputs from float32; same: objects, or best classes, that agree with float32"
    if any(row.without_graph is not None for row in report.rows):
        legend += "; no graph: mean ms without a CUDA graph, and the other times are with one"
    console.print(legend, soft_wrap=True, highlight=False)
