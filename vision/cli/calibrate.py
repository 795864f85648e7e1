"""The command `vision calibrate`, which quantizes a model to int8 with frames from the site's own cameras."""

from __future__ import annotations

import signal
from typing import Annotated, Final

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
)
from vision.cli.options import ModelName, PlotFile, Values, table_console, values_parser
from vision.cli.session import command
from vision.errors import EXIT_OK, Closed

ALGORITHMS: Final = ("minmax", "entropy", "percentile", "mse")

_Algorithms = Annotated[
    Values,
    typer.Option(
        "--algorithm",
        parser=values_parser(ALGORITHMS, f"some of {', '.join(ALGORITHMS)}"),
        metavar="A,A",
        help=f"Algorithms to try, some of {', '.join(ALGORITHMS)}. The most accurate result is kept.",
    ),
]
_Keep = Annotated[
    int, typer.Option(min=0, metavar="N", help="Number of layers to leave in float: those with the largest errors.")
]
_Sensitivity = Annotated[
    bool, typer.Option("--sensitivity", help="Measure each layer alone in int8, and the effect of --keep.")
]


@command(orderly=True)
def calibrate(
    context: typer.Context,
    model: ModelName = None,
    images: Images = None,
    config: FramesConfig = None,
    output: Output = None,
    algorithm: _Algorithms = Values(("mse",)),  # noqa: B008 - immutable
    frames: FrameCount = 300,
    seconds: SampleTime = 60.0,
    max_drop: MaxDrop = 0.01,
    keep: _Keep = 0,
    sensitivity: _Sensitivity = False,
    plot: PlotFile = None,
    video: LabeledVideo = None,
    truth: LabelFile = None,
    class_name: LabelClass = "person",
    force: Force = False,
) -> int:
    """Quantize a model to int8, with frames from your own cameras.

    The result is a model folder for `vision run`, by default NAME-int8. It is written only if the accuracy drops by at
    most --max-drop. Without --video and --truth, the boxes are compared with those of the float32 model.

    Examples:
      vision calibrate --config camera.yaml --for 10m
      vision calibrate nanodet-g-416 --images frames --algorithm minmax,entropy,percentile,mse
      vision calibrate nanodet-g-416 --images frames --sensitivity --plot trade-off.svg
    """
    if (images is None) == (config is None):
        context.fail("expected either --images or --config")
    check_pair(context, video, truth)
    if plot is not None and not sensitivity:
        context.fail("--plot requires --sensitivity")
    task = make_task(context, model, config, "-int8", (video, truth))
    from vision.optimize.int8 import Int8Options, run

    try:
        run(task, Int8Options(tuple(algorithm), keep, sensitivity, plot), context.obj.stop, table_console())
    except Closed:  # nothing was written
        return 128 + signal.SIGINT
    return EXIT_OK
