"""GPU memory and page-locked host memory: allocations and their total size, copies, and buffers for frames.

As in `vision.gpu.cuda`, every object has one owner, which closes it. Every error contains the purpose of the memory.
"""

from __future__ import annotations

import ctypes
import logging
import math
import threading
import weakref
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from cuda.bindings import runtime
from numpy.typing import NDArray

from vision.errors import DeviceError, OutOfMemory
from vision.gpu.cuda import Resource, Stream, check, driver_calls, failure, memory_info, queued, released
from vision.types import FrameBuffer, PixelFormat, frame_shape

_log = logging.getLogger(__name__)

_TO_DEVICE = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
_TO_HOST = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
_BY_ADDRESS = runtime.cudaMemcpyKind.cudaMemcpyDefault
_SUCCESS = runtime.cudaError_t.cudaSuccess


@dataclass(frozen=True, slots=True)
class Allocated:
    """Memory that the process holds through this module, and the number of allocations."""

    device_bytes: int
    host_bytes: int  # page-locked
    calls: int


class _Ledger:
    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer can run while the lock is held
        self.now = Allocated(0, 0, 0)

    def add(self, *, device_bytes: int = 0, host_bytes: int = 0, calls: int = 1) -> None:
        with self._lock:
            now = self.now
            self.now = Allocated(now.device_bytes + device_bytes, now.host_bytes + host_bytes, now.calls + calls)


_ledger = _Ledger()


def allocated() -> Allocated:
    """Return the memory that is currently held."""
    return _ledger.now


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"


def _refuse(status: Any, nbytes: int, purpose: str, kind: str) -> DeviceError:
    """Return the error for an allocation that failed."""
    if status != runtime.cudaError_t.cudaErrorMemoryAllocation:
        return failure(status, f"allocating {_mib(nbytes)} of {kind} memory for {purpose}")
    runtime.cudaGetLastError()  # out of memory does not persist, but the next call would report it again
    free_bytes, total_bytes = memory_info()
    return OutOfMemory(
        f"{purpose}: {_mib(nbytes)} of {kind} memory were requested; {_mib(free_bytes)} of "
        f"{_mib(total_bytes)} device memory are free, {_mib(allocated().device_bytes)} are held by vision",
        hint="lower detect.max_batch or detect.batches_in_flight, use a smaller model, or end other GPU programs",
        code="out-of-memory",
    )


class DeviceBuffer(Resource):
    """GPU memory, aligned to 256 bytes, not initialized. Raises `OutOfMemory` with the requested and free memory."""

    def __init__(self, nbytes: int, purpose: str) -> None:
        self.nbytes = max(nbytes, 1)
        status, pointer = runtime.cudaMalloc(self.nbytes)
        if status != _SUCCESS:
            raise _refuse(status, self.nbytes, purpose, "device")
        self.address = int(pointer)
        self._opened = True
        _ledger.add(device_bytes=self.nbytes)

    def fill(self, byte: int, stream: Stream) -> None:
        """Queue an operation on `stream` that sets every byte to `byte`."""
        check(runtime.cudaMemsetAsync(self.address, byte, self.nbytes, stream.handle), "filling device memory")

    def write(self, array: NDArray[Any]) -> None:
        """Copy a contiguous array to the start of the memory, and wait for the copy."""
        if array.nbytes > self.nbytes:
            raise ValueError(f"{array.nbytes} bytes do not fit into {self.nbytes}")
        check(runtime.cudaMemcpy(self.address, array.ctypes.data, array.nbytes, _TO_DEVICE), "writing device memory")

    def read(self, shape: tuple[int, ...], dtype: npt.DTypeLike, offset: int = 0) -> NDArray[Any]:
        """Return a copy of the contents. Work that writes to the memory must have ended."""
        array: NDArray[Any] = np.empty(shape, dtype)
        if offset + array.nbytes > self.nbytes:
            raise ValueError(f"{array.nbytes} bytes from {offset} of {self.nbytes}")
        copied = runtime.cudaMemcpy(array.ctypes.data, self.address + offset, array.nbytes, _TO_HOST)
        check(copied, "reading device memory")
        return array

    def _release(self) -> None:
        _ledger.add(device_bytes=-self.nbytes, calls=0)
        released(runtime.cudaFree(self.address), "device memory")


class CudaMemory:
    """Allocates segments for a `vision.engine.memory.MemoryPool`, and counts them like all other memory."""

    def __init__(self) -> None:
        self._buffers: dict[int, DeviceBuffer] = {}

    def allocate(self, size: int) -> int:
        """Allocate `size` bytes. Return the address, aligned to 256 bytes, or 0 if there is too little memory."""
        try:
            buffer = DeviceBuffer(size, "TensorRT")
        except DeviceError as error:
            _log.debug("%s", error)
            return 0
        self._buffers[buffer.address] = buffer
        return buffer.address

    def free(self, address: int) -> None:
        """Free memory from `allocate`. It must no longer be in use."""
        self._buffers.pop(address).close()

    def synchronize(self, stream: int | None) -> None:
        """Wait for the stream with this handle. If None, wait for all work on the GPU."""
        done = runtime.cudaDeviceSynchronize() if stream is None else runtime.cudaStreamSynchronize(stream)
        check(done, "waiting for TensorRT")

    def free_and_total_bytes(self) -> tuple[int, int]:
        """Return the free and the total memory of the GPU, in bytes."""
        return memory_info()


class HostBuffer(Resource):
    """Page-locked host memory. The GPU copies from it at full speed, or reads and writes it in place.

    After `close`, it returns no new arrays. The memory is freed with the last array that uses it, so that a camera's
    thread can still write to its frame while the detector closes. Raises `OutOfMemory` with the requested and free
    memory.
    """

    def __init__(self, nbytes: int, purpose: str) -> None:
        self.nbytes = max(nbytes, 1)
        flags = runtime.cudaHostAllocMapped | runtime.cudaHostAllocPortable
        status, pointer = runtime.cudaHostAlloc(self.nbytes, flags)
        if status != _SUCCESS:
            raise _refuse(status, self.nbytes, purpose, "page-locked")
        self.address = int(pointer)
        _ledger.add(host_bytes=self.nbytes)
        owner = (ctypes.c_uint8 * self.nbytes).from_address(self.address)  # the base of all arrays that use the memory
        weakref.finalize(owner, _free_host, self.address, self.nbytes).atexit = False
        self._bytes: NDArray[np.uint8] | None = np.frombuffer(memoryview(owner), np.uint8)
        mapped = runtime.cudaHostGetDevicePointer(self.address, 0)
        self.device_address = int(check(mapped, "mapping page-locked memory"))
        self._opened = True

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8, offset: int = 0) -> NDArray[Any]:
        """Return an array that keeps the memory alive. Raises ValueError if the buffer is closed or too small."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if self._bytes is None or offset + nbytes > self.nbytes:
            raise ValueError(f"{nbytes} bytes from {offset} of a buffer of {0 if self._bytes is None else self.nbytes}")
        return self._bytes[offset : offset + nbytes].view(dtype).reshape(shape)

    def _release(self) -> None:
        self._bytes = None


_abandoned = threading.Event()


def abandon() -> None:
    """Never free memory again, because the GPU hangs and freeing would wait for it. The process is about to end."""
    _abandoned.set()


def _free_device(buffer: DeviceBuffer) -> None:
    if not _abandoned.is_set():
        buffer.close()


def _free_host(address: int, nbytes: int) -> None:
    if not _abandoned.is_set():
        _ledger.add(host_bytes=-nbytes, calls=0)
        released(runtime.cudaFreeHost(address), "page-locked memory")


def queue_to_device(target: int, source: int, nbytes: int, stream: Stream) -> None:
    """Queue a copy from page-locked memory. Keeps the GIL, so do not use it for other memory: the call would wait."""
    status = driver_calls().copy_to_device(target, source, nbytes, stream.address)
    queued(status, f"copying {nbytes} bytes to the device")


def copy_to_device(target: int, source: int, nbytes: int, stream: Stream) -> None:
    """Queue a copy. Returns immediately for page-locked memory, but waits until pageable memory has been read."""
    (status,) = runtime.cudaMemcpyAsync(target, source, nbytes, _TO_DEVICE, stream.handle)
    if status != _SUCCESS:
        raise failure(status, f"copying {nbytes} bytes to the device")


def copy_to_host(target: int, source: int, nbytes: int, stream: Stream) -> None:
    """Queue a copy into page-locked memory."""
    check(runtime.cudaMemcpyAsync(target, source, nbytes, _TO_HOST, stream.handle), f"copying {nbytes} bytes back")


def copy_rows(target: int, source: int, stream: Stream, *, rows: int, row_bytes: int, pitch_bytes: int) -> None:
    """Queue a copy of rows that are `pitch_bytes` apart at `source`. Copies in any direction between GPU and host."""
    shape = (row_bytes, source, pitch_bytes, row_bytes, rows)
    check(runtime.cudaMemcpy2DAsync(target, *shape, _BY_ADDRESS, stream.handle), f"copying {rows} rows")


# ------------------------------------------------------------------------------------------------ frame buffers

_WORD_BYTES: Final = 16  # kernels read whole words, so a frame's size is a multiple of this


class DeviceFrameMemory:
    """GPU memory of one frame, freed with the last reference to it. Implements `vision.types.DeviceMemory`."""

    def __init__(self, nbytes: int, purpose: str) -> None:
        buffer = DeviceBuffer(nbytes, purpose)
        self.address = buffer.address
        self.free = weakref.finalize(self, _free_device, buffer)
        self.free.atexit = False

    def read_rows(self, first_byte: int, pitch_bytes: int, rows: int, row_bytes: int) -> NDArray[np.uint8]:
        """Return a host copy (rows, row_bytes) of rows that are `pitch_bytes` apart."""
        pixels = np.empty((rows, row_bytes), np.uint8)
        source = (self.address + first_byte, max(pitch_bytes, row_bytes))
        copied = runtime.cudaMemcpy2D(pixels.ctypes.data, row_bytes, *source, row_bytes, rows, _TO_HOST)
        check(copied, f"reading {rows} rows of {row_bytes} bytes")
        return pixels


def device_frame_buffer(height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
    """Return a buffer in GPU memory only, not initialized. Raises the errors of `page_locked_frame_buffer`."""
    memory = DeviceFrameMemory(*_size(height_px, width_px, pixel_format))
    return FrameBuffer(pixel_format, height_px, width_px, None, memory.address, 0, memory)


def page_locked_frame_buffer(
    height_px: int, width_px: int, pixel_format: PixelFormat, *, integrated: bool
) -> FrameBuffer:
    """Return a buffer in page-locked host memory. Adds GPU memory to copy to, unless CPU and GPU share their memory.

    Raises ValueError if the format does not allow this size. Raises `OutOfMemory` and frees all parts if one fails.
    """
    nbytes, purpose = _size(height_px, width_px, pixel_format)
    memory = None if integrated else DeviceFrameMemory(nbytes, purpose)
    try:
        with HostBuffer(nbytes, purpose) as host:  # closed at the end, but the array keeps the memory
            array = host.array(frame_shape(height_px, width_px, pixel_format))
    except BaseException:
        if memory is not None:
            memory.free()  # otherwise, the error's traceback would keep it
        raise
    if memory is None:
        return FrameBuffer(pixel_format, height_px, width_px, array, host.device_address)
    return FrameBuffer(pixel_format, height_px, width_px, array, memory.address, host.address, memory)


def _size(height_px: int, width_px: int, pixel_format: PixelFormat) -> tuple[int, str]:
    """Return the padded size of a frame in bytes, and the purpose of its memory for error messages."""
    nbytes = math.prod(frame_shape(height_px, width_px, pixel_format))
    return -(-nbytes // _WORD_BYTES) * _WORD_BYTES, f"a camera's frame of {width_px}x{height_px}"
