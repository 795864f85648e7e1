"""The process around each command: signals, logging, errors and exit codes."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from types import FrameType, TracebackType
from typing import Any, Final

import typer

from vision.errors import EXIT_OK, EXIT_RUNTIME, Closed, VisionError

_OUTPUT_FAILS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # a full disk, a closed terminal
_STOP, _QUIT = b"s", b"q"
_SHOW_CURSOR = b"\x1b[?25h\n"


class Session:
    """State of one invocation, as `typer.Context.obj`."""

    def __init__(self, log_level: str) -> None:
        self.log_level = log_level
        self.stop = threading.Event()


def command(*, orderly: bool = False) -> Callable[[Callable[..., int]], Callable[..., None]]:
    """Return a decorator for the function of a command, which takes `context` and returns an exit code.

    Args:
        orderly: the first SIGTERM or SIGINT sets `context.obj.stop`, and the second ends the process at once. If
            False, Ctrl-C raises KeyboardInterrupt and SIGTERM ends the process.
    """

    def decorate(body: Callable[..., int]) -> Callable[..., None]:
        @wraps(body)
        def run(**arguments: Any) -> None:
            session: Session = arguments["context"].obj
            with Signals(session.stop) if orderly else nullcontext():
                code = _run_guarded(lambda: body(**arguments), session.log_level)
            raise typer.Exit(code)

        return run

    return decorate


def _run_guarded(body: Callable[[], int], log_level: str) -> int:
    """Run `body`, and return the exit code; an error of the project becomes one line and its hint."""
    from vision.cli.console import start_logging

    start_logging(log_level)
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


class Signals:
    """Sets `stop` at the first SIGTERM or SIGINT; the second ends the process at once.

    The handler interrupts arbitrary Python code of the main thread, which may hold a lock of the event or of the
    console. So it only writes into a pipe, and a thread does the rest. The thread ends with the `with` block.
    """

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self._received = False
        self._previous: dict[signal.Signals, Any] = {}
        self._reader, self._writer = os.pipe()
        self._thread = threading.Thread(target=self._wait, name="signals", daemon=True)

    def __enter__(self) -> Signals:
        self._thread.start()
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.write(self._writer, _QUIT)
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._received:
            if os.isatty(2):
                os.write(2, _SHOW_CURSOR)  # a live table hides it
            os._exit(128 + number)
        self._received = True
        os.write(self._writer, _STOP)

    def _wait(self) -> None:
        from vision.cli.console import error_console

        while os.read(self._reader, 1) == _STOP:
            self.stop.set()
            error_console().print("stopping; press Ctrl-C again to quit at once", soft_wrap=True, highlight=False)
