"""`vision eval`: measure how accurate a camera's pipeline is on a labelled video."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from vision.cli.options import ConfigName
from vision.cli.session import command
from vision.errors import Closed


@command(orderly=True)
def evaluate(
    context: typer.Context,
    config: ConfigName,
    truth: Annotated[Path, typer.Option(metavar="GT.txt", help="True boxes, as MOTChallenge rows.")],
    camera: Annotated[
        str | None, typer.Option(metavar="ID", help="The camera of this video; needed if there are several.")
    ] = None,
    class_name: Annotated[str, typer.Option("--class", metavar="NAME", help="Class that is scored.")] = "person",
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write all figures there.")] = None,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Also write curves and time lines as PNG.")] = None,
    video: Annotated[Path | None, typer.Option(metavar="OUT.mp4", help="Also write the annotated video.")] = None,
    result: Annotated[
        Path | None, typer.Option(metavar="FILE.txt", help="Also write the tracks as MOTChallenge rows.")
    ] = None,
) -> int:
    """Measure how accurate a camera's pipeline is on a labelled video.

    Examples:
      vision eval camera.yaml --truth gt.txt
      vision eval camera.yaml --truth gt.txt --plots plots --video checked.mp4
    """
    from vision.evaluation.evaluate import Request, run

    try:
        return run(Request(config, truth, camera, class_name, json, plots, video, result), context.obj.stop)
    except Closed:  # an incomplete evaluation has no result
        return 128 + signal.SIGINT
