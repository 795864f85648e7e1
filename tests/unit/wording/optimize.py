"""Expected texts of the commands that optimize models."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from tests.unit.optimize.models import graph_of, model, node, random, save_cells
from vision.errors import ConfigError
from vision.optimize.model_folder import require_free
from vision.optimize.sparsity import eligible_layers


def _existing() -> str:
    with TemporaryDirectory() as folder:
        output = save_cells(Path(folder) / "out")
        try:
            require_free(output, force=False)
        except ConfigError as error:
            return str(error).replace(folder, "")
    return "no error"


def _skipped(shape: tuple[int, ...], group: int) -> str:
    made = model(
        [node("Conv", ["images", "first"], "a"), node("Conv", ["a", "w"], "output", group=group)],
        {"first": random(6, 3, 1, 1), "w": random(*shape)},
    )
    with TemporaryDirectory() as folder:
        return "; ".join(eligible_layers(graph_of(made, Path(folder))).values())


ROWS = [
    (
        "a folder that contains a model",
        _existing,
        "/out already contains a model\n  hint: replace it with --force, or choose a different --output",
    ),
    (
        "a depthwise layer that cannot be sparse",
        lambda: _skipped((6, 1, 1, 1), 6),
        "first layer: it reads the frame; depthwise: each output has one input channel",
    ),
    (
        "input channels that cannot be sparse",
        lambda: _skipped((4, 6, 1, 1), 1),
        "first layer: it reads the frame; 6 input channels are not a multiple of 4",
    ),
]
