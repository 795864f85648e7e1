"""SIGTERM and SIGINT: the first asks for an orderly end, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

from vision.console import error_console

_STOP, _QUIT = b"s", b"q"
_SHOW_CURSOR = b"\x1b[?25h\n"


class Signals:
    """Sets `stop` at the first signal. A context manager: on exit its thread ends.

    The handler interrupts arbitrary Python code of the main thread, which may hold a lock of the event or of the
    console. So it only writes into a pipe, and a thread does the rest.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._received = False
        self._reader, self._writer = os.pipe()
        self._thread = threading.Thread(target=self._wait, name="signals", daemon=True)

    def __enter__(self) -> Signals:
        self._thread.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.write(self._writer, _QUIT)
        self._thread.join()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._received:
            if os.isatty(2):
                os.write(2, _SHOW_CURSOR)  # a live table hides it
            os._exit(128 + number)
        self._received = True
        os.write(self._writer, _STOP)

    def _wait(self) -> None:
        while os.read(self._reader, 1) == _STOP:
            self.stop.set()
            error_console().print("stopping; press Ctrl-C again to quit at once", soft_wrap=True, highlight=False)


def restore_default_signals() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, and SIGTERM end the process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
