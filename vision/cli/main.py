"""The program `vision`: its commands, and the process around them."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import typer

from vision.cli.commands import bench, build, check, doctor, draw, evaluate, models, plan, profile, run, schema, watch
from vision.cli.session import Session

_COMMANDS: Final = (run, check, draw, watch, evaluate, doctor, models, schema, build, bench, profile, plan)
_LOG_LEVEL: Final = "--log-level"
_EPILOG: Final = """\b
Examples:
  vision run demo                  detect in a shipped clip
  vision check camera.yaml         validate a configuration and open its cameras
  vision run camera.yaml           publish what the cameras show
  vision watch                     show what is published on this machine

Exit codes: 0 success, 1 runtime error, 2 wrong arguments, 78 wrong configuration or model.
"""

app = typer.Typer(
    name="vision",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
for _module in _COMMANDS:
    _module.register(app)


def _print_version(requested: bool) -> None:
    if requested:
        from vision.version import version

        print(f"vision {version()}")
        raise typer.Exit


@app.callback()
def _start(
    context: typer.Context,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(_LOG_LEVEL, help="Lowest level of log lines. Also accepted after the command."),
    ] = "info",
    version: Annotated[  # noqa: ARG001 - its callback prints it
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Detect, track and count objects in many camera streams."""
    context.obj = Session(log_level)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code."""
    try:
        app(args=_hoist_log_level(sys.argv[1:] if arguments is None else arguments), prog_name="vision")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _hoist_log_level(arguments: Sequence[str]) -> list[str]:
    """Move ``--log-level`` in front of the command, because it is an option of the program."""
    rest, hoisted = list(arguments), []
    for index, argument in enumerate(rest):
        if argument == _LOG_LEVEL or argument.startswith(f"{_LOG_LEVEL}="):
            end = index + (2 if argument == _LOG_LEVEL else 1)
            hoisted, rest = rest[index:end], rest[:index] + rest[end:]
            break
    return [*hoisted, *rest]


def entry() -> None:
    """Run the process `vision` from start to end."""
    code = main()
    if threading.active_count() > 1:
        # A thread is still inside a camera's library. If it returned while the interpreter is being finalized, C++
        # would abort. Everything of ours is closed by now.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
