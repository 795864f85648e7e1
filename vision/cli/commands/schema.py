"""`vision schema`: print the JSON Schema of camera.yaml or model.yaml."""

from __future__ import annotations

import json
from typing import Annotated, Literal, TypeAlias

import typer

from vision.cli.session import add_command
from vision.errors import EXIT_OK

File: TypeAlias = Annotated[Literal["camera.yaml", "model.yaml"], typer.Argument(help="File to describe.")]

_EXAMPLES = """
vision schema > camera.schema.json
vision schema model.yaml > model.schema.json
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "schema", _EXAMPLES)(schema)


def schema(context: typer.Context, file: File = "camera.yaml") -> int:
    """Print the JSON Schema of camera.yaml or model.yaml, for editors."""
    from vision.config import config_schema, model_schema

    print(json.dumps(config_schema() if file == "camera.yaml" else model_schema(), indent=2))
    return EXIT_OK
