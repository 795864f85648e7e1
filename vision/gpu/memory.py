"""Memory that CUDA gives: the GPU's, and page-locked memory of the host; what is held of them, and copies between them.

As in `vision.gpu.cuda`, everything has one owner who closes it, and every error says what the memory was for.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from vision.errors import DeviceError, DeviceMissing, OutOfMemory
from vision.gpu.cuda import Resource, Stream, check, failure, memory_info, queued, released
from vision.gpu.driver_calls import calls

try:
    from cuda.bindings import runtime
except ImportError as error:  # vision.gpu.cuda has said more
    raise DeviceMissing(f"cuda-python cannot be imported: {error}") from error

_TO_DEVICE = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
_TO_HOST = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
_BY_ADDRESS = runtime.cudaMemcpyKind.cudaMemcpyDefault
_SUCCESS = runtime.cudaError_t.cudaSuccess
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation and CUDA_ERROR_OUT_OF_MEMORY


@dataclass(frozen=True, slots=True)
class Allocated:
    """What the process holds through this module, and how often it has asked: nothing may ask once it is running."""

    device_bytes: int
    host_bytes: int  # page-locked
    calls: int


class _Ledger:
    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finaliser may come in the middle
        self._now = Allocated(0, 0, 0)

    def add(self, *, device_bytes: int = 0, host_bytes: int = 0, calls: int = 1) -> None:
        with self._lock:
            now = self._now
            self._now = Allocated(now.device_bytes + device_bytes, now.host_bytes + host_bytes, now.calls + calls)

    def snapshot(self) -> Allocated:
        return self._now


_ledger = _Ledger()


def allocated() -> Allocated:
    """What is held now."""
    return _ledger.snapshot()


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"


def out_of_memory(nbytes: int, purpose: str, kind: str, free_bytes: int, total_bytes: int) -> OutOfMemory:
    """What to say when an allocation failed for lack of memory."""
    return OutOfMemory(
        f"{purpose}: {_mib(nbytes)} of {kind} memory were asked for; {_mib(free_bytes)} of "
        f"{_mib(total_bytes)} device memory are free, {_mib(allocated().device_bytes)} are held by vision",
        hint="lower detect.max_batch or detect.batches_in_flight, take a smaller model, or end what else uses the GPU",
    )


def _refuse(status: Any, nbytes: int, purpose: str, kind: str) -> DeviceError:
    if int(status) != _OUT_OF_MEMORY:
        return failure(status, f"allocating {_mib(nbytes)} of {kind} memory for {purpose}")
    runtime.cudaGetLastError()  # lack of memory does not stick, but the next call would tell it again
    return out_of_memory(nbytes, purpose, kind, *memory_info())


class DeviceBuffer(Resource):
    """Memory of the GPU, aligned to 256 bytes. Not initialised."""

    def __init__(self, nbytes: int, purpose: str) -> None:
        """
        Raises:
            OutOfMemory: what was asked for, and what is free.
        """
        self.nbytes = max(nbytes, 1)
        status, pointer = runtime.cudaMalloc(self.nbytes)
        if status != _SUCCESS:
            raise _refuse(status, self.nbytes, purpose, "device")
        self.address = int(pointer)
        self._opened = True
        _ledger.add(device_bytes=self.nbytes)

    def fill(self, byte: int, stream: Stream) -> None:
        """Set every byte."""
        check(runtime.cudaMemsetAsync(self.address, byte, self.nbytes, stream.handle), "filling device memory")

    def write(self, array: NDArray[Any]) -> None:
        """Copy a contiguous array to the beginning, and wait until it is there."""
        if array.nbytes > self.nbytes:
            raise ValueError(f"{array.nbytes} bytes do not fit into {self.nbytes}")
        check(runtime.cudaMemcpy(self.address, array.ctypes.data, array.nbytes, _TO_DEVICE), "writing device memory")

    def read(self, shape: tuple[int, ...], dtype: npt.DTypeLike, offset: int = 0) -> NDArray[Any]:
        """A copy of what is there once the streams that write to it have been waited for."""
        array: NDArray[Any] = np.empty(shape, dtype)
        if offset + array.nbytes > self.nbytes:
            raise ValueError(f"{array.nbytes} bytes from {offset} of {self.nbytes}")
        check(
            runtime.cudaMemcpy(array.ctypes.data, self.address + offset, array.nbytes, _TO_HOST),
            "reading device memory",
        )
        return array

    def _release(self) -> None:
        _ledger.add(device_bytes=-self.nbytes, calls=0)
        released(runtime.cudaFree(self.address), "device memory")


class _Lender:
    """What the arrays of a page-locked buffer hold on to."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3}


class HostBuffer(Resource):
    """Page-locked memory of the host, which the GPU copies from at full speed or reads and writes in place.

    After `close` no new arrays can be had from it; the memory itself goes when the last array on it goes, so that a
    camera's thread that still writes into its frame while the detector closes does no harm.
    """

    def __init__(self, nbytes: int, purpose: str) -> None:
        """
        Raises:
            OutOfMemory: with the size that was asked for and the free memory.
        """
        self.nbytes = max(nbytes, 1)
        flags = runtime.cudaHostAllocMapped | runtime.cudaHostAllocPortable
        status, pointer = runtime.cudaHostAlloc(self.nbytes, flags)
        if status != _SUCCESS:
            raise _refuse(status, self.nbytes, purpose, "page-locked")
        self.address = int(pointer)
        _ledger.add(host_bytes=self.nbytes)
        lender = _Lender(self.address, self.nbytes)
        weakref.finalize(lender, _free_host, self.address, self.nbytes).atexit = False
        self._bytes: NDArray[np.uint8] | None = np.asarray(lender)
        self.device_address = int(
            check(runtime.cudaHostGetDevicePointer(self.address, 0), "mapping page-locked memory")
        )
        self._opened = True

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8, offset: int = 0) -> NDArray[Any]:
        """A view of `shape` that keeps the memory alive.

        Raises:
            ValueError: the buffer is closed, or shorter than that.
        """
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if self._bytes is None or offset + nbytes > self.nbytes:
            raise ValueError(f"{nbytes} bytes from {offset} of a buffer of {0 if self._bytes is None else self.nbytes}")
        return self._bytes[offset : offset + nbytes].view(dtype).reshape(shape)

    def _release(self) -> None:
        self._bytes = None


_abandoned = threading.Event()


def abandon() -> None:
    """The GPU hangs and the process is about to end: page-locked memory is left to that, since freeing it waits too."""
    _abandoned.set()


def free_unless_abandoned(buffer: Resource) -> None:
    """Close a buffer whose last user is gone."""
    if not _abandoned.is_set():
        buffer.close()


def _free_host(address: int, nbytes: int) -> None:
    if _abandoned.is_set():
        return
    _ledger.add(host_bytes=-nbytes, calls=0)
    released(runtime.cudaFreeHost(address), "page-locked memory")


def queue_to_device(target: int, source: int, nbytes: int, stream: Stream) -> None:
    """Queue a copy from page-locked memory, and keep the GIL, which from other memory would be held for long."""
    queued(calls().copy_to_device(target, source, nbytes, stream.address), f"copying {nbytes} bytes to the device")


def copy_to_device(target: int, source: int, nbytes: int, stream: Stream) -> None:
    """Queue a copy. From page-locked memory it returns at once; pageable memory is read before it returns."""
    (status,) = runtime.cudaMemcpyAsync(target, source, nbytes, _TO_DEVICE, stream.handle)
    if status != _SUCCESS:
        raise failure(status, f"copying {nbytes} bytes to the device")


def copy_to_host(target: int, source: int, nbytes: int, stream: Stream) -> None:
    """Queue a copy into page-locked memory."""
    check(runtime.cudaMemcpyAsync(target, source, nbytes, _TO_HOST, stream.handle), f"copying {nbytes} bytes back")


def copy_rows(target: int, source: int, stream: Stream, *, rows: int, row_bytes: int, pitch_bytes: int) -> None:
    """Queue a copy of `rows` rows that lie `pitch_bytes` apart at `source`; on the GPU or between it and the host."""
    copied = runtime.cudaMemcpy2DAsync(
        target, row_bytes, source, pitch_bytes, row_bytes, rows, _BY_ADDRESS, stream.handle
    )
    check(copied, f"copying {rows} rows of {row_bytes} bytes")


def read_rows(target: NDArray[np.uint8], source: int, *, pitch_bytes: int) -> None:
    """Fill `target` (rows, bytes of a row; contiguous) with rows that lie `pitch_bytes` apart on the GPU, at once."""
    rows, row_bytes = target.shape
    copied = runtime.cudaMemcpy2D(target.ctypes.data, row_bytes, source, pitch_bytes, row_bytes, rows, _TO_HOST)
    check(copied, f"reading {rows} rows of {row_bytes} bytes")
