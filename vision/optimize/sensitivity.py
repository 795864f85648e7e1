"""The error that each layer alone causes in int8, and the trade-off between int8 layers and accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vision.config import ModelSpec
from vision.evaluation.figure_file import write_figure
from vision.evaluation.passes import Progress
from vision.optimize.accuracy import Accuracy
from vision.optimize.calibration import run
from vision.optimize.feed import Feed
from vision.optimize.frames import Frames
from vision.optimize.onnx_graph import Graph, open_session
from vision.optimize.quantize import quantize
from vision.version import install_hint, require_package

FRAMES: Final = 16
"""Maximum number of frames on which each layer is measured."""


@dataclass(frozen=True, slots=True)
class LayerError:
    """Error that one layer causes if it alone computes int8."""

    name: str
    operator: str
    error: float
    """Root mean square of the change of the network's outputs, divided by the root mean square of the outputs."""


def rank_layers(
    graph: Graph, spec: ModelSpec, thresholds: Mapping[str, float], frames: Frames, progress: Progress
) -> list[LayerError]:
    """Measure the error of each layer alone in int8. Return the layers in order of descending error.

    `thresholds` are the calibrated thresholds by tensor. `progress` receives the number of measured layers.
    """
    reference = _outputs(graph, spec, frames)
    errors = []
    for done, layer in enumerate(graph.layers, start=1):
        outputs = _outputs(quantize(graph, thresholds, {layer.name}), spec, frames)
        errors.append(LayerError(layer.name, layer.operator, relative_error(reference, outputs)))
        progress(done)
    return sorted(errors, key=lambda each: -each.error)


def _outputs(graph: Graph, spec: ModelSpec, frames: Frames) -> list[NDArray[Any]]:
    """Return each output of the network `graph`, for up to `FRAMES` of the calibration frames, as a flat array."""
    session = open_session(graph.serialized())
    batches = [run(session, inputs, spec.name) for inputs, _ in Feed(session, spec).batches(frames.images(FRAMES))]
    return [np.concatenate([each.reshape(-1) for each in of_output]) for of_output in zip(*batches, strict=True)]


def relative_error(reference: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> float:
    """Return the error of `outputs` compared with `reference`, averaged over all floating-point outputs.

    The error is the root mean square of the difference, relative to that of the reference.
    """
    errors = []
    for expected, found in zip(reference, outputs, strict=True):
        if np.issubdtype(expected.dtype, np.floating):
            power = float(np.square(expected, dtype=np.float64).sum())
            noise = float(np.square(expected.astype(np.float64) - found).sum())
            errors.append((noise / power) ** 0.5 if power > 0 else float(noise > 0))
    return float(np.mean(errors)) if errors else 0.0


def layers_without(graph: Graph, ranking: Sequence[LayerError], keep: int) -> frozenset[str]:
    """Return the names of all layers except the `keep` layers with the largest errors."""
    kept = {each.name for each in ranking[:keep]}
    return frozenset(layer.name for layer in graph.layers if layer.name not in kept)


def numbers_to_try(layers: int) -> list[int]:
    """Return the numbers of layers to keep in float for the trade-off: 0, 1, 2, 4, and so on, up to half of them."""
    numbers = [0, 1]
    while numbers[-1] * 2 <= layers // 2:
        numbers.append(numbers[-1] * 2)
    return [number for number in numbers if number < layers]


def plot_trade_off(points: Sequence[tuple[int, Accuracy]], layers: int, path: Path) -> None:
    """Plot the accuracy against the number of layers that are kept in float. Write the plot to the file `path`.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
        Unavailable: the file cannot be written at present, for example because the disk is full.
    """
    module = require_package("matplotlib.figure", "--plot needs matplotlib", install_hint("eval"))
    figure = module.Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    numbers = [number for number, _ in points]
    parent = points[0][1].parent
    axes.plot(numbers, [each.value for _, each in points], "o-", color="#2f7ebc", label="int8, worst layers kept")
    axes.axhline(parent, color="#8a8f98", linewidth=1.2, label="float32")
    axes.set(xlabel=f"layers kept in float, of {layers}", ylabel=points[0][1].metric)
    axes.set_xticks(numbers)
    axes.grid(color="#e6e8ec")
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    write_figure(figure, path, "--plot")
