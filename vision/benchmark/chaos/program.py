"""Program under test: `vision run` in a separate process, which is restarted when it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import psutil

from vision.benchmark.chaos.record import ProcessEnd, ProgramEnd, Record, Sample
from vision.messaging import relay
from vision.runtime.worker_process import worker_name

_RESTART_S: Final = 0.2  # pause before the program is started again
_STOP_S: Final = 20.0  # time for an orderly stop
_TRACEBACKS: Final = ("Traceback (most recent call last)", "Fatal Python error")


class Program:
    """Supervisor that starts the program, and records the ends of the program and of its processes.

    It is not thread-safe.
    """

    def __init__(self, config: Path, log: Path, environment: Mapping[str, str], record: Record) -> None:
        """Prepare the program, which `poll` starts.

        Args:
            config: camera.yaml of the program.
            log: file to which the output of the program is appended.
            environment: environment variables of the program, in addition to the variables of this process.
            record: the record, to which ends and samples are added.
        """
        self._command = [sys.executable, "-m", "vision", "--log-level", "info", "run", str(config)]
        self._log = log
        self._environment = {**os.environ, **environment}
        self._record = record
        self._process: subprocess.Popen[bytes] | None = None
        self._children: dict[int, str] = {}
        self._start_at_s = 0.0
        self.expected = ""  # the fault that makes the program end; empty if there is none
        self.starts = 0  # number of starts

    @property
    def pid(self) -> int | None:
        """Process id of the program, or None while it does not run."""
        return None if self._process is None else self._process.pid

    @property
    def children(self) -> dict[int, str]:
        """Names of the child processes of the program that ran during the previous `poll`, by process id."""
        return dict(self._children)

    def poll(self) -> None:
        """Start the program if it does not run and the pause before a restart is over.

        Record each end of the program or of one of its processes.
        """
        now_ns = time.monotonic_ns()
        if self._process is None:
            if time.monotonic() >= self._start_at_s:
                self._start()
            return
        code = self._process.poll()
        if code is not None:
            self._record.program_ends.append(ProgramEnd(now_ns, code, self.expected))
            self.expected = ""
            self._process, self._children = None, {}
            self._start_at_s = time.monotonic() + _RESTART_S
            return
        present = dict(_processes(self._process.pid))
        for pid, name in self._children.items():
            if pid not in present:
                self._record.process_ends.append(ProcessEnd(now_ns, name))
        self._children = present

    def sample(self) -> None:
        """Record the memory, threads, and descriptors of the program and of its child processes."""
        if self._process is None:
            return
        now_ns = time.monotonic_ns()
        for pid, name in [(self._process.pid, "main"), *self._children.items()]:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                with process.oneshot():
                    memory = process.memory_info()
                    own_bytes = memory.rss - memory.shared
                    sample = Sample(now_ns, pid, name, own_bytes, process.num_threads(), process.num_fds())
                self._record.samples.append(sample)

    def kill(self, cause: str) -> None:
        """Kill the program. `cause` explains its end in the record."""
        self.expected = cause
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """Stop the program with SIGTERM, and record its end. Kill the program if it does not end within 20 s."""
        process = self._process
        if process is None:
            return
        for pid in (process.pid, *self._children):
            send(pid, signal.SIGCONT)
        process.terminate()
        try:
            code = process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        self._record.program_ends.append(ProgramEnd(time.monotonic_ns(), code, "stop" if code == 0 else ""))
        self._process = None

    def tracebacks(self) -> int:
        """Return the number of tracebacks in the log."""
        with self._log.open(encoding="utf-8", errors="replace") as lines:
            return sum(line.startswith(_TRACEBACKS) for line in lines)

    def _start(self) -> None:
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,  # Ctrl-C ends the run, which stops the program
            )
        self.starts += 1


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process, if it still exists."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _processes(pid: int) -> Iterator[tuple[int, str]]:
    """Yield the id and the name of each Python process that descends from the process `pid`."""
    commands: dict[int, list[str]] = {}
    with contextlib.suppress(psutil.Error):
        program = psutil.Process(pid)
        commands[pid] = program.cmdline()
        for child in program.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                commands[child.pid] = command = child.cmdline()
                # A process with the command line of its parent is a fork that is about to run a different program.
                is_fork = command == commands.get(child.ppid())
                if child.status() != psutil.STATUS_ZOMBIE and command[:1] == [sys.executable] and not is_fork:
                    yield child.pid, _name(command)


def _name(command: list[str]) -> str:
    return worker_name(command) or ("relay" if str(relay.__file__) in command else "helper")
