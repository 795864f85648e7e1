# mypy: allow-subclassing-any
"""Measurement of the time of each layer of an engine, and descriptions of the layers.

By default, a context with a profiler runs synchronously, unlike the detector. Therefore, the setting
``enqueue_emits_profile`` is turned off, and the times are fetched after each run.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vision.engine.library import trt
from vision.engine.runtime import Context
from vision.errors import DeviceError, ModelError

# ------------------------------------------------------------------------------------------------ times


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Statistics of the times of one layer in all runs, in milliseconds."""

    name: str
    mean_ms: float
    median_ms: float
    min_ms: float
    max_ms: float
    share: float  # fraction of the sum of the mean times of all layers


class LayerTimes:
    """Times that a profiler reported, by run and layer."""

    def __init__(self) -> None:
        self._runs: list[dict[str, float]] = []

    def begin_run(self) -> None:
        """Start a new run, to which `add` adds times."""
        self._runs.append({})

    def add(self, layer: str, ms: float) -> None:
        """Add the time of a layer in ms to the current run. Times of layers with the same name are summed."""
        run = self._runs[-1]
        run[layer] = run.get(layer, 0.0) + ms

    @property
    def runs(self) -> int:
        """Number of runs for which times were reported."""
        return sum(1 for run in self._runs if run)

    def total_ms(self) -> float:
        """Return the total time of all layers in ms, averaged over the runs, or 0 if there are no runs."""
        totals = [sum(run.values()) for run in self._runs if run]
        return statistics.fmean(totals) if totals else 0.0

    def layers(self) -> tuple[LayerTime, ...]:
        """Return statistics for each layer, in the order of execution."""
        names = dict.fromkeys(name for run in self._runs for name in run)
        times = {name: [run[name] for run in self._runs if name in run] for name in names}
        whole = sum(statistics.fmean(layer_ms) for layer_ms in times.values())
        return tuple(
            LayerTime(
                name=name,
                mean_ms=statistics.fmean(layer_ms),
                median_ms=statistics.median(layer_ms),
                min_ms=min(layer_ms),
                max_ms=max(layer_ms),
                share=statistics.fmean(layer_ms) / whole if whole else 0.0,
            )
            for name, layer_ms in times.items()
        )


def make_profiler(times: LayerTimes) -> trt.IProfiler:
    """Return a TensorRT profiler that adds each reported layer time to `times`."""

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.add(layer_name, ms)

    return Profiler()


def profile_layers(
    context: Context,
    launch: Callable[[], object],
    synchronize: Callable[[], object],
    *,
    runs: int = 50,
    warm_up: int = 5,
) -> LayerTimes:
    """Measure and return the time of each layer in `runs` runs, after `warm_up` unmeasured runs.

    Afterward, the context must not be used for other work, because it keeps the profiler.

    Args:
        launch: function that enqueues the network once, or launches a graph that was captured with the profiler of this
            context.
        synchronize: function that waits until the run has ended.

    Raises:
        DeviceError: TensorRT reports no times.
    """
    times = LayerTimes()
    profiler = make_profiler(times)
    context.keep("profiler", profiler)  # TensorRT does not keep the profiler alive
    context.raw.profiler = profiler
    context.raw.enqueue_emits_profile = False
    for _ in range(warm_up):
        launch()
        synchronize()
    for _ in range(runs):
        times.begin_run()
        launch()
        synchronize()
        if not context.raw.report_to_profiler():
            raise DeviceError("TensorRT reported no layer times for the last run")
    return times


# ------------------------------------------------------------------------------------------------ layers


@dataclass(frozen=True, slots=True)
class LayerTensor:
    """Input or output of a layer."""

    name: str
    dimensions: tuple[int, ...]
    dtype: str  # text of the inspector, such as "Half" or "Row major linear FP16 format"


@dataclass(frozen=True, slots=True)
class Layer:
    """Layer of an engine. It can contain many nodes of the ONNX file."""

    name: str
    kind: str
    inputs: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...]
    tactic: str
    onnx_nodes: tuple[str, ...]
    profile: int  # index of the optimization profile to which the layer belongs

    @property
    def dtypes(self) -> str:
        """Types of the outputs as text, without duplicates."""
        return ", ".join(dict.fromkeys(tensor.dtype for tensor in self.outputs if tensor.dtype))


_PROFILE_SUFFIX = re.compile(r"\s*\[profile (\d+)\]$", re.IGNORECASE)
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


def parse_layers(information: str) -> tuple[Layer, ...]:
    """Return the layers in a JSON text of TensorRT's engine inspector. Raise `ModelError` if no layers are listed."""
    try:
        return tuple(_layer(layer) for layer in json.loads(information)["Layers"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the engine has no description of its layers: {error}",
            hint="`vision build MODEL --force` builds it again",
            code="no-layers",
        ) from error


def _layer(described: Any) -> Layer:
    if isinstance(described, str):  # the engine was built without detailed verbosity
        return _layer({"Name": described})
    name, profile = _split_profile(str(described.get("Name", "")))
    return Layer(
        name=name,
        kind=str(described.get("LayerType", "")),
        inputs=tuple(map(_tensor, described.get("Inputs", ()))),
        outputs=tuple(map(_tensor, described.get("Outputs", ()))),
        tactic=str(described.get("TacticName", described.get("TacticValue", ""))),
        onnx_nodes=tuple(_ONNX_NODE.findall(str(described.get("Metadata", "")))),
        profile=profile,
    )


def _split_profile(name: str) -> tuple[str, int]:
    match = _PROFILE_SUFFIX.search(name)
    return (name[: match.start()], int(match[1])) if match else (name, 0)


def _tensor(described: Any) -> LayerTensor:
    if isinstance(described, str):
        return LayerTensor(described, (), "")
    dimensions = described.get("Dimensions", ())
    dtype = described.get("DataType", described.get("Datatype", described.get("Format/Datatype", "")))
    return LayerTensor(
        name=str(described.get("Name", "")),
        dimensions=tuple(int(size) for size in dimensions) if isinstance(dimensions, list) else (),
        dtype=str(dtype),
    )


# ------------------------------------------------------------------------------------------------ report


@dataclass(frozen=True, slots=True)
class Profile:
    """Layers of an engine, and their times for one input shape."""

    label: str  # text that names the engine
    shape: str  # input shape as text
    runs: int  # number of measured runs
    total_ms: float  # time of all layers, averaged over the runs
    times: tuple[LayerTime, ...]
    layers: tuple[Layer, ...]

    def layer_of(self, name: str) -> Layer | None:
        """Return the description of the layer called `name`, or None if there is none.

        TensorRT can append the number of a profile to the name of a layer. This number is ignored.
        """
        plain = _split_profile(name)[0]
        return next((layer for layer in self.layers if layer.name == plain), None)

    def table(self, most: int | None = None) -> str:
        """Return a table of the `most` slowest layers as text, the slowest first. None means all layers."""
        ordered = sorted(self.times, key=lambda time: -time.mean_ms)
        rows = [("ms", "%", "max ms", "kind", "type", "layer")]
        rows += [self._row(time) for time in (ordered if most is None else ordered[:most])]
        rows.append((f"{self.total_ms:.4f}", "100.0", "", "", "", f"all {len(self.times)} layers, {self.runs} runs"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        layout = "  ".join(f"{{:{'>' if column < 3 else '<'}{width}}}" for column, width in enumerate(widths))
        return "\n".join(layout.format(*row).rstrip() for row in rows)

    def _row(self, time: LayerTime) -> tuple[str, str, str, str, str, str]:
        layer = self.layer_of(time.name)
        kind, dtypes = (layer.kind, layer.dtypes) if layer else ("", "")
        return (f"{time.mean_ms:.4f}", f"{time.share * 100:.1f}", f"{time.max_ms:.4f}", kind, dtypes[:24], time.name)
