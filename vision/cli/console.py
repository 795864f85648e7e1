"""The console on standard error, which log lines, live tables, and progress share so that they do not mix."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final, TypeVar

import rich
from rich.console import Console, RenderableType
from rich.control import Control
from rich.live import Live
from rich.logging import RichHandler
from rich.segment import ControlType

from vision.errors import redact

_CHATTY: Final = (
    "vision.runtime.builder",
    "vision.capture",
    "vision.detect.open",
    "vision.detect.tensorrt.detector",
    "matplotlib",
)
"""Loggers that log only warnings during a measurement."""

# Rich first computes how far a drawing must move the cursor up, and then writes the drawing. Another thread must not
# write in between: if the height of the drawing changes, part of the old drawing would stay on the screen.
_WRITING: Final = threading.RLock()

_Value = TypeVar("_Value")


@cache
def error_console() -> Console:
    """Return the console of this process on standard error. It is also the global console of rich."""
    rich.reconfigure(stderr=True)
    return rich.get_console()


def terminal() -> Console | None:
    """Return the console on standard error, or None if standard error is not a terminal."""
    console = error_console()
    return console if console.is_terminal else None


class RedactingFormatter(logging.Formatter):
    """Log formatter that applies `vision.errors.redact` to every line, also to tracebacks and to lines of libraries."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def terminal_handler(console: Console) -> logging.Handler:
    """Return a log handler that writes above the live drawing of `console`."""
    handler = RichHandler(console=console, show_path=False, rich_tracebacks=False, markup=False)
    handler.lock = _WRITING
    return handler


def start_logging(level: str) -> None:
    """Write log records of `level` and above to standard error.

    If standard error is not a terminal, each line contains the date and the name of the logger.
    """
    console = terminal()
    handler: logging.Handler
    if console is not None:
        handler = terminal_handler(console)
        handler.setFormatter(RedactingFormatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel("INFO" if level == "debug" else "WARNING")  # at INFO, it logs every request


def with_progress(work: Callable[[Callable[[str], None]], _Value]) -> _Value:
    """Call `work` with a function that shows the current step, and return the result of `work`.

    The function shows a status line on a terminal, and otherwise prints one line per step. During the call, hide the
    log lines of the detector's start, unless they are warnings or the log level is ``debug``.
    """
    console = terminal()
    with _warnings_only(_CHATTY):
        if console is None:
            return work(lambda text: print(f"measuring {text}", file=sys.stderr, flush=True))
        with console.status("...") as status:
            return work(lambda text: status.update(f"measuring {text}"))


@contextmanager
def _warnings_only(names: Iterable[str]) -> Iterator[None]:
    """Hide the log lines of the loggers `names`, except warnings and errors, if the log level is ``info``."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        if logger.getEffectiveLevel() == logging.INFO:
            logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class LiveDisplay:
    """Display that redraws one renderable in place, below the log lines of the same console.

    It also works after the terminal is resized.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = Live(console=console, auto_refresh=False)
        with _WRITING:
            self._live.start()
        self._width = console.width

    def stop(self) -> None:
        """Stop redrawing. Leave the last drawing on the screen, and show the cursor."""
        with _WRITING:
            self._live.stop()

    def update(self, renderable: RenderableType) -> None:
        """Replace the previous drawing with `renderable`."""
        width = self.console.width
        with _WRITING:
            if width < self._width:
                self._scroll_away()
            self._width = width
            self._live.update(renderable, refresh=True)

    def _scroll_away(self) -> None:
        """Move all lines of the screen into the scroll-back.

        A terminal that becomes narrower wraps the lines of the previous drawing, so their number is unknown. Erasing
        these lines could also erase log lines above them.
        """
        height = self.console.height
        self._live.update("", refresh=False)
        self._live.stop()
        self.console.control(Control((ControlType.CURSOR_MOVE_TO, 0, height - 1)))
        self.console.print("\n" * (height - 1))
        self.console.control(Control.home())
        self._live = Live(console=self.console, auto_refresh=False)
        self._live.start()
