"""`vision draw`: write a frame of each camera with its lines and zones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vision.cli.options import ConfigName, read_config
from vision.cli.session import add_command

_EXAMPLES = """
vision draw camera.yaml
vision draw counting --out /tmp/drawn
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "draw", _EXAMPLES, orderly=True)(draw)


def draw(
    context: typer.Context,
    config: ConfigName,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the images.")] = Path("drawn"),
) -> int:
    """Write a frame of each camera with its lines and zones."""
    from rich.console import Console

    from vision.cli.draw import draw_cameras, print_drawings

    return print_drawings(draw_cameras(read_config(config), out, context.obj.stop), Console())
