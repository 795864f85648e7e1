"""Options that `vision calibrate` and `vision sparsify` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from vision.cli.options import parse_duration, read_config
from vision.config import AppConfig
from vision.runtime.builder import find_model
from vision.version import install_hint, require_package

if TYPE_CHECKING:
    from vision.optimize.task import Task

Images: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of images to use as frames, including subfolders.")
]
FramesConfig: TypeAlias = Annotated[
    str | None,
    typer.Option("--config", metavar="CONFIG", help="Use frames of the cameras in this camera.yaml, and its model."),
]
Output: TypeAlias = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the result.")]
FrameCount: TypeAlias = Annotated[int, typer.Option(min=8, max=10_000, metavar="N", help="Number of frames to use.")]
SampleTime: TypeAlias = Annotated[
    float, typer.Option("--for", parser=parse_duration, metavar="TIME", help="Time to sample live cameras, in seconds.")
]
MaxDrop: TypeAlias = Annotated[
    float, typer.Option(min=0.0, max=1.0, metavar="DROP", help="Loss of accuracy that is allowed.")
]
LabeledVideo: TypeAlias = Annotated[
    str | None, typer.Option("--video", metavar="FILE", help="Labeled video, to measure the accuracy as AP@0.5.")
]
LabelFile: TypeAlias = Annotated[
    Path | None, typer.Option("--truth", metavar="GT.txt", help="Labels of --video in the MOTChallenge format.")
]
LabelClass: TypeAlias = Annotated[str, typer.Option("--class", metavar="NAME", help="Class of the labels.")]
Force: TypeAlias = Annotated[bool, typer.Option("--force", help="Replace the output folder if it contains a model.")]


def make_task(
    context: typer.Context, model: str | None, config: str | None, ending: str, labels: tuple[str | None, Path | None]
) -> Task:
    """Return the task that the shared options describe.

    Args:
        context: context of the command, whose parameters contain the other shared options.
        model: name or folder of the model; None means the model of the configuration.
        config: configuration whose cameras supply the frames, or None if there is none.
        ending: ending of the name of the default output folder, such as ``-int8``.
        labels: the labeled video, and the file of its labels, or None if they are not given.

    Raises:
        ConfigError: a package is missing, or the configuration is invalid.
        ModelError: the model cannot be used.
    """
    require_optimize(context)
    from vision.optimize.accuracy import Labels
    from vision.optimize.task import Task

    values = context.params
    app_config = None if config is None else read_config(config)
    default = AppConfig.model_fields["model"].default if app_config is None else app_config.model
    folder, spec = find_model(model or str(default))
    video, truth = labels
    return Task(
        folder=folder,
        spec=spec,
        output=values["output"] or Path(f"{spec.name}{ending}"),
        images=values["images"],
        cameras=() if app_config is None else app_config.cameras,
        frames=values["frames"],
        seconds=values["seconds"],
        max_drop=values["max_drop"],
        labels=None if video is None or truth is None else Labels(video, truth, values["class_name"]),
        force=values["force"],
    )


def check_pair(context: typer.Context, video: str | None, truth: Path | None) -> None:
    """End the command with an error if only one of `--video` and `--truth` is given."""
    if (video is None) != (truth is None):
        context.fail("--video and --truth belong together")


def require_optimize(context: typer.Context) -> None:
    """Raise `ConfigError` if a package that the command needs is missing."""
    for package in ("onnx", "onnxruntime"):
        require_package(package, f"`vision {context.info_name}` needs {package}", install_hint("build"))
