"""`vision models`: list the shipped models, and describe how to add one."""

from __future__ import annotations

import json as json_module

import typer

from vision.cli.options import Json
from vision.cli.session import add_command
from vision.errors import EXIT_CONFIG, EXIT_OK

_EXAMPLES = """
vision models
vision models --json
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "models", _EXAMPLES)(models)


def models(context: typer.Context, json: Json = False) -> int:
    """List the shipped models, and describe how to add one."""
    from dataclasses import asdict

    from rich.console import Console

    from vision.detect.catalog import list_models, print_models

    rows = list_models()
    if not json:
        return print_models(rows, Console())
    document = {"schema": "vision.models/1", "models": [asdict(row) for row in rows]}
    print(json_module.dumps(document, indent=2, default=str))
    return EXIT_CONFIG if any(row.fault for row in rows) else EXIT_OK
