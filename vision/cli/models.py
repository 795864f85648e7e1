"""The commands `vision models` and `vision schema`, which show the models and keys that a configuration can use."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from typing import Annotated, Literal

import typer
from rich.console import Console

from vision.cli.options import Json
from vision.cli.session import command
from vision.config import config_schema, model_schema
from vision.detect.catalog import list_models, print_models
from vision.errors import EXIT_CONFIG, EXIT_OK


@command()
def models(context: typer.Context, json: Json = False) -> int:
    """List the shipped models, and describe how to add one.

    Examples:
      vision models
      vision models --json
    """
    rows = list_models()
    if not json:
        return print_models(rows, Console())
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
