"""The program `vision`: its commands, and the process around them."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import typer

from vision.cli.session import Session

COMMANDS: Final = {
    "run": "Detect in the cameras of a configuration and publish the results.",
    "check": "Validate a configuration and open its cameras.",
    "draw": "Write a frame of each camera with its lines and zones.",
    "watch": "Show what a running `vision run` publishes.",
    "eval": "Measure how accurate a camera's pipeline is on a labelled video.",
    "doctor": "Diagnose the environment and suggest fixes.",
    "models": "List the shipped models, and describe how to add one.",
    "schema": "Print the JSON Schema of camera.yaml or model.yaml, for editors.",
    "build": "Build, list or prune TensorRT engines.",
    "bench": "Measure a model on this machine.",
    "profile": "Show where the time goes: per layer, and per stage.",
    "plan": "Run a configuration with stand-in cameras, and report its limits.",
}
"""Commands and their first line of help. Only the module of the command that is called is imported."""

_PLACES: Final = {"eval": ("evaluate", "evaluate"), "schema": ("models", "schema")}
"""Module and function of a command, if they do not have its name."""

_LOG_LEVEL: Final = "--log-level"
_EPILOG: Final = """\b
Examples:
  vision run demo                  detect in a shipped clip
  vision check camera.yaml         validate a configuration and open its cameras
  vision run camera.yaml           publish what the cameras show
  vision watch                     show what is published on this machine

Exit codes: 0 success, 1 runtime error, 2 wrong arguments, 78 wrong configuration or model.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _build_app(arguments)(args=_hoist_log_level(arguments), prog_name="vision")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _build_app(arguments: Sequence[str]) -> typer.Typer:
    app = typer.Typer(
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        epilog=_EPILOG,
    )
    app.callback()(_start)
    completed = f"{os.environ.get('COMP_WORDS', '')} {os.environ.get('_TYPER_COMPLETE_ARGS', '')}"  # by a shell
    called = {*arguments, *completed.split()}
    for name, summary in COMMANDS.items():
        if name in called:
            _add_command(app, name)
        else:
            app.command(name, help=summary)(lambda: None)
    return app


def _add_command(app: typer.Typer, name: str) -> None:
    """Add the function of a command. Its docstring is the help, and the examples in it come last."""
    module, function = _PLACES.get(name, (name, name))
    body = getattr(importlib.import_module(f"vision.cli.{module}"), function)
    text, _, examples = (inspect.getdoc(body) or "").partition("\n\nExamples:\n")
    app.command(name, help=text, epilog=f"\b\nExamples:\n{examples}")(body)


def _print_version(requested: bool) -> None:
    if requested:
        from vision.version import version

        print(f"vision {version()}")
        raise typer.Exit


def _start(
    context: typer.Context,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(_LOG_LEVEL, help="Lowest level of log lines. Also accepted after the command."),
    ] = "info",
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Detect, track and count objects in many camera streams."""
    context.obj = Session(log_level)


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
