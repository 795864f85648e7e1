"""Child processes of tests, with output line by line and deadlines. The end of a test kills its processes."""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


class Program:
    """Child process. A thread reads its standard output, so that the process never waits for the test."""

    def __init__(self, command: Sequence[str | Path]) -> None:
        self._process = subprocess.Popen(
            [str(part) for part in command], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, name="reader")
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))

    def line(self, timeout_s: float = 60.0) -> str:
        """Return the next line of output. Raise `AssertionError` if none arrives in time."""
        try:
            return self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise AssertionError(f"no output for {timeout_s} s; exit code: {self._process.poll()}") from None

    def wait_line(self, wanted: Callable[[str], bool], timeout_s: float = 60.0) -> str:
        """Return the next line of output for which `wanted` is true."""
        deadline = time.monotonic() + timeout_s
        seen = []
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=left_s)
            except queue.Empty:
                break
            if wanted(line):
                return line
            seen.append(line)
        raise AssertionError(f"the line did not come; exit code: {self._process.poll()}, output: {seen[-10:]}")

    def pending(self) -> list[str]:
        """Return the received lines that have not been returned yet."""
        lines = []
        with contextlib.suppress(queue.Empty):
            while True:
                lines.append(self._lines.get_nowait())
        return lines

    def send(self, number: signal.Signals) -> None:
        """Send the signal `number` to the process."""
        self._process.send_signal(number)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait until the process ends. Return its exit code."""
        return self._process.wait(timeout_s)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def python(*arguments: str | Path) -> Program:
    """Start a Python program with the interpreter that runs the tests."""
    return Program([sys.executable, *arguments])


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Poll until `condition` holds. Fail with the text `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.02)  # conditions often search all messages, in the process of the program that they wait for
