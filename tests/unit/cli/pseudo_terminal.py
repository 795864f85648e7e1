"""Process in a pseudo-terminal, and the text that a user sees: the screen and the lines that scrolled off it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyte


class PseudoTerminal:
    """Process, and the pseudo-terminal in which the process runs."""

    def __init__(self, command: Sequence[str], columns: int, rows: int) -> None:
        self._master, slave = pty.openpty()
        _set_size(slave, columns, rows)
        environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "", "LINES": "", "LANG": "C.UTF-8"}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self._screen = pyte.HistoryScreen(columns, rows, history=5000)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def lines(self) -> list[str]:
        """Lines of the scroll-back and the screen, without blank lines."""
        return screen_lines(self._screen)

    @property
    def screen(self) -> list[str]:
        """Lines of the screen, without blank lines."""
        return [line.rstrip() for line in self._screen.display if line.strip()]

    @property
    def cursor_hidden(self) -> bool:
        """True if the cursor is hidden."""
        return bool(self._screen.cursor.hidden)

    def read_until(self, text: str, timeout_s: float = 30) -> None:
        """Read output until `text` is on the screen or in the scroll-back."""
        deadline = time.monotonic() + timeout_s
        while text not in "\n".join(self.lines) and self.process.poll() is None:
            assert time.monotonic() < deadline, "\n".join(self.lines)
            self.read_for(0.1)
        assert text in "\n".join(self.lines), "\n".join(self.lines)

    def read_for(self, seconds: float) -> None:
        """Read output for `seconds`, or until the process ends."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not select.select([self._master], [], [], left)[0]:
                return
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the process closed its side
                return
            self._stream.feed(data)

    def write(self, text: str) -> None:
        """Type text into the terminal."""
        os.write(self._master, text.encode())

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the terminal."""
        self._screen.resize(rows, columns)
        _set_size(self._master, columns, rows)

    def interrupt(self) -> int:
        """Press Ctrl-C. Return the exit code."""
        os.kill(self.process.pid, signal.SIGINT)
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read_for(0.1)
        self.read_for(0.2)
        return self.process.wait(1)

    def close(self) -> None:
        """End the process and close the terminal."""
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def screen_lines(screen: pyte.HistoryScreen) -> list[str]:
    """Return the lines of the scroll-back and the screen, without blank lines."""
    history = ["".join(row[x].data for x in range(screen.columns)) for row in screen.history.top]
    return [line.rstrip() for line in [*history, *screen.display] if line.strip()]


def _set_size(descriptor: int, columns: int, rows: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextmanager
def pseudo_terminal(command: Sequence[str], columns: int = 120, rows: int = 30) -> Iterator[PseudoTerminal]:
    """Start `command` in a terminal of this size. End the command at the end of the `with` block."""
    terminal = PseudoTerminal(command, columns, rows)
    try:
        yield terminal
    finally:
        terminal.close()
