"""Implementation of `vision calibrate`: calibrate a model, quantize it, compare it with its parent, and install it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from rich.console import Console
from rich.table import Table

from vision.config import checked_model_file
from vision.errors import ConfigError
from vision.evaluation.progress import show_progress
from vision.optimize.accuracy import Accuracy, Judge
from vision.optimize.calibration import Calibration, Route, require_tensorrt
from vision.optimize.frames import Frames
from vision.optimize.modelopt import ModelOpt
from vision.optimize.onnx_graph import Graph, open_graph
from vision.optimize.quantize import quantize
from vision.optimize.sensitivity import LayerError, layers_without, numbers_to_try, plot_trade_off, rank_layers
from vision.optimize.task import Progresses, Task, print_sources, report_of
from vision.optimize.thresholds import Algorithm
from vision.state.scratch import scratch_folder

SHOWN_LAYERS: Final = 12
HINT: Final = (
    "keep the N worst layers in float with --keep N, try other algorithms with --algorithm, or measure on labeled "
    "video with --video and --truth; --max-drop allows a larger loss"
)
"""Hint for the case that an int8 model lost too much accuracy."""


@dataclass(frozen=True, slots=True)
class Int8Options:
    """Options that only `vision calibrate` has."""

    algorithms: Sequence[Algorithm] = ("mse",)
    """Algorithms to try. The result with the highest accuracy is installed."""
    keep: int = 0
    """Number of layers that stay in float. These are the layers with the largest errors."""
    sensitivity: bool = False
    """If True, measure the error of each layer, and the accuracy for several numbers of layers that stay in float."""
    plot: Path | None = None
    """File for a plot of the accuracy against the number of layers to keep. None means no plot."""
    route: Route | Literal["modelopt"] = "onnxruntime"
    """Program that calibrates the model."""
    python: Path = Path(sys.executable)
    """Python interpreter of the environment that contains ModelOpt."""

    def require(self) -> None:
        """Check that the program that calibrates (`route`) is available on this machine, before frames are read.

        Raises:
            ConfigError: ModelOpt or its interpreter is missing, or the route lacks an algorithm.
            ModelError: the installed version of TensorRT has no calibrators.
            DeviceMissing: TensorRT or a GPU is missing.
        """
        if self.route == "modelopt":
            ModelOpt(self.python).require(self.algorithms)
        if self.route == "tensorrt":
            require_tensorrt(self.algorithms)


@dataclass(frozen=True, slots=True)
class Tried:
    """A quantized model, and its accuracy."""

    algorithm: Algorithm
    kept: tuple[str, ...]
    """Names of the layers that are not quantized."""
    contents: bytes
    accuracy: Accuracy


class Quantizer:
    """Quantizer of one model. It tries several algorithms and sets of layers, and measures each result's accuracy."""

    def __init__(
        self, task: Task, graph: Graph, frames: Frames, options: Int8Options, *, folder: Path, stop: threading.Event
    ) -> None:
        """Measure the accuracy of the model before it is quantized.

        Args:
            task: the model to quantize, and its labels, if there are any.
            graph: the ONNX graph to quantize.
            frames: frames for the calibration and the comparison.
            options: the route of the calibration, and its settings.
            folder: temporary folder.
            stop: event that ends the work when another thread sets it.

        Raises:
            Closed: `stop` was set.
            VisionError: the frames or the labels cannot be used.
        """
        self._spec = task.spec
        self._temporary = folder
        self._stop = stop
        self._progress = Progresses(stop)
        self.graph = graph
        self._frames = frames
        self._modelopt = ModelOpt(options.python) if options.route == "modelopt" else None
        # With ModelOpt, the thresholds of ONNX Runtime serve to rank the layers.
        route: Route = "tensorrt" if options.route == "tensorrt" else "onnxruntime"
        self._calibration = Calibration(graph, task.spec, frames, route=route)
        self._judge = Judge(task.folder / task.spec.file, task.spec, frames, task.labels, self._progress)

    def thresholds(self, algorithm: Algorithm) -> Mapping[str, float]:
        """Show progress, and return the threshold of each tensor by name. For errors, see `Calibration.thresholds`."""
        with self._progress("calibrating", len(self._frames.paths)) as step:
            return self._calibration.thresholds(algorithm, step)

    def ranking(self, algorithm: Algorithm) -> list[LayerError]:
        """Return the layers in descending order of the error that each causes if it alone computes in int8."""
        thresholds = self.thresholds(algorithm)
        layers = len(self.graph.layers)
        with show_progress("measuring each layer", layers, self._stop, unit="layers") as step:
            return rank_layers(self.graph, self._spec, thresholds, self._frames, step)

    def attempt(self, algorithm: Algorithm, ranking: Sequence[LayerError] = (), keep: int = 0) -> Tried:
        """Quantize the model, except the first `keep` layers of the ranking, and measure the accuracy of the result."""
        kept = tuple(each.name for each in ranking[:keep])
        if self._modelopt is None:
            chosen = layers_without(self.graph, ranking, keep)
            contents = quantize(self.graph, self.thresholds(algorithm), chosen).serialized()
        else:
            with show_progress("running ModelOpt", None, self._stop):
                contents = self._modelopt.quantize(
                    self.graph,
                    self._spec,
                    self._frames,
                    algorithm=algorithm,
                    kept=kept,
                    folder=self._temporary,
                    stop=self._stop,
                )
        accuracy = self._judge.measure_contents(contents, self._temporary, f"measuring {algorithm}, {keep} layers kept")
        return Tried(algorithm, kept, contents, accuracy)


def _check_keep(keep: int, graph: Graph) -> None:
    if keep >= len(graph.layers):
        raise ConfigError(
            f"--keep: expected fewer than {len(graph.layers)} layers, all that the model has, got {keep}",
            code="invalid-value",
        )


def run(task: Task, options: Int8Options, stop: threading.Event, console: Console) -> None:
    """Calibrate, quantize, measure, and install a model. Print the results.

    Raises:
        Closed: `stop` was set. No model was written.
        VisionError: an input cannot be used, or the model lost more accuracy than allowed (code ``accuracy-drop``).
    """
    task.require_valid()
    options.require()
    graph = open_graph(checked_model_file(task.folder, task.spec))
    _check_keep(options.keep, graph)
    with scratch_folder("vision-calibrate-") as folder:
        frames = task.collect(folder, stop)
        print_sources(frames, console)
        quantizer = Quantizer(task, graph, frames, options, folder=folder, stop=stop)
        best, points = _best(quantizer, options, console)
    layers = len(graph.layers)
    change = (
        f"Quantized to int8 by `vision calibrate` from {task.spec.name}: {best.algorithm}, {len(frames.paths)} frames, "
        f"{layers - len(best.kept)} of {layers} layers."
    )
    report = {
        "algorithm": best.algorithm,
        "with": options.route,
        "kept": best.kept,
        "layers": layers,
        **report_of(frames),
    }
    task.install(best.contents, best.accuracy, change, report)
    try:
        if points and options.plot is not None:
            plot_trade_off(points, layers, options.plot)
    finally:  # the result counts more than its plot
        task.conclude(best.accuracy, HINT, console)
        text = f"in camera.yaml, write `model: {task.reference}` and `detect: {{precision: int8}}`"
        console.print(text, soft_wrap=True, highlight=False, markup=False)


def _best(quantizer: Quantizer, options: Int8Options, console: Console) -> tuple[Tried, Sequence[tuple[int, Accuracy]]]:
    """Try all algorithms, and print the results. Return the most accurate result, and a trade-off.

    The trade-off lists the accuracy for several numbers of layers to keep in float, with the algorithm of the returned
    result. If `options.sensitivity` is True, the trade-off is also printed. Otherwise, the trade-off is empty.
    """
    points: list[tuple[int, Accuracy]] = []
    tried: list[Tried] = []
    rankings: dict[Algorithm, list[LayerError]] = {}
    for algorithm in options.algorithms:
        rankings[algorithm] = quantizer.ranking(algorithm) if options.keep or options.sensitivity else []
        tried.append(quantizer.attempt(algorithm, rankings[algorithm], options.keep))
    best = min(tried, key=lambda each: each.accuracy.drop)
    _print_tried(tried, console)
    if options.sensitivity:
        ranking = rankings[best.algorithm]
        _print_ranking(ranking, console)
        numbers = numbers_to_try(len(ranking))
        points = [(number, quantizer.attempt(best.algorithm, ranking, number).accuracy) for number in numbers]
        _print_trade_off(points, console)
    return best, points


# ------------------------------------------------------------------------------------------------ output


def _print_tried(tried: Sequence[Tried], console: Console) -> None:
    table = Table("algorithm", "layers kept", tried[0].accuracy.metric, "drop")
    table.add_row("float32", "all", f"{tried[0].accuracy.parent:.4f}", "")
    for each in tried:
        accuracy = each.accuracy
        table.add_row(each.algorithm, str(len(each.kept)), f"{accuracy.value:.4f}", f"{accuracy.drop:+.4f}")
    console.print(table)


def _print_ranking(ranking: Sequence[LayerError], console: Console) -> None:
    table = Table("layer", "operator", "error of the outputs, %")
    for each in ranking[:SHOWN_LAYERS]:
        table.add_row(each.name, each.operator, f"{100 * each.error:.2f}")
    console.print(table)


def _print_trade_off(points: Sequence[tuple[int, Accuracy]], console: Console) -> None:
    table = Table("worst layers kept", points[0][1].metric, "drop")
    for number, accuracy in points:
        table.add_row(str(number), f"{accuracy.value:.4f}", f"{accuracy.drop:+.4f}")
    console.print(table)
