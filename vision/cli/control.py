"""The commands `vision status` and `vision reload`, which send requests to a running program on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from vision.cli.options import CONFIG_HELP, Json, table_console
from vision.cli.session import command
from vision.cli.status_view import describe_memory, render_status
from vision.config import resolve_config
from vision.errors import EXIT_OK
from vision.messaging.control_protocol import (
    ChangedReply,
    ReloadRequest,
    Reply,
    Request,
    StatusReply,
    StatusRequest,
    ask,
    find_socket,
)
from vision.stages.stage import Report

RunningConfig = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="CONFIG", help=f"Configuration of the program. {CONFIG_HELP} Default: the only program."
    ),
]
Socket = Annotated[
    Path | None, typer.Option(metavar="PATH", help="Control socket of the program, instead of `--config`.")
]


def ask_program(request: Request, config: str | None, socket: Path | None) -> Reply:
    """Send a request to the program that `--config` or `--socket` selects, and return its reply.

    If both are None, send the request to the only program on this machine.

    Raises:
        typer.BadParameter: both options are given.
        VisionError: no program or several programs match, or the program refuses the request.
    """
    if config is not None and socket is not None:
        raise typer.BadParameter("expected either --config or --socket, got both")
    return ask(socket or find_socket(None if config is None else resolve_config(config)), request)


@command()
def status(
    context: typer.Context,
    config: RunningConfig = None,
    socket: Socket = None,
    json: Json = False,
) -> int:
    """Show the status of a program that runs on this machine.

    The exit code is 0 if the program runs, and 75 if it does not.

    Examples:
      vision status
      vision status --config camera.yaml --json
    """
    reply = ask_program(StatusRequest(), config, socket)
    assert isinstance(reply, StatusReply)
    if json:
        print(msgspec.json.encode(reply).decode())
        return EXIT_OK
    console, node = table_console(), reply.node
    up = sum(camera.state == "streaming" for camera in reply.cameras)
    console.print(f"vision {node.version}: {up} of {len(reply.cameras)} cameras up", highlight=False)
    console.print(f"{node.model} on {node.backend}, {node.rates['published']:.1f} frames/s", highlight=False)
    if node.memory_bytes:
        console.print(f"memory: {describe_memory(node)}", highlight=False, soft_wrap=True)
    console.print(render_status(Report(node, tuple(reply.cameras), {}), console.width))
    for camera in reply.cameras:
        if camera.state != "streaming" and camera.error_code:
            hint = f"; {camera.hint}" if camera.hint else ""
            console.print(f"{camera.camera}: code {camera.error_code}{hint}", highlight=False, soft_wrap=True)
    return EXIT_OK


@command()
def reload(
    context: typer.Context,
    config: RunningConfig = None,
    socket: Socket = None,
    json: Json = False,
) -> int:
    """Make a running program read its configuration again.

    Cameras, lines, zones, rules, and thresholds change while the program runs. If the file is invalid, or if another
    key has changed, nothing changes, and the exit code is 78.

    Examples:
      vision reload
      vision reload --config /etc/vision/shop.yaml
    """
    print_changes(ask_program(ReloadRequest(), config, socket), json=json)
    return EXIT_OK


def print_changes(reply: Reply, *, json: bool) -> None:
    """Print the changes of a running program, as lines or as JSON. `reply` must be a `ChangedReply`."""
    assert isinstance(reply, ChangedReply)
    if json:
        print(msgspec.json.encode(reply).decode())
        return
    for kind in reply.__struct_fields__:
        for name in getattr(reply, kind):
            print(f"{kind if kind != 'stages' else 'changed'}: {name}")
    if not any(getattr(reply, kind) for kind in reply.__struct_fields__):
        print("nothing has changed")
