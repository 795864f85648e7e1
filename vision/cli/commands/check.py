"""`vision check`: validate a configuration, its model and its pipeline, and open each camera once."""

from __future__ import annotations

import json as json_module
import threading
from dataclasses import asdict
from typing import Any

import typer

from vision.cli.options import ConfigName, Json
from vision.cli.session import add_command
from vision.errors import EXIT_OK, EXIT_RUNTIME, VisionError

_EXAMPLES = """
vision check camera.yaml
vision check /etc/vision/shop.yaml --json
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "check", _EXAMPLES, orderly=True)(check)


def check(context: typer.Context, config: ConfigName, json: Json = False) -> int:
    """Validate a configuration and open its cameras.

    The check covers the model, the back-end and the pipeline. Each camera gives one frame.

    Exit code 0: `vision run` starts, and every camera gives frames. 1: a camera gives none. 78: `vision run` refuses.
    """
    return _check_as_json(config, context.obj.stop) if json else _check_as_text(config, context.obj.stop)


def _check_as_text(name: str, stop: threading.Event) -> int:
    from rich.console import Console

    from vision.cli.check import check_cameras, check_configuration, print_checks

    checked = check_configuration(name)
    print(f"{checked.path}: {checked.summary}")
    print("configuration: no faults")
    return print_checks(check_cameras(checked.config.cameras, ("bgr",), stop), Console())


def _check_as_json(name: str, stop: threading.Event) -> int:
    from vision.cli.check import check_cameras, check_configuration

    document: dict[str, Any] = {"schema": "vision.check/1", "config": name, "fault": None, "cameras": []}
    try:
        checked = check_configuration(name)
    except VisionError as error:
        faults = [asdict(fault) for fault in error.faults]
        document["fault"] = {"code": error.code, "message": error.args[0], "hint": error.hint, "faults": faults}
        print(json_module.dumps(document, indent=2))
        return error.exit_code
    checks = check_cameras(checked.config.cameras, ("bgr",), stop)
    document |= {"config": str(checked.path), "cameras": [check.as_json() for check in checks]}
    print(json_module.dumps(document, indent=2))
    return EXIT_RUNTIME if any(check.error for check in checks) else EXIT_OK
