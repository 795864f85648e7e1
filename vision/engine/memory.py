# mypy: allow-subclassing-any
"""GPU memory for engines: a pool for TensorRT, scratch memory that contexts share, and the memory budget.

The pool allocates large segments from the driver, and hands out parts of them. It accesses the driver through the
protocol `RawMemory`, so that tests run without a GPU.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from vision.engine.library import trt
from vision.errors import DeviceError

_log = logging.getLogger(__name__)

ALIGNMENT_BYTES = 256
"""Alignment that cudaMalloc guarantees and TensorRT expects. Sizes of parts are rounded up to multiples of it."""

SEGMENT_BYTES = 32 << 20
_SEGMENT_STEP = 2 << 20


class RawMemory(Protocol):
    """Source of memory segments: `vision.gpu.memory.CudaMemory`, or a simulation in tests."""

    def allocate(self, size: int) -> int: ...
    def free(self, address: int) -> None: ...
    def synchronize(self, stream: int | None) -> None: ...
    def free_and_total_bytes(self) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True)
class PoolReport:
    """State of a memory pool: the amount of memory that it holds, and the numbers of allocations and failures."""

    reserved_bytes: int  # size of all segments
    used_bytes: int  # size of all parts in use, including rounding
    peak_bytes: int  # maximum of `used_bytes`
    segments: int  # number of segments
    allocations: int  # since the pool was created; does not grow after the start
    failures: int  # number of requests that the pool could not satisfy

    def __str__(self) -> str:
        failed = f", {self.failures} requests refused" if self.failures else ""
        return (
            f"TensorRT's memory pool: {_mib(self.used_bytes)} in use, {_mib(self.peak_bytes)} at most, of "
            f"{_mib(self.reserved_bytes)} in {self.segments} segments{failed}"
        )


@dataclass(slots=True)
class _Segment:
    """Block of memory from the driver. `free` lists the gaps as (offset, size), sorted and never adjacent."""

    address: int
    size: int
    free: list[tuple[int, int]]

    def take(self, size: int, alignment: int) -> int | None:
        """Reserve `size` bytes in the smallest gap that fits, aligned to `alignment`.

        Return the offset, or None if no gap fits.
        """
        best: tuple[int, int, int] | None = None  # size of the gap, index of the gap, offset
        for index, (start, length) in enumerate(self.free):
            offset = -(-(self.address + start) // alignment) * alignment - self.address
            if offset + size <= start + length and (best is None or length < best[0]):
                best = (length, index, offset)
        if best is None:
            return None
        _, index, offset = best
        start, length = self.free[index]
        pieces = ((start, offset - start), (offset + size, start + length - offset - size))
        self.free[index : index + 1] = [piece for piece in pieces if piece[1]]
        return offset

    def give(self, offset: int, size: int) -> None:
        """Free a part that was reserved with `take`, and join it with adjacent gaps."""
        joined: list[tuple[int, int]] = []
        for start, length in sorted([*self.free, (offset, size)]):
            if joined and joined[-1][0] + joined[-1][1] == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((start, length))
        self.free = joined

    @property
    def unused(self) -> bool:
        return self.free == [(0, self.size)]


@dataclass(frozen=True, slots=True)
class _Part:
    segment: _Segment
    stream: int
    offset: int
    size: int


class MemoryPool:
    """Pool that allocates segments of GPU memory from the driver, and reuses parts of them. It is thread-safe.

    Each stream has separate segments, so memory that is freed on a stream can be reused immediately, by later work on
    this stream. If memory is freed on a different stream, the pool first waits for that stream. If memory is freed
    without a stream, the pool first waits for all work on the GPU. If a request exceeds `segment_bytes`, a segment of
    about the requested size is allocated.
    """

    def __init__(self, raw: RawMemory, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._raw = raw
        self._segment_bytes = segment_bytes
        self._segments: dict[int, list[_Segment]] = {}
        self._parts: dict[int, _Part] = {}
        self._lock = threading.RLock()
        self._inside = False
        self._late: list[tuple[int, int | None]] = []
        self._peak = self._used = self._allocations = self._failures = 0
        self.last_failure = ""  # text with the requested and the free size; callers clear it before they call TensorRT

    def allocate(self, size: int, alignment: int = 0, stream: int = 0) -> int:
        """Allocate `size` bytes for work on `stream`. Return the address, or 0 if the size is 0 or memory is lacking.

        `alignment` is a power of two. 0 means no requirement. Every address is aligned to at least 256 bytes.
        """
        if size == 0:
            return 0
        with self._turn():
            return self._allocate(_round_up(size, ALIGNMENT_BYTES), max(alignment, ALIGNMENT_BYTES), stream)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Lock the pool during a `with` block.

        Finalizers can call `deallocate` during the block. At its end, free the memory that they passed to it.
        """
        with self._lock:
            self._inside = True
            try:
                yield
                while self._late:
                    self._deallocate(*self._late.pop())
            finally:
                self._inside = False

    def _allocate(self, size: int, alignment: int, stream: int) -> int:
        for segment in self._segments.get(stream, ()):
            offset = segment.take(size, alignment)
            if offset is not None:
                return self._hand_out(segment, stream, offset, size)
        grown = self._grow(size + (alignment if alignment > ALIGNMENT_BYTES else 0), stream)
        offset = grown.take(size, alignment) if grown else None
        if grown is None or offset is None:
            free_bytes, total_bytes = self._raw.free_and_total_bytes()
            self._failures += 1
            self.last_failure = (
                f"TensorRT requested {_mib(size)}; {_mib(free_bytes)} of {_mib(total_bytes)} are free, the pool holds "
                f"{_mib(self._reserved())} with {_mib(self._used)} in use"
            )
            _log.warning("out of device memory: %s", self.last_failure)
            return 0
        return self._hand_out(grown, stream, offset, size)

    def _grow(self, size: int, stream: int) -> _Segment | None:
        """Allocate a segment of at least `size` bytes. If necessary, free unused segments first.

        Return None if too little memory is free.
        """
        needed = _round_up(size, _SEGMENT_STEP)
        for segment_bytes in dict.fromkeys((max(needed, self._segment_bytes), needed)):
            address = self._raw.allocate(segment_bytes)
            if address:
                break
        else:
            segment_bytes = needed
            address = self._raw.allocate(needed) if self._trim() else 0
        if not address:
            return None
        segment = _Segment(address, segment_bytes, [(0, segment_bytes)])
        self._segments.setdefault(stream, []).append(segment)
        return segment

    def _hand_out(self, segment: _Segment, stream: int, offset: int, size: int) -> int:
        address = segment.address + offset
        self._parts[address] = _Part(segment, stream, offset, size)
        self._used += size
        self._peak = max(self._peak, self._used)
        self._allocations += 1
        return address

    def deallocate(self, address: int, stream: int | None = None) -> bool:
        """Free the memory at `address`. Return False if no memory from `allocate` is in use there.

        `stream` is the stream that used the memory last. It is None if this stream is unknown. If a finalizer calls
        `deallocate` during another call in the same thread, the memory is freed at the end of that call.
        """
        with self._lock:
            if self._inside:
                self._late.append((address, stream))
                return address in self._parts
            with self._turn():
                return self._deallocate(address, stream)

    def _deallocate(self, address: int, stream: int | None) -> bool:
        part = self._parts.get(address)
        if part is None:
            return False
        if stream is None or stream != part.stream:
            self._raw.synchronize(stream)
        del self._parts[address]
        part.segment.give(part.offset, part.size)
        self._used -= part.size
        return True

    def _trim(self) -> int:
        """Free all unused segments. Return their total size in bytes."""
        unused = [(stream, segment) for stream, held in self._segments.items() for segment in held if segment.unused]
        if unused:
            self._raw.synchronize(None)  # work that was queued before a part was freed may still use it
        for stream, segment in unused:
            self._segments[stream].remove(segment)
            self._raw.free(segment.address)
        return sum(segment.size for _, segment in unused)

    def _reserved(self) -> int:
        return sum(segment.size for held in self._segments.values() for segment in held)

    def report(self) -> PoolReport:
        """Return the current state of the pool."""
        with self._lock:
            return PoolReport(
                reserved_bytes=self._reserved(),
                used_bytes=self._used,
                peak_bytes=self._peak,
                segments=sum(map(len, self._segments.values())),
                allocations=self._allocations,
                failures=self._failures,
            )

    def close(self) -> None:
        """Free all memory. Raise `DeviceError` if an engine or a context still uses a part of it. Idempotent."""
        with self._turn():
            self._trim()
            if self._parts:
                raise DeviceError(
                    f"{len(self._parts)} allocations ({_mib(self._used)}) of TensorRT are still in use",
                    hint="close contexts and engines before the memory pool",
                    code="pool-in-use",
                )


def make_allocator(pool: MemoryPool) -> trt.IGpuAllocator:
    """Return an allocator through which TensorRT uses `pool`. Keep the allocator while TensorRT objects use it."""

    class Allocator(trt.IGpuAsyncAllocator):
        def __init__(self) -> None:
            trt.IGpuAsyncAllocator.__init__(self)  # called by name, because pybind otherwise raises TypeError

        def allocate_async(self, size: int, alignment: int, one: int, other: int) -> int:  # type: ignore[override,unused-ignore]
            # Some versions pass (flags, stream), others (stream, flags). Flags are always 0, and so is the default
            # stream. Therefore, a value that is not 0 is the stream.
            return pool.allocate(size, alignment, one or other)

        def deallocate_async(self, memory: int, stream: int) -> bool:  # type: ignore[override,unused-ignore]
            return pool.deallocate(memory, stream)

        def allocate(self, size: int, alignment: int, _flags: int) -> int:  # type: ignore[override,unused-ignore]
            return pool.allocate(size, alignment)

        def deallocate(self, memory: int) -> bool:  # type: ignore[override,unused-ignore]
            return pool.deallocate(memory)

        def reallocate(self, _address: int, _alignment: int, _size: int) -> int:  # type: ignore[override,unused-ignore]
            return 0  # 0 tells TensorRT to allocate new memory and copy

    return Allocator()


# ------------------------------------------------------------------------------------------------ scratch and budget


def shared_scratch_bytes(contexts: Iterable[int]) -> int:
    """Return the size in bytes of the scratch memory that the contexts of one stream share, rounded up for alignment.

    `contexts` contains the size that each context needs. The largest of these sizes suffices, because the contexts run
    one at a time.
    """
    return _round_up(max(contexts), ALIGNMENT_BYTES)


@dataclass(frozen=True, slots=True)
class BudgetLine:
    """Memory for one purpose: `count` items of `item_bytes` each."""

    kind: str  # purpose of the memory, for the log and for error messages
    place: Literal["device", "host"]  # "host" means page-locked memory
    item_bytes: int
    count: int = 1

    @property
    def total_bytes(self) -> int:
        """Size of all items, in bytes."""
        return self.item_bytes * self.count


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Amounts of memory that a detector allocates when it starts, by purpose."""

    lines: tuple[BudgetLine, ...]

    def total_bytes(self, place: Literal["device", "host"]) -> int:
        """Return the total size in bytes of the GPU memory, or of the page-locked host memory, in the budget."""
        return sum(line.total_bytes for line in self.lines if line.place == place)

    def table(self) -> str:
        """Return the budget as a table of several lines, for the log."""
        rows = [("memory", "where", "each", "count", "total")]
        rows += [
            (line.kind, line.place, _mib(line.item_bytes), str(line.count), _mib(line.total_bytes))
            for line in self.lines
        ]
        places: tuple[Literal["device", "host"], ...] = ("device", "host")
        rows += [("total", place, "", "", _mib(self.total_bytes(place))) for place in places]
        return "\n".join("{:<24} {:<6} {:>12} {:>5} {:>12}".format(*row) for row in rows)

    def require(self, free_bytes: int, total_bytes: int, *, shared_with_host: bool = False) -> None:
        """Raise `DeviceError` if the budget exceeds the free memory of the GPU.

        If `shared_with_host` is True, CPU and GPU share memory. In this case, page-locked buffers also count, and the
        limit is the total memory, because the system can free more memory on demand. The error shows the required
        memory, the largest line of the budget, and the free memory.
        """
        needed = self.total_bytes("device") + (self.total_bytes("host") if shared_with_host else 0)
        if needed <= (total_bytes if shared_with_host else free_bytes):
            return
        largest = max(self.lines, key=lambda line: line.total_bytes)
        raise DeviceError(
            f"the detector needs {_mib(needed)} of memory, {_mib(largest.total_bytes)} of it for {largest.kind}; "
            f"{_mib(free_bytes)} of {_mib(total_bytes)} are free",
            hint="lower `detect: {max_batch: ...}` or `batches_in_flight`, or end other programs that use the GPU",
            code="memory-budget",
        )


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
