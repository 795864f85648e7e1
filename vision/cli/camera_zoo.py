"""The command `vision camera-zoo`, which serves synthetic cameras that imitate unusual real cameras."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from vision.capture.zoo.camera import Camera
from vision.capture.zoo.page import expectation
from vision.capture.zoo.persona import Fault, Persona
from vision.capture.zoo.zoo import missing, running_zoo, selected
from vision.cli.session import command
from vision.errors import EXIT_OK

_FAULT_EVERY_S = 10.0  # streaming time before each fault


@command(orderly=True)
def camera_zoo(
    context: typer.Context,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Camera to serve. Repeat for more.")] = None,
    fault: Annotated[Fault, typer.Option(help="Fault of each camera, every 10 s while it streams.")] = "none",
    port: Annotated[
        int, typer.Option(min=0, max=65000, help="First port. Each camera has its own; 0 means any free ports.")
    ] = 8600,
    list_only: Annotated[bool, typer.Option("--list", help="List the cameras, and exit.")] = False,
) -> int:
    """Serve synthetic cameras with the oddities of real ones.

    Each camera has its own port on 127.0.0.1. The command prints one line per camera: its name, its address, the
    expected behavior of the readers, and the oddity of the camera. Cameras with a password expect the user "viewer" and
    the password "secret". Press Ctrl-C to stop.

    Examples:
      vision camera-zoo --list
      vision camera-zoo --only b-frames --only digest
      vision camera-zoo --fault cut
    """
    personas = selected(only or ())
    if list_only:
        _print((persona, persona.address(0).replace(":0/", ":PORT/")) for persona in personas)
        return EXIT_OK
    with running_zoo() as zoo:
        cameras = [
            Camera(persona, fault, fault_after_s=_FAULT_EVERY_S, repeats=True)
            for persona in personas
            if _can_serve(persona)
        ]
        zoo.start(cameras, port)
        _print((camera.persona, camera.address) for camera in cameras)
        context.obj.stop.wait()
    return EXIT_OK


def _can_serve(persona: Persona) -> bool:
    """Return True if this machine can serve the camera. Otherwise, print the reason, and return False."""
    reason = missing(persona)
    if reason is not None:
        print(f"{persona.name} is left out: {reason}", file=sys.stderr)
    return reason is None


def _print(addresses: Iterable[tuple[Persona, str]]) -> None:
    """Print one line per camera: its name, its address, the expected behavior of the readers, and its oddity."""
    for persona, address in addresses:
        print(f"{persona.name:22} {address:58} {expectation(persona):48} {persona.odd}", flush=True)
