"""The execution of a command, with its signals, logging, errors, and exit code."""

from __future__ import annotations

import errno
import faulthandler
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from types import FrameType
from typing import Any, Final

import typer

from vision.errors import EXIT_OK, EXIT_RUNTIME, Closed, VisionError, from_os_error
from vision.state.service_manager import is_service

_OUTPUT_FAILS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # such as a full disk or a lost terminal
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE)  # no free file descriptors
_STOP, _HANGUP, _QUIT = b"s", b"h", b"q"  # messages from the signal handler to its thread
_STOP_TIMEOUT_S: Final = 15.0  # shorter than `TimeoutStopSec` of the systemd unit
_SHOW_CURSOR = b"\x1b[?25h\n"


class Session:
    """The state of one invocation of `vision`, which commands access as `typer.Context.obj`."""

    def __init__(self, log_level: str) -> None:
        self.log_level = log_level
        self.stop = threading.Event()  # set when the command must stop
        self.hangup = Hangup()


class Hangup:
    """Receiver of SIGHUP, which makes a program reload its configuration. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handler: Callable[[], object] | None = None
        self._waits = False
        self._had_terminal = os.isatty(2)

    def received(self, stop: threading.Event) -> None:
        """Call the handler immediately, or as soon as it is set. If the terminal was closed, set `stop` instead.

        Call this method from the thread `signals`.
        """
        if self._had_terminal and not os.isatty(2):
            stop.set()
            return
        with self._lock:
            self._waits = self._handler is None
            if self._handler is not None:
                self._handler()

    def handle_with(self, handler: Callable[[], object]) -> None:
        """Set the handler. If a signal has already arrived, call the handler."""
        with self._lock:
            self._handler = handler
            if self._waits:
                self._waits = False
                handler()


def command(*, orderly: bool = False, reloads: bool = False) -> Callable[[Callable[..., int]], Callable[..., None]]:
    """Return a decorator for the function of a command.

    The decorated function must have an argument `context`, and must return an exit code.

    Args:
        orderly: if True, the first SIGTERM or SIGINT sets `context.obj.stop`, and the second ends the process
            immediately. If False, Ctrl-C raises KeyboardInterrupt, and SIGTERM ends the process immediately.
        reloads: if True, `context.obj.hangup` receives SIGHUP. If False, SIGHUP ends the process. True requires
            `orderly`.
    """

    def decorate(body: Callable[..., int]) -> Callable[..., None]:
        @wraps(body)
        def run(**arguments: Any) -> None:
            session: Session = arguments["context"].obj
            hangup = session.hangup if reloads else None
            if orderly:
                from vision.config.user_files import stop_waits_on

                stop_waits_on(session.stop)
            with stop_on_signals(session.stop, hangup) if orderly else nullcontext():
                code = _run_guarded(lambda: body(**arguments), session.log_level)
            raise typer.Exit(code)

        return run

    return decorate


def add_command(app: typer.Typer, name: str, body: Callable[..., None]) -> None:
    """Add a command to `app`. The docstring of `body` is the help text, whose examples come after the options."""
    text, _, examples = (inspect.getdoc(body) or "").partition("\n\nExamples:\n")
    app.command(name, help=text, epilog=f"\b\nExamples:\n{examples}")(body)


def _run_guarded(body: Callable[[], int], log_level: str) -> int:
    """Start logging, run `body`, and return the exit code.

    Print a `VisionError` as its message and hint, without a traceback. `Closed` means success. Convert Ctrl-C and
    failures to write the output to exit codes, too. Pass on all other exceptions.
    """
    from vision.cli.console import start_logging

    start_logging(log_level)
    try:
        code = body()
        print(end="", flush=True)  # after this function, a failure could not be reported
        return code
    except Closed:
        return EXIT_OK
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the program that reads the output has ended
        _discard_output()
        return EXIT_RUNTIME
    except OSError as error:
        return _code_of(error)
    except VisionError as error:
        print(f"vision: {error}", file=sys.stderr)
        return error.exit_code


def _code_of(error: OSError) -> int:
    """Print an error of the operating system, and return the exit code. Re-raise unexpected errors."""
    if error.errno in _EXHAUSTED:
        failure = from_os_error("the program failed", error)
        print(f"vision: {failure}", file=sys.stderr)
        return failure.exit_code
    if error.filename is not None or error.errno not in _OUTPUT_FAILS:
        raise error
    _discard_output()
    print(f"vision: the output cannot be written: {error.strerror}", file=sys.stderr)
    return EXIT_RUNTIME


def _discard_output() -> None:
    """Redirect standard output to /dev/null, so that Python's flush at exit cannot fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def stop_on_signals(stop: threading.Event, hangup: Hangup | None = None) -> Iterator[None]:
    """Set `stop` at the first SIGTERM or SIGINT. End the process immediately at the second signal.

    If a service manager started the program, also end the process if it still runs 15 s after the first signal. If
    `hangup` is not None, it receives SIGHUP.

    The signal handler interrupts arbitrary Python code of the main thread, which can hold a lock of the event or of the
    console. Therefore, the handler only writes to a pipe, and a thread sets the event and prints the message.
    """
    reader, writer = os.pipe()
    received: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            os.write(writer, _HANGUP)
            return
        if received:
            if os.isatty(2):
                os.write(2, _SHOW_CURSOR)  # a live table hides the cursor
            os._exit(128 + number)
        received.append(number)
        os.write(writer, _STOP)

    thread = threading.Thread(target=_wait_for_signal, args=(reader, stop, hangup), name="signals", daemon=True)
    thread.start()
    numbers = (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hangup is not None else []))
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.write(writer, _QUIT)
        thread.join()
        os.close(reader)
        os.close(writer)


def _end_after_timeout() -> None:
    """Wait 15 s for an orderly stop. Then print the stack of every thread, and end the process."""
    time.sleep(_STOP_TIMEOUT_S)
    faulthandler.dump_traceback()
    os._exit(EXIT_RUNTIME)


def _wait_for_signal(reader: int, stop: threading.Event, hangup: Hangup | None) -> None:
    from vision.cli.console import error_console

    while (signaled := os.read(reader, 1)) != _QUIT:
        if signaled == _HANGUP and hangup is not None:
            hangup.received(stop)
            continue
        stop.set()
        if is_service():
            threading.Thread(target=_end_after_timeout, name="stop-timeout", daemon=True).start()
        error_console().print("stopping; press Ctrl-C again to exit immediately", soft_wrap=True, highlight=False)
