"""The command `vision replay`, which publishes archived results again."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from vision.cli.options import ConfigName, argument_parser
from vision.cli.session import command
from vision.cli.whatif import ArchiveFolder, Since, Until
from vision.config.fields import check_bind


@command(orderly=True)
def replay(
    context: typer.Context,
    config: ConfigName,
    since: Since,
    until: Until = None,
    camera: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Camera to replay. Can be repeated. [default: all]")
    ] = None,
    archive: ArchiveFolder = None,
    speed: Annotated[float, typer.Option(min=0, help="Speed. 1 is real time, and 0 is as fast as possible.")] = 1.0,
    bind: Annotated[
        str | None,
        typer.Option(
            parser=argument_parser(check_bind), metavar="ADDRESS", help="Publish at ADDRESS instead of `publish.bind`."
        ),
    ] = None,
) -> int:
    """Publish archived results again, to test subscribers with a real incident.

    The lines, zones, and rules are those of CONFIG.

    Examples:
      vision replay camera.yaml --since 2026-11-28T17:30 --until 2026-11-28T17:40 --bind tcp://127.0.0.1:5557
      vision replay camera.yaml --since 1h --camera gate --speed 10 --bind tcp://127.0.0.1:5557
    """
    from vision.evaluation.whatif.replay import run_replay
    from vision.evaluation.whatif.run import Selection

    until_us = time.time_ns() // 1000 if until is None else until
    if since >= until_us:
        raise typer.BadParameter("expected a start before the end", param_hint="--since")
    selection = Selection(config, since, until_us, tuple(camera or ()), archive)
    return run_replay(selection, context.obj.stop, speed=speed, bind=bind)
