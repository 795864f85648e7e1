"""SIGTERM and SIGINT: the first asks for an orderly end, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_STOP, _QUIT = b"s", b"q"
_SHOW_CURSOR = b"\x1b[?25h\n"


class Signals:
    """Sets `stop` at the first signal. A context manager: on exit its thread ends.

    The handler interrupts arbitrary Python code of the main thread, which may hold a lock of the event or of the
    console. So it only writes into a pipe, and a thread does the rest.
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
