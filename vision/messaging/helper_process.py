"""Helper processes, which serve sockets for the program. If a helper process ends or hangs, it is restarted."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vision.messaging.own_processes import OWN_PROCESSES, environment, environment_without_secrets

log = logging.getLogger(__name__)

_STOP_S: Final = 1.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
_STEP_S: Final = 0.5  # time that each wait for a line adds to the silence of a process
_CHUNK_BYTES: Final = 65_536

SILENT_S: Final = 30.0
"""Time in seconds without a line after which most helper processes count as hanging."""

DISK_SILENT_S: Final = 120.0
"""The same time for processes that wait for a disk, or up to 60 s for the lock of a database, between two lines."""


@dataclass(slots=True)
class Silence:
    """Measurement of the time in which a process has printed nothing.

    Each wait counts as `_STEP_S`, however long it took, because the machine or this process can be suspended.
    """

    limit_s: float | None
    is_observed: bool = False  # the process has printed its first empty line
    silent_s: float = 0.0

    def heard(self, lines: Sequence[bytes]) -> None:
        """Take note of output of the process, which contains the complete `lines`."""
        self.is_observed, self.silent_s = self.is_observed or b"" in lines, 0.0

    def is_too_long(self) -> bool:
        """Add a wait without output. Return True if the process hangs."""
        self.silent_s += _STEP_S
        return self.is_observed and self.limit_s is not None and self.silent_s >= self.limit_s


class HelperProcess:
    """A Python program that runs until its standard input closes. If it ends earlier, a thread restarts it.

    The program reads its options from the first line of its standard input, as JSON, because command lines are visible
    to all users. Each further line contains new options (see `update`). The thread passes each line that the program
    prints to `on_line`, except empty lines. If `silent_s` is set, the program must call `show_life` when its main loop
    begins, and then print lines regularly.

    Attributes:
        restarts: number of restarts.
        silence: the time in which the current process has printed nothing.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        options: Mapping[str, object],
        *,
        fds: Sequence[int] = (),
        on_line: Callable[[str], None] = lambda _: None,
        on_end: Callable[[], None] = lambda: None,
        stop_s: float = _STOP_S,
        silent_s: float | None = None,
        reads_secrets: bool = False,
    ) -> None:
        """Create the object. `start` starts the process.

        Args:
            name: name of the thread, and of the process in the log.
            arguments: arguments of the Python interpreter.
            options: options of the program.
            fds: descriptors that the program inherits.
            on_line: function that receives each line that the program prints.
            on_end: function that is called after the process has ended and `on_line` has received its last line. It is
                not called if `close` ends the process.
            stop_s: time in seconds that `close` waits for the end of the process before it kills the process.
            silent_s: time in seconds without a line after which the process counts as hanging, and is killed. The time
                begins with the first empty line, because a start can take long. None means that the process can be
                silent.
            reads_secrets: if False, the program does not inherit environment variables that contain a secret of the
                configuration.
        """
        self.restarts = 0
        self.silence = Silence(silent_s)
        self.failed_starts = 0  # number of failed starts since the process last ended
        self._name = name
        self._command = [sys.executable, *arguments]
        self._options = json.dumps(options)
        self._fds = tuple(fds)
        self._on_line, self._on_end = on_line, on_end
        self._stop_s = stop_s
        self._reads_secrets = reads_secrets
        self._closed = threading.Event()
        self._lock = threading.Lock()  # between `close`, `update`, and the start of a new process
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._supervise, name=name, daemon=True)

    def start(self) -> None:
        """Start the process, and the thread that supervises it."""
        self._process = self._start_process()
        self._thread.start()

    def update(self, options: Mapping[str, object]) -> None:
        """Pass new options to the process, without waiting, and to each process that replaces it.

        If the process does not read its input, kill it. The thread then starts a new process.
        """
        with self._lock:
            self._options = json.dumps(options)
            process = self._process
            if process is None or self._closed.is_set():
                return
            line = f"{self._options}\n".encode()
            assert process.stdin is not None
            try:
                is_written = os.write(process.stdin.fileno(), line) == len(line)
            except BlockingIOError:
                is_written = False
            except (OSError, ValueError):  # it has ended
                return
            if not is_written:
                log.warning("the process %s does not read its input, and is started again", self._name)
                process.kill()

    def kill(self) -> None:
        """Kill the process. The thread starts a new process after a pause."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Make the process end, and wait until it has ended. Kill the process after `stop_s` seconds. Idempotent."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            process = self._process
        if process is None:
            return
        _close_input(process)
        try:
            process.wait(self._stop_s)
        except subprocess.TimeoutExpired:
            process.kill()
        self._thread.join()

    def _start_process(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=self._fds,
            env=environment() if self._reads_secrets else environment_without_secrets(),
        )
        OWN_PROCESSES.add(self._name, process.pid)
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended already
            process.stdin.write(f"{self._options}\n")
            process.stdin.flush()
        os.set_blocking(process.stdin.fileno(), False)  # so that `update` never waits
        return process

    def _supervise(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while (process := self._process) is not None and not self._closed.is_set():
            started = time.monotonic()
            for line in self._lines(process):
                self._on_line(line)
            code = process.wait()
            OWN_PROCESSES.remove(process.pid)
            assert process.stdout is not None
            process.stdout.close()
            _close_input(process)
            if self._closed.is_set():
                return
            self._on_end()
            log.warning("the process %s ended (%d), and is started again", self._name, code)
            pause_s = _FIRST_PAUSE_S if time.monotonic() - started > _LONGEST_PAUSE_S else pause_s
            pause_s = self._restart(pause_s)

    def _lines(self, process: subprocess.Popen[str]) -> Iterator[str]:
        """Yield the lines that the process prints, except empty ones, until it ends. Kill it if it hangs."""
        assert process.stdout is not None
        fd, rest = process.stdout.fileno(), b""
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        silence = self.silence = Silence(self.silence.limit_s)
        while True:
            if not poller.poll(_STEP_S * 1000):
                if silence.is_too_long():
                    text = "the process %s has printed nothing for %.0f s, and is killed"
                    log.warning(text, self._name, silence.silent_s)
                    process.kill()
                    silence.silent_s = 0.0
                continue
            chunk = os.read(fd, _CHUNK_BYTES)
            if not chunk:
                return  # an incomplete last line is of a process that was killed
            *lines, rest = (rest + chunk).split(b"\n")
            silence.heard(lines)
            yield from (line.decode(errors="replace") for line in lines if line)

    def _restart(self, pause_s: float) -> float:
        """After `pause_s` seconds, restart the process. Repeat this until a start succeeds.

        Return the next pause in seconds.
        """
        self.failed_starts = 0
        while not self._closed.wait(pause_s):
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            with self._lock:
                if self._closed.is_set():
                    break
                try:
                    self._process = self._start_process()
                except OSError as error:  # too many processes or descriptors, or too little memory
                    self.failed_starts += 1
                    if not self.failed_starts & (self.failed_starts - 1):
                        text = "the process %s cannot be started (attempt %d), and is tried again in %.1f s: %s"
                        log.error(text, self._name, self.failed_starts, pause_s, error)
                    continue
                self.restarts += 1
                break
        return pause_s


def show_life() -> None:
    """Print an empty line, which shows that the main loop of this helper process works."""
    with contextlib.suppress(OSError):  # the program has ended
        print(flush=True)


def _close_input(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(OSError):
        assert process.stdin is not None
        process.stdin.close()
