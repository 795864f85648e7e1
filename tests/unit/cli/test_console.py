"""Tests that the live display and log lines of several threads share the console without remains of old drawings."""

from __future__ import annotations

import io
import logging
import threading

import pyte
import pytest
from rich.console import Console

from tests.unit.cli.pseudo_terminal import screen_lines
from vision.cli.console import LiveDisplay, terminal_handler, with_progress

COLUMNS, ROWS = 60, 20
LOG_LINES = 100


class _Terminal(io.StringIO):
    """Terminal that lets other threads write before each of its own writes."""

    def __init__(self) -> None:
        super().__init__()
        self.screen = pyte.HistoryScreen(COLUMNS, ROWS, history=5000)
        self.screen.set_mode(pyte.modes.LNM)
        self._stream = pyte.Stream(self.screen)

    def write(self, text: str) -> int:
        threading.Event().wait(1e-4)
        self._stream.feed(text)
        return len(text)


def test_log_lines_of_another_thread_leave_one_drawing() -> None:
    terminal = _Terminal()
    console = Console(file=terminal, force_terminal=True, width=COLUMNS, height=ROWS)
    logger = logging.Logger("gate")
    logger.addHandler(terminal_handler(console))
    display = LiveDisplay(console)

    def write_log() -> None:
        for number in range(LOG_LINES):
            logger.warning("line %d", number)

    writer = threading.Thread(target=write_log)
    writer.start()
    drawings = 0
    while writer.is_alive():
        display.update("\n".join(["drawing"] * (1 + drawings % 5)))
        drawings += 1
    writer.join()
    display.update("drawing")
    display.stop()
    lines = screen_lines(terminal.screen)
    assert sum("drawing" in line for line in lines) == 1, lines
    assert [line.split()[-1] for line in lines if "WARNING" in line] == [str(number) for number in range(LOG_LINES)]
    assert drawings > LOG_LINES / 10


def test_progress_hides_the_start_of_the_detector_only_during_the_call(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("vision.detect.open")
    with caplog.at_level(logging.INFO):
        inside = with_progress(lambda _: (logger.isEnabledFor(logging.INFO), logger.isEnabledFor(logging.WARNING)))
        assert inside == (False, True)
        assert logger.isEnabledFor(logging.INFO)
    with caplog.at_level(logging.DEBUG):
        assert with_progress(lambda _: logger.isEnabledFor(logging.DEBUG))
