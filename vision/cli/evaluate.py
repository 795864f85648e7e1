"""`vision eval`: measure how accurate a camera's pipeline is on a labeled video."""

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
    truth: Annotated[Path, typer.Option(metavar="GT.txt", help="Ground truth in the MOTChallenge format.")],
    camera: Annotated[
        str | None, typer.Option(metavar="ID", help="Camera to evaluate. Required if CONFIG has several cameras.")
    ] = None,
    class_name: Annotated[str, typer.Option("--class", metavar="NAME", help="Class to evaluate.")] = "person",
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all metrics to FILE, as JSON.")] = None,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Write plots to DIR, as PNG files.")] = None,
    video: Annotated[Path | None, typer.Option(metavar="OUT.mp4", help="Write an annotated video to OUT.mp4.")] = None,
    result: Annotated[
        Path | None, typer.Option(metavar="FILE.txt", help="Write the tracks to FILE.txt, in the MOTChallenge format.")
    ] = None,
) -> int:
    """Measure how accurate a camera's pipeline is on a labeled video.

    Examples:
      vision eval camera.yaml --truth gt.txt
      vision eval camera.yaml --truth gt.txt --plots plots --video checked.mp4
    """
    from vision.evaluation.evaluate import Request, run

    try:
        return run(Request(config, truth, camera, class_name, json, plots, video, result), context.obj.stop)
    except Closed:  # an incomplete evaluation has no result
        return 128 + signal.SIGINT
