"""The command `vision models`, which lists, checks, and adds models, and `vision schema`, which prints JSON Schemas."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from vision.cli.options import Json
from vision.cli.session import command
from vision.config import config_schema, model_schema
from vision.detect.catalog import list_models, print_models
from vision.errors import EXIT_CONFIG, EXIT_OK

_ADD = "add"


@command()
def models(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FOLDER | add FILE.onnx]",
            help="Folder of a model or of several models. Default: the shipped models. `add FILE.onnx` adds a model.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    licence: Annotated[
        str | None,
        typer.Option("--license", metavar="TEXT", help="add: license of the weights, such as Apache-2.0."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="add: name of the model. Default: that of the file.")
    ] = None,
    into: Annotated[Path, typer.Option(metavar="DIR", help="add: folder in which the model's folder is created.")] = (
        Path("models")
    ),
    sample: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="add: image or video to draw objects on. Default: the shipped video."),
    ] = None,
) -> int:
    """List and check models, or add a model.

    Without an argument, list the shipped models and describe how to add one. With a folder, list and check its models.

    `vision models add FILE.onnx` copies the file to models/NAME, and runs the model on a sample frame. The command
    writes a model.yaml from the metadata of the file, the shapes of the outputs, and this run. It also draws the
    objects that the model finds, and prints the keys that it could not determine.

    Exit codes: 0 if all models can be used, 78 if at least one cannot be used.

    Examples:
      vision models
      vision models models/
      vision models add yolo11n.onnx --license AGPL-3.0
    """
    given = words or []
    if given[:1] == [_ADD]:
        from vision.cli.add_model import AddOptions, add_model

        if len(given) != 2:
            raise typer.BadParameter("expected one file: vision models add FILE.onnx")
        return add_model(Path(given[1]), AddOptions(into, name, licence, sample), json=json)
    if len(given) > 1:
        raise typer.BadParameter("expected one folder, or `add` and a file")
    rows = list_models(Path(given[0]) if given else None)
    if not json:
        return print_models(rows, Console(), explain=not given)
    document = {"schema": "vision.models/1", "models": [asdict(row) for row in rows]}
    print(json_module.dumps(document, indent=2, default=str))
    return EXIT_CONFIG if any(row.fault for row in rows) else EXIT_OK


@command()
def schema(
    context: typer.Context,
    file: Annotated[Literal["camera.yaml", "model.yaml"], typer.Argument(help="File to describe.")] = "camera.yaml",
) -> int:
    """Print the JSON Schema of camera.yaml or model.yaml, for editors.

    Examples:
      vision schema > camera.schema.json
      vision schema model.yaml > model.schema.json
    """
    print(json_module.dumps(config_schema() if file == "camera.yaml" else model_schema(), indent=2))
    return EXIT_OK
