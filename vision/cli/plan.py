"""The command `vision plan`, which measures a configuration with stand-in cameras."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from vision.benchmark.plan import make_plan
from vision.benchmark.tables import print_plan
from vision.cli.console import with_progress
from vision.cli.options import ConfigName, JsonFile, parse_seconds, read_config, table_console, write_text
from vision.cli.session import command
from vision.errors import EXIT_OK


@command()
def plan(
    context: typer.Context,
    config: ConfigName,
    seconds: Annotated[
        float,
        typer.Option(
            parser=parse_seconds,
            metavar="SECONDS",
            help="Duration of the run. The whole plan takes up to 8 times as long.",
        ),
    ] = 10.0,
    json: JsonFile = None,
) -> int:
    """Measure a configuration with stand-in cameras.

    The report contains the throughput, the latency, the bottleneck, and how many such cameras this machine can serve.

    Examples:
      vision plan camera.yaml
      vision plan camera.yaml --json plan.json
    """
    app_config = read_config(config)
    planned = with_progress(lambda progress: make_plan(app_config, seconds=seconds, progress=progress))
    if json is not None:
        write_text(json_module.dumps(planned.as_json(), indent=1), json)
    print_plan(planned, table_console(json))
    return EXIT_OK
