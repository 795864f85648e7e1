"""The command `vision sparsify`, which prunes a model to 2:4 sparsity, or checks the sparsity of a model."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from vision.cli.optimize_options import (
    Force,
    FrameCount,
    FramesConfig,
    Images,
    LabelClass,
    LabeledVideo,
    LabelFile,
    MaxDrop,
    Output,
    SampleTime,
    check_pair,
    make_task,
    require_optimize,
)
from vision.cli.options import ModelName, table_console
from vision.cli.session import command
from vision.config.model_file import ONNX_SUFFIX, read_model_header, refuse_other_format
from vision.config.paths import is_dir
from vision.errors import EXIT_OK, Closed
from vision.runtime.builder import find_model

_Repair = Annotated[
    bool,
    typer.Option("--repair", help="Change the remaining weights so that the outputs change as little as possible."),
]
_Verify = Annotated[
    bool, typer.Option("--verify", help="Only show which layers of MODEL, or of an ONNX file, follow the pattern.")
]


@command(orderly=True)
def sparsify(
    context: typer.Context,
    model: ModelName = None,
    images: Images = None,
    config: FramesConfig = None,
    output: Output = None,
    repair: _Repair = False,
    verify: _Verify = False,
    frames: FrameCount = 100,
    seconds: SampleTime = 60.0,
    max_drop: MaxDrop = 0.01,
    video: LabeledVideo = None,
    truth: LabelFile = None,
    class_name: LabelClass = "person",
    force: Force = False,
) -> int:
    """Prune a model to 2:4 sparsity, or check the sparsity of a model.

    Two of every four weights along the input channels become zero, for the sparse tensor cores of NVIDIA GPUs. The
    result is a model folder for `vision run`, by default NAME-sparse. If the accuracy drops by more than --max-drop,
    the folder is called NAME-sparse.rejected instead.

    Examples:
      vision sparsify nanodet-g-416 --images frames --repair
      vision sparsify model.onnx --verify
    """
    if images is not None and config is not None:
        context.fail("expected only one of --images and --config")
    check_pair(context, video, truth)
    if verify:
        return _verify(context, model)
    task = make_task(context, model, config, "-sparse", (video, truth))
    from vision.optimize.sparse import run

    try:
        run(task, context.obj.stop, table_console(), repair=repair)
    except Closed:  # nothing was written
        return 128 + signal.SIGINT
    return EXIT_OK


def _verify(context: typer.Context, model: str | None) -> int:
    """Print the sparsity of a model, or of an ONNX file without a model.yaml. Return the exit code."""
    if model is None:
        context.fail("--verify requires MODEL")
    require_optimize(context)
    from vision.optimize.sparse import print_verification

    path = Path(model)
    if not is_dir(path):
        refuse_other_format(path)
    if path.suffix.lower() != ONNX_SUFFIX:
        folder, spec = find_model(model)
        path = folder / spec.file
    read_model_header(path)
    return print_verification(path, table_console())
