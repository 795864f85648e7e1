"""Emulated GPU: a thread for each stream, events, graphs as lists of recorded work, and host memory as GPU memory.

Work is asynchronous, as on a real GPU. Therefore, tests can detect results that are read too early, and buffers that
are reused too early.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

Work = Callable[[], None]


class Failed(Exception):
    """Failure of a CUDA call, with the status code that the call returns."""

    def __init__(self, code: int) -> None:
        super().__init__(str(code))
        self.code = code


class _Worker(threading.Thread):
    """Thread that executes the work of a stream."""


class Stream:
    """Queue of work. During a capture, the stream records work instead of executing it."""

    def __init__(self) -> None:
        self.captured: list[Work] | None = None
        self.running = threading.Lock()  # held while work is done
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread = _Worker(target=self._run, name="emulated stream", daemon=True)
        self._thread.start()

    def put(self, work: Work) -> None:
        if self.captured is not None:
            self.captured.append(work)
        else:
            self._work.put(work)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            if gpu.fault == 0:
                try:
                    with self.running:
                        work()
                except Failed as failed:
                    gpu.fault = failed.code

    def synchronize(self) -> None:
        if self.captured is not None:
            gpu.broken_capture(self)
        self.finish()
        gpu.raise_fault()

    def finish(self) -> None:
        """Wait until all queued work has finished, or until a fault occurs."""
        done = threading.Event()
        self._work.put(done.set)
        while gpu.fault == 0 and self._thread.is_alive() and not done.wait(0.01):
            pass

    def close(self) -> None:
        self._work.put(None)
        self._thread.join()


class Event:
    """Point in a stream at which the event was most recently recorded. An event without a record counts as reached."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.reached.set()

    def record(self, stream: Stream) -> None:
        reached = self.reached = threading.Event()
        stream.put(reached.set)


@dataclass
class Gpu:
    """State of the emulated GPU: its objects, its memory, and the errors that tests simulate."""

    objects: dict[int, object] = field(default_factory=dict)
    memory: dict[int, np.ndarray] = field(default_factory=dict)
    files: dict[int, int] = field(default_factory=dict)  # descriptor of shareable memory, by address
    total_bytes: int = 1 << 33
    count_status: int = 0  # of cudaGetDeviceCount: 35 for a driver that is too old, 100 for no GPU
    driver_version: int = 13000
    fault: int = 0  # status that every call gives once it is not 0, as on a real GPU
    calls: int = 0
    paused: threading.Event = field(default_factory=threading.Event)
    _next: int = 1000

    def keep(self, value: object) -> int:
        self._next += 1
        self.objects[self._next] = value
        return self._next

    def get(self, handle: object) -> object:
        return self.objects[int(handle)]  # type: ignore[call-overload]

    def drop(self, handle: object) -> object:
        return self.objects.pop(int(handle))  # type: ignore[call-overload]

    @property
    def used_bytes(self) -> int:
        return sum(array.nbytes for array in list(self.memory.values()))  # other threads change the dict

    def allocate(self, size: int, *, shareable: bool = False) -> int:
        """Allocate GPU memory, and return its address. If `shareable` is True, other processes can map the memory."""
        if self.used_bytes + size > self.total_bytes:
            raise Failed(2)
        if shareable:
            fd = os.memfd_create("emulated-gpu-memory")
            os.ftruncate(fd, size + 256)
            address = self.map(fd, size + 256)
            self.files[address] = fd
            return address
        array = np.full(size + 256, 0xA5, np.uint8)
        address = -(-array.ctypes.data // 256) * 256
        self.memory[address] = array
        return address

    def map(self, fd: int, size: int) -> int:
        """Map `size` bytes of an open file as GPU memory. Return the address of the memory."""
        return self.register(np.frombuffer(mmap.mmap(fd, size), np.uint8))

    def register(self, array: np.ndarray) -> int:
        """Register host memory with the GPU, and return its address."""
        self.memory[array.ctypes.data] = array
        return int(array.ctypes.data)

    def free(self, address: int) -> None:
        """Free memory after all work has finished, as cudaFree and cudaFreeHost do."""
        self.forget(address)[:] = 0x5A
        if address in self.files:
            os.close(self.files.pop(address))

    def forget(self, address: int) -> np.ndarray:
        """Wait until all work has finished. Then remove memory from the GPU, and return the memory."""
        if address not in self.memory:
            raise Failed(1)
        if not isinstance(threading.current_thread(), _Worker):
            for stream in [each for each in list(self.objects.values()) if isinstance(each, Stream)]:
                stream.finish()
                if self.fault:  # on a real GPU, the work in progress would have ended by now
                    with stream.running:
                        pass
        return self.memory.pop(address)

    def raise_fault(self) -> None:
        if self.fault:
            raise Failed(self.fault)

    def broken_capture(self, stream: Stream) -> None:
        stream.captured = None
        raise Failed(900)


gpu = Gpu()


def copy(target: int, source: int, size: int) -> None:
    ctypes.memmove(target, source, size)
