"""`vision schema`: print the JSON Schema of camera.yaml."""

from __future__ import annotations

import json

import typer

from vision.cli.session import add_command
from vision.errors import EXIT_OK

_EXAMPLES = """
vision schema > camera.schema.json
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "schema", _EXAMPLES)(schema)


def schema(context: typer.Context) -> int:
    """Print the JSON Schema of camera.yaml, for editors."""
    from vision.config import config_schema

    print(json.dumps(config_schema(), indent=2))
    return EXIT_OK
