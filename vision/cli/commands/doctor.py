"""`vision doctor`: diagnose the environment and suggest fixes."""

from __future__ import annotations

import typer

from vision.cli.options import Json
from vision.cli.session import add_command

_EXAMPLES = """
vision doctor
vision doctor --json
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "doctor", _EXAMPLES)(doctor)


def doctor(context: typer.Context, json: Json = False) -> int:
    """Diagnose the environment and suggest fixes."""
    from rich.console import Console

    from vision.cli.doctor import examine, print_findings, print_findings_as_json

    findings = examine()
    return print_findings_as_json(findings) if json else print_findings(findings, Console())
