"""The processes that the program has started, and the memory use of these processes and of the main process."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vision.errors import registered_secrets

MAIN: Final = "main"
"""Name of the main process in `OwnProcesses.memory_bytes`."""

_ONE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1"}
"""Environment variable that limits OpenBLAS to one thread.

Without this variable, OpenBLAS starts one thread per core when a process imports NumPy. These threads use all cores for
a short time before they wait, and would delay the other processes. The program needs only one such thread.
"""

_DISTINCT: Final = 8  # characters of a secret that other values do not contain by chance
_INTERVAL_NS: Final = 1_000_000_000
_LONGEST_PAUSE_NS: Final = 10_000_000_000
_PAUSE: Final = 1000  # a pause is this many times as long as the measurement before it


def environment(**further: str) -> dict[str, str]:
    """Return the environment variables for a new process: the variables of the program, and `further`.

    Unless the environment of the program sets the number of OpenBLAS threads, the new process starts none.
    """
    return {**_ONE_THREAD, **os.environ, **further}


def environment_without_secrets() -> dict[str, str]:
    """Return the environment variables for a new process, except those that contain a secret of the configuration.

    A secret with fewer than 8 characters can be a part of an unrelated value. Therefore, it must be the whole value.
    """
    secrets = registered_secrets()
    return {
        name: value
        for name, value in environment().items()
        if not any(secret == value or (len(secret) >= _DISTINCT and secret in value) for secret in secrets)
    }


class OwnProcesses:
    """The running processes of the program, and their memory.

    Any thread can call `add` and `remove`. One thread calls `memory_bytes`.
    """

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Start with the main process. `clock` returns nanoseconds."""
        self._clock = clock
        self._names: dict[int, str] = {}  # names of the other processes, by process id
        self._due_ns = clock()
        self._last: dict[int, tuple[str, int]] = {}  # name and bytes of each process in the last measurement

    def add(self, name: str, pid: int) -> None:
        """Add a process that was started. Several processes can have the same name."""
        self._names[pid] = name

    def remove(self, pid: int) -> None:
        """Remove a process that has ended, because the system can give its id to a different process."""
        self._names.pop(pid, None)

    def memory_bytes(self) -> dict[str, int]:
        """Return the memory of the processes in bytes, by name.

        The memory of an added process includes the memory of the processes that it started. The pause after a
        measurement is 1000 times as long as the measurement, but at least 1 s and at most 10 s. During a pause, the
        result does not change.
        """
        begin_ns = self._clock()
        if begin_ns >= self._due_ns:
            self._measure()
            end_ns = self._clock()
            pause_ns = min(_PAUSE * (end_ns - begin_ns), _LONGEST_PAUSE_NS)
            self._due_ns = end_ns + max(_INTERVAL_NS, pause_ns)
        total: Counter[str] = Counter()
        for name, used in self._last.values():
            total[name] += used
        return dict(total)

    def _measure(self) -> None:
        before, self._last = self._last, {os.getpid(): (MAIN, _memory_bytes(os.getpid()) or 0)}
        for pid, name in list(self._names.items()):
            used = _memory_bytes(pid)
            if used is None:  # it has just ended, or this process has too many open files
                self._last[pid] = before.get(pid, (name, 0))
            else:
                self._last[pid] = name, used + sum(_memory_bytes(child) or 0 for child in _children(pid))


OWN_PROCESSES: Final = OwnProcesses()
"""The processes that this process has started."""


def _memory_bytes(pid: int) -> int | None:
    """Return the memory of a process in bytes, or None if the size cannot be read.

    A page that N processes share counts as 1/N of its size. If the kernel does not report this number, return the
    resident memory, in which shared pages count completely.
    """
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def _children(pid: int) -> list[int]:
    """Return the ids of the processes that a process's first thread started.

    Return no ids if the kernel does not provide them.
    """
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split()]
    return []
