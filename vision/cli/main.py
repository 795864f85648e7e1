"""The program `vision`: its list of commands, and its entry point."""

from __future__ import annotations

import faulthandler
import importlib
import io
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated, Final, Literal

import typer

from vision.cli.session import Session, add_command
from vision.errors import conceal, redact

COMMANDS: Final = {
    "run": "Detect objects in camera streams, and publish the results.",
    "check": "Validate a configuration and open its cameras.",
    "draw": "Draw the lines and zones on one frame of each camera.",
    "clips": "List the recorded clips and continuous recordings.",
    "verify": "Read all recorded files, and compare them with the index.",
    "keys": "Create keys, and choose which subscribers can connect.",
    "watch": "Show the results of a running `vision run`.",
    "status": "Show the status of a program that runs on this machine.",
    "reload": "Make a running program read its configuration again.",
    "cameras": "Find ONVIF cameras, and add or remove cameras of a running program.",
    "eval": "Measure accuracy on a labeled video or on simulated scenes.",
    "whatif": "Judge archived tracks again with different lines, zones, and rules.",
    "replay": "Publish archived results again, to test subscribers with a real incident.",
    "doctor": "Diagnose the environment and suggest fixes.",
    "models": "List and check models, or add a model.",
    "schema": "Print the JSON Schema of camera.yaml or model.yaml, for editors.",
    "build": "Build, list, or prune TensorRT engines.",
    "calibrate": "Quantize a model to int8, with frames from your own cameras.",
    "sparsify": "Prune a model to 2:4 sparsity, or check the sparsity of a model.",
    "bench": "Measure the speed of a model on this machine.",
    "profile": "Show the time of each layer and each stage.",
    "plan": "Measure a configuration with stand-in cameras.",
    "llm": "Check, choose, and evaluate a language model that judges events.",
    "install-service": "Set up a systemd service.",
    "uninstall-service": "Remove the systemd services.",
    "camera-zoo": "Serve synthetic cameras with the oddities of real ones.",
    "chaos": "Run the program with faults, and check that it survives them.",
}
"""The first line of the help of each command, by name. Only the module of the called command is imported."""

_PLACES: Final = {
    "eval": ("evaluate", "evaluate"),
    "verify": ("clips", "verify"),
    "schema": ("models", "schema"),
    "camera-zoo": ("camera_zoo", "camera_zoo"),
    "status": ("control", "status"),
    "reload": ("control", "reload"),
    "install-service": ("service", "install_service"),
    "uninstall-service": ("service", "uninstall_service"),
}
"""The module and the function of each command whose module or function has a different name."""

_LOG_LEVEL: Final = "--log-level"
_EPILOG: Final = """\b
Examples:
  vision run demo                  detect objects in a shipped clip
  vision check camera.yaml         validate a configuration and open its cameras
  vision run camera.yaml           detect objects and publish the results
  vision watch                     show the results that this machine publishes

Exit codes: 0 success, 1 runtime error, 2 invalid arguments, 75 temporary failure,
78 invalid configuration or model.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in `arguments`, and return its exit code. None means the arguments in ``sys.argv[1:]``."""
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
    completed = f"{os.environ.get('COMP_WORDS', '')} {os.environ.get('_TYPER_COMPLETE_ARGS', '')}"  # set by a shell
    called = {*arguments, *completed.split()}
    for name, summary in COMMANDS.items():
        if name in called:
            _add_command(app, name)
        else:
            app.command(name, help=summary)(lambda: None)
    return app


def _add_command(app: typer.Typer, name: str) -> None:
    """Import the module of the command or group of commands `name`, and add the command or group to `app`."""
    module, function = _PLACES.get(name, (name, name))
    body = getattr(importlib.import_module(f"vision.cli.{module}"), function)
    if isinstance(body, typer.Typer):
        app.add_typer(body, name=name)
    else:
        add_command(app, name, body)


def _print_version(requested: bool) -> None:
    if requested:
        from vision.version import version

        print(f"vision {version()}")
        raise typer.Exit


def _start(
    context: typer.Context,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(_LOG_LEVEL, help="Minimum level of log lines. This option can also follow the command."),
    ] = "info",
    version: Annotated[
        bool, typer.Option("--version", help="Print the version, and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Detect, track, and count objects in many camera streams."""
    context.obj = Session(log_level)


def _hoist_log_level(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with ``--log-level`` before the command, because this option belongs to the program."""
    rest, hoisted = list(arguments), []
    for index, argument in enumerate(rest):
        if argument == _LOG_LEVEL or argument.startswith(f"{_LOG_LEVEL}="):
            end = index + (2 if argument == _LOG_LEVEL else 1)
            hoisted, rest = rest[index:end], rest[:index] + rest[end:]
            break
    return [*hoisted, *rest]


class ConcealingStream(io.TextIOWrapper):
    """A text stream that replaces registered secrets in all text that is written to it, including tracebacks."""

    def write(self, text: str) -> int:
        return super().write(conceal(text))


def _conceal_output() -> None:
    """Replace standard output and standard error with streams that conceal registered secrets.

    Uncaught exceptions are also printed without the users and passwords of URLs.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            wrapped = ConcealingStream(
                stream.buffer,
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, wrapped)
    sys.excepthook = _print_exception
    threading.excepthook = lambda failed: _print_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)


def _print_exception(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """Print an uncaught exception, without the users and passwords of URLs in its text."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def entry() -> None:
    """Run the command in `sys.argv`, and end the process with its exit code."""
    _conceal_output()
    faulthandler.enable()  # prints the stacks of all threads if a library crashes, or if systemd's watchdog fires
    code = main()
    if threading.active_count() > 1:
        # A thread is still inside a camera's library. If the thread returned while Python finalizes the interpreter,
        # C++ would abort the process. All resources of the program are already closed.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
