"""CPU time and memory of a program and its child processes, observed from a separate process.

The search for child processes takes tens of milliseconds. In the process that receives the messages of the program, the
search would delay their receipt.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psutil

from vision.runtime.worker_process import worker_name


@dataclass(slots=True)
class _Processes:
    """Program and its child processes, by name. `reset` starts a measurement."""

    program: psutil.Process
    begin_s: dict[int, float] = field(default_factory=dict)
    last_s: dict[int, tuple[str, float]] = field(default_factory=dict)

    def reset(self) -> None:
        self.begin_s = {process.pid: _cpu_s(process) for process in self._all()}
        self.last_s.clear()

    def look(self) -> None:
        """Record the CPU times of all processes, because the time of a process cannot be read after it ends."""
        for process in self._all():
            with suppress(psutil.Error):
                self.last_s[process.pid] = _name(process), _cpu_s(process) - self.begin_s.get(process.pid, 0.0)

    def usage(self, seconds: float) -> tuple[dict[str, float], float]:
        """Return the mean number of CPU cores that each process used, by name, and the total resident memory in MiB.

        `seconds` is the time since `reset`.
        """
        self.look()
        total: Counter[str] = Counter()
        for pid, (name, used_s) in self.last_s.items():
            total["main process" if pid == self.program.pid else name] += round(used_s / seconds, 3)  # type: ignore[assignment]
        memory_bytes = 0
        for process in self._all():
            with suppress(psutil.Error):
                memory_bytes += process.memory_info().rss
        return {name: round(cores, 2) for name, cores in sorted(total.items())}, round(memory_bytes / 2**20, 1)

    def kill(self, name: str, turn: int) -> tuple[str, float]:
        """Kill one of the workers whose names contain `name`. Consecutive values of `turn` select different workers.

        Return the name of the worker, and the time of the kill on the monotonic clock, in seconds. If there is no
        worker, the name is an empty string.
        """
        workers = sorted((own, child.pid) for child in self._all()[1:] if (own := _name(child)) and name in own)
        if not workers:
            return "", time.monotonic()
        own, pid = workers[turn % len(workers)]
        psutil.Process(pid).kill()
        return own, time.monotonic()

    def _all(self) -> list[psutil.Process]:
        return [self.program, *self.program.children(recursive=True)]


def _name(process: psutil.Process) -> str:
    """Return the name of a worker, or an empty string if the process is not a worker or has ended."""
    with suppress(psutil.Error):
        return worker_name(process.cmdline())
    return ""


def _cpu_s(process: psutil.Process) -> float:
    with suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


_watched: list[_Processes] = []  # in the process that watches


def _attach(pid: int) -> None:
    _watched.append(_Processes(psutil.Process(pid)))


def _reset() -> None:
    _watched[0].reset()


def _look() -> None:
    _watched[0].look()


def _usage(seconds: float) -> tuple[dict[str, float], float]:
    return _watched[0].usage(seconds)


def _kill(name: str, turn: int) -> tuple[str, float]:
    return _watched[0].kill(name, turn)


@dataclass(frozen=True, slots=True)
class ProcessWatch:
    """Observer of a program. The observer runs in a separate process, for which only `usage` waits."""

    _executor: ProcessPoolExecutor

    def reset(self) -> None:
        """Start a measurement of the CPU time."""
        self._executor.submit(_reset)

    def look(self) -> None:
        """Record the CPU times of all processes. Call this every second, because times of ended processes are lost."""
        self._executor.submit(_look)

    def kill(self, name: str, turn: int) -> Future[tuple[str, float]]:
        """Kill a worker. See `_Processes.kill`."""
        return self._executor.submit(_kill, name, turn)

    def usage(self, seconds: float) -> tuple[dict[str, float], float]:
        """Return the CPU cores that each process used since `reset`, `seconds` ago, and the total memory in MiB."""
        return self._executor.submit(_usage, seconds).result()


@contextmanager
def watching(pid: int) -> Iterator[ProcessWatch]:
    """Watch the program `pid` and its child processes until the end of the `with` block."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_attach, initargs=(pid,)) as executor:
        yield ProcessWatch(executor)
