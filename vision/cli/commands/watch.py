"""`vision watch`: show what a running `vision run` publishes."""

from __future__ import annotations

from typing import Annotated

import typer

from vision.cli.options import ForTime
from vision.cli.session import add_command

_EXAMPLES = """
vision watch
vision watch tcp://192.0.2.7:5555 --for 1m
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "watch", _EXAMPLES)(watch)


def watch(
    context: typer.Context,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="Where it publishes.")] = "tcp://127.0.0.1:5555",
    for_s: ForTime = None,
) -> int:
    """Show what a running `vision run` publishes."""
    from vision.cli.watch import watch as watch_address

    return watch_address(address, for_s=for_s)
