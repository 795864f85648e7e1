"""Implementation of `vision sparsify`: prune a model to the 2:4 pattern, compare it with its parent, and install it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from vision.config import checked_model_file
from vision.errors import EXIT_OK, EXIT_RUNTIME, ConfigError
from vision.evaluation.progress import show_progress
from vision.optimize.accuracy import Judge
from vision.optimize.frames import Frames
from vision.optimize.onnx_graph import Graph, open_graph
from vision.optimize.repair import LeastSquares
from vision.optimize.sparsity import Compliance, prune_by_magnitude, sparsify, verify
from vision.optimize.task import Progresses, Task, print_sources, report_of
from vision.state.scratch import scratch_folder

REPAIR_FRAMES: Final = 64
"""Maximum number of frames that the repair of weights uses."""

HINT: Final = "use more frames, or measure on labeled video with --video and --truth; --max-drop allows a larger loss"
"""Hint for the case that a sparse model lost too much accuracy."""


def run(task: Task, stop: threading.Event, console: Console, *, repair: bool) -> None:
    """Prune, measure, and install a model. Print the results. If `repair` is True, also repair the remaining weights.

    Raises:
        Closed: `stop` was set. Nothing was written.
        ConfigError: there are no frames, which the repair and a measurement without labels need, or the model has no
            layers that can be sparse.
        VisionError: an input cannot be used, or the model lost more accuracy than allowed (code ``accuracy-drop``).
    """
    task.require_valid()
    has_frames = task.images is not None or bool(task.cameras)
    if not has_frames and (repair or task.labels is None):
        raise ConfigError(
            "expected frames, to repair the weights and to measure the accuracy: --images DIR or --config CONFIG",
            code="no-images",
        )
    path = checked_model_file(task.folder, task.spec)
    graph = open_graph(path)
    with scratch_folder("vision-sparsify-") as folder:
        frames = task.collect(folder, stop) if has_frames else None
        if frames is not None:
            print_sources(frames, console)
        judge = Judge(path, task.spec, frames, task.labels, Progresses(stop))
        contents = _pruned(graph, task, frames if repair else None, stop, console)
        accuracy = judge.measure_contents(contents, folder, "measuring the sparse model")
    console.print(f"{accuracy.metric}: {accuracy.parent:.4f} dense, {accuracy.value:.4f} sparse", highlight=False)
    method = "least-squares repair" if repair else "magnitude"
    change = f"Pruned to 2:4 sparsity by `vision sparsify` from {task.spec.name}: {method}."
    report = {"method": method, **({} if frames is None else report_of(frames))}
    task.install(contents, accuracy, change, report)
    task.conclude(accuracy, HINT if repair else f"repair the weights with --repair; {HINT}", console)
    text = f"in camera.yaml, write `model: {task.reference}` and `detect: {{engine: {{sparse_weights: true}}}}`"
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _pruned(graph: Graph, task: Task, frames: Frames | None, stop: threading.Event, console: Console) -> bytes:
    """Return the pruned model, repaired if `frames` is not None. Print how well each layer follows the 2:4 pattern.

    Raises:
        ConfigError: the model has no layers that can be sparse.
    """
    prune = prune_by_magnitude if frames is None else LeastSquares(graph, task.spec, frames, REPAIR_FRAMES)
    with show_progress("pruning", len(graph.layers), stop, unit="layers") as step:
        result = sparsify(graph, prune, step)
    layers = verify(result)
    print_compliance(layers, console)
    if all(layer.skipped for layer in layers):
        raise ConfigError(f"{task.spec.name} has no layers that can be sparse", code="no-layers")
    return result.serialized()


def print_verification(path: Path, console: Console) -> int:
    """Print the percentage of groups that follow the 2:4 pattern, for each layer of an ONNX file.

    Return the exit code: 0 if some layers can be sparse, and all their groups follow the pattern, otherwise 1. For the
    errors, see `open_graph`.
    """
    layers = verify(open_graph(path, quantized=True))
    print_compliance(layers, console)
    followed = [layer.compliant == 1 for layer in layers if not layer.skipped]
    return EXIT_OK if followed and all(followed) else EXIT_RUNTIME


def print_compliance(layers: Sequence[Compliance], console: Console) -> None:
    """Print how well each layer follows the 2:4 sparsity pattern, as a table and a summary."""
    table = Table("layer", "operator", "weights", "groups that follow 2:4")
    for layer in layers:
        shape = "x".join(map(str, layer.shape))
        table.add_row(layer.name, layer.operator, shape, layer.skipped or f"{100 * layer.compliant:.1f} %")
    console.print(table)
    eligible = [layer for layer in layers if not layer.skipped]
    complete = sum(layer.compliant == 1 for layer in eligible)
    text = f"{complete} of {len(eligible)} layers that can be sparse follow the pattern completely"
    console.print(f"{text}; {len(layers) - len(eligible)} layers cannot be sparse", highlight=False)
