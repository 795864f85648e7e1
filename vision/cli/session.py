"""Frame around every command: signals, logging, errors and exit codes."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any, Final

import typer

from vision.cli.signals import Signals
from vision.errors import EXIT_OK, EXIT_RUNTIME, Closed, VisionError

_OUTPUT_FAILS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # a full disk, a closed terminal

Body = Callable[..., int]


class Session:
    """State of one invocation, as `typer.Context.obj`."""

    def __init__(self, log_level: str) -> None:
        self.log_level = log_level
        self.stop = threading.Event()


def add_command(app: typer.Typer, name: str, examples: str, *, orderly: bool = False) -> Callable[[Body], Body]:
    """Return a decorator that adds a function as a command. The function takes `context` and returns an exit code.

    Args:
        app: the program.
        name: of the command.
        examples: lines for the end of its help.
        orderly: the first SIGTERM or SIGINT sets `context.obj.stop`, and the second ends the process at once. If
            False, Ctrl-C raises KeyboardInterrupt and SIGTERM ends the process.
    """

    def add(body: Body) -> Body:
        @wraps(body)
        def run(**arguments: Any) -> None:
            session: Session = arguments["context"].obj
            with Signals(session.stop) if orderly else nullcontext():
                code = _run_guarded(lambda: body(**arguments), session.log_level)
            raise typer.Exit(code)

        lines = "\n".join(f"  {line}" for line in examples.strip().splitlines())
        app.command(name, epilog=f"\b\nExamples:\n{lines}")(run)
        return body

    return add


def _run_guarded(body: Callable[[], int], log_level: str) -> int:
    """Run `body`, and return the exit code; an error of the project becomes one line and its hint."""
    from vision.cli.console import terminal
    from vision.cli.logs import start_logging

    start_logging(log_level, terminal())
    try:
        code = body()
        print(end="", flush=True)  # at exit nobody could report a failure
        return code
    except Closed:
        return EXIT_OK
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of the output is gone
        _discard_output()
        return EXIT_RUNTIME
    except OSError as error:
        if error.filename is not None or error.errno not in _OUTPUT_FAILS:
            raise
        _discard_output()
        print(f"vision: the output cannot be written: {error.strerror}", file=sys.stderr)
        return EXIT_RUNTIME
    except VisionError as error:
        print(f"vision: {error}", file=sys.stderr)
        return error.exit_code


def _discard_output() -> None:
    """Redirect standard output to nothing, so that Python's flush at exit cannot fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
