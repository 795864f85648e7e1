"""Context managers and classes that simulate full and slow disks."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEADLINE_S = 60.0


@contextmanager
def file_size_limit(nbytes: int) -> Iterator[None]:
    """Simulate a full disk: files cannot grow beyond `nbytes`."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Simulate a full disk: the state database in `folder` has no space for another commit."""
    with file_size_limit((folder / "state.db-wal").stat().st_size):
        yield


class SlowDisk:
    """Disk whose fsync does not return until `go` is set."""

    def __init__(self) -> None:
        self.waiting, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.threads: list[str] = []

    def sync(self, descriptor: int) -> None:
        self.threads.append(threading.current_thread().name)
        self.waiting.set()
        assert self.go.wait(DEADLINE_S)
        os.fsync(descriptor)

    def stop(self) -> None:
        """Block each subsequent fsync until `go` is set."""
        self.go.clear()
        self.waiting.clear()
