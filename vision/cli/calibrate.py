"""The command `vision calibrate`, which quantizes a model to int8 with frames from the site's own cameras."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Final, Literal

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
from vision.cli.options import ModelName, Values, argument_parser, check_plot, table_console, values_parser
from vision.cli.session import command
from vision.errors import EXIT_OK, Closed

ALGORITHMS: Final = ("minmax", "entropy", "percentile", "mse")

_Algorithms = Annotated[
    Values | None,
    typer.Option(
        "--algorithm",
        parser=values_parser(ALGORITHMS, f"some of {', '.join(ALGORITHMS)}"),
        metavar="A,A",
        help=f"Algorithms to try, some of {', '.join(ALGORITHMS)}. The most accurate result is kept. The default is "
        "mse, or entropy with --with tensorrt and modelopt.",
    ),
]
_Keep = Annotated[
    int, typer.Option(min=0, metavar="N", help="Number of layers to leave in float: those with the largest errors.")
]
_Sensitivity = Annotated[
    bool, typer.Option("--sensitivity", help="Measure each layer alone in int8, and the effect of --keep.")
]


_Plot = Annotated[
    Path | None,
    typer.Option(
        parser=argument_parser(check_plot),
        metavar="FILE",
        help="Plot the accuracy over the number of layers in float to FILE (.svg, .png, or .pdf).",
    ),
]
_Route = Annotated[
    Literal["onnxruntime", "tensorrt", "modelopt"],
    typer.Option(
        "--with",
        help="Program that calibrates the model. tensorrt needs TensorRT 10 and a GPU, modelopt NVIDIA ModelOpt.",
    ),
]
_Python = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Python interpreter of the virtual environment that contains ModelOpt."),
]


@command(orderly=True)
def calibrate(
    context: typer.Context,
    model: ModelName = None,
    images: Images = None,
    config: FramesConfig = None,
    output: Output = None,
    algorithm: _Algorithms = None,
    frames: FrameCount = 300,
    seconds: SampleTime = 60.0,
    max_drop: MaxDrop = 0.01,
    keep: _Keep = 0,
    sensitivity: _Sensitivity = False,
    with_: _Route = "onnxruntime",
    python: _Python = None,
    plot: _Plot = None,
    video: LabeledVideo = None,
    truth: LabelFile = None,
    class_name: LabelClass = "person",
    force: Force = False,
) -> int:
    """Quantize a model to int8, with frames from your own cameras.

    The result is a model folder for `vision run`, by default NAME-int8. If the accuracy drops by more than --max-drop,
    the folder is called NAME-int8.rejected instead. Without --video and --truth, the boxes are compared with those of
    the float32 model.

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
    if python is not None and with_ != "modelopt":
        context.fail("--python requires --with modelopt")
    task = make_task(context, model, config, "-int8", (video, truth))
    from vision.optimize.int8 import Int8Options, run

    algorithms = algorithm or Values(("mse",) if with_ == "onnxruntime" else ("entropy",))
    interpreter = Path(sys.executable) if python is None else python
    options = Int8Options(tuple(algorithms), keep, sensitivity, plot, with_, interpreter)
    try:
        run(task, options, context.obj.stop, table_console())
    except Closed:  # nothing was written
        return 128 + signal.SIGINT
    return EXIT_OK
