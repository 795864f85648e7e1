"""GPU memory and page-locked host memory: allocation, counting, copies, and buffers for frames.

As in `vision.gpu.cuda`, every `Resource` has one owner, which closes it. If an allocation fails, the error states the
purpose of the memory.
"""

from __future__ import annotations

import ctypes
import logging
import math
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from cuda.bindings import runtime
from numpy.typing import NDArray

from vision.errors import DeviceError, OutOfMemory
from vision.gpu.cuda import (
    BorrowedStream,
    Resource,
    Stream,
    check,
    driver_calls,
    failure,
    memory_info,
    open_device,
    queued,
    released,
    use_device,
)
from vision.types import FrameBuffer, PixelFormat, frame_shape

_log = logging.getLogger(__name__)

_TO_DEVICE = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
_TO_HOST = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
_BY_ADDRESS = runtime.cudaMemcpyKind.cudaMemcpyDefault
_SUCCESS = runtime.cudaError_t.cudaSuccess


@dataclass(frozen=True, slots=True)
class Allocated:
    """Amount of memory that this module has allocated and not yet freed, and the number of allocations."""

    device_bytes: int  # in GPU memory
    host_bytes: int  # page-locked
    calls: int  # number of allocations, including freed ones


class _Ledger:
    """Thread-safe counter of allocated memory."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer can run while the lock is held
        self.now = Allocated(0, 0, 0)

    def add(self, *, device_bytes: int = 0, host_bytes: int = 0, calls: int = 1) -> None:
        with self._lock:
            now = self.now
            self.now = Allocated(now.device_bytes + device_bytes, now.host_bytes + host_bytes, now.calls + calls)


_ledger = _Ledger()


def allocated() -> Allocated:
    """Return the amount of memory that this module has allocated and not yet freed in this process."""
    return _ledger.now


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"


def _refuse(status: Any, nbytes: int, purpose: str, kind: str) -> DeviceError:
    """Return the error for an allocation of `nbytes` bytes for `purpose`, which failed with the CUDA status `status`.

    `kind` is the kind of memory: "device" or "page-locked".
    """
    if status != runtime.cudaError_t.cudaErrorMemoryAllocation:
        return failure(status, f"allocating {_mib(nbytes)} of {kind} memory for {purpose}")
    runtime.cudaGetLastError()  # clears the error, which the next call would otherwise report again
    free_bytes, total_bytes = memory_info()
    return OutOfMemory(
        f"{purpose}: {_mib(nbytes)} of {kind} memory were requested; {_mib(free_bytes)} of "
        f"{_mib(total_bytes)} of device memory are free, and vision holds {_mib(allocated().device_bytes)}",
        hint="lower detect.max_batch or detect.batches_in_flight, use a smaller model, or end other GPU programs",
        code="out-of-memory",
    )


class DeviceBuffer(Resource):
    """Uninitialized GPU memory, aligned to 256 bytes. `purpose` appears in the error of a failed allocation.

    The constructor raises `OutOfMemory` if too little memory is free.
    """

    def __init__(self, nbytes: int, purpose: str) -> None:
        self.nbytes = max(nbytes, 1)
        status, pointer = runtime.cudaMalloc(self.nbytes)
        if status != _SUCCESS:
            raise _refuse(status, self.nbytes, purpose, "device")
        self.address = int(pointer)
        self._opened = True
        _ledger.add(device_bytes=self.nbytes)

    def fill(self, byte: int, stream: Stream) -> None:
        """Queue an operation on `stream` that sets every byte of the memory to `byte`."""
        fill(self.address, byte, self.nbytes, stream)

    def write(self, array: NDArray[Any]) -> None:
        """Copy a contiguous array to the start of the memory, and wait until the data has arrived.

        Raise `ValueError` if the array does not fit.
        """
        if array.nbytes > self.nbytes:
            raise ValueError(f"{array.nbytes} bytes do not fit into {self.nbytes}")
        check(runtime.cudaMemcpy(self.address, array.ctypes.data, array.nbytes, _TO_DEVICE), "writing device memory")
        # A copy from memory that is not page-locked can return before the data has arrived in GPU memory.
        check(runtime.cudaStreamSynchronize(0), "writing device memory")

    def read(self, shape: tuple[int, ...], dtype: npt.DTypeLike, offset: int = 0) -> NDArray[Any]:
        """Return a host copy of the memory from byte `offset` on, as an array.

        All work that writes to the memory must have ended before the call. Raise `ValueError` if the array would extend
        beyond the memory.
        """
        array: NDArray[Any] = np.empty(shape, dtype)
        if offset + array.nbytes > self.nbytes:
            raise ValueError(f"expected a part of {self.nbytes} bytes, got {array.nbytes} bytes from byte {offset} on")
        copied = runtime.cudaMemcpy(array.ctypes.data, self.address + offset, array.nbytes, _TO_HOST)
        check(copied, "reading device memory")
        return array

    def _release(self) -> None:
        _ledger.add(device_bytes=-self.nbytes, calls=0)
        released(runtime.cudaFree(self.address), "device memory")


class CudaMemory:
    """Source of GPU memory for `vision.engine.memory.MemoryPool`. The counters of `allocated` include this memory."""

    def __init__(self) -> None:
        self._buffers: dict[int, DeviceBuffer] = {}

    def allocate(self, size: int) -> int:
        """Allocate `size` bytes. Return the address, aligned to 256 bytes, or 0 if the allocation fails."""
        try:
            buffer = DeviceBuffer(size, "TensorRT")
        except DeviceError as error:
            _log.debug("%s", error)
            return 0
        self._buffers[buffer.address] = buffer
        return buffer.address

    def free(self, address: int) -> None:
        """Free memory that `allocate` returned. The memory must no longer be in use."""
        self._buffers.pop(address).close()

    def synchronize(self, stream: int | None) -> None:
        """Wait for all work on the stream with the handle `stream`.

        If `stream` is None, wait for all work on the GPU.
        """
        done = runtime.cudaDeviceSynchronize() if stream is None else runtime.cudaStreamSynchronize(stream)
        check(done, "waiting for TensorRT")

    def free_and_total_bytes(self) -> tuple[int, int]:
        """Return the sizes of the free and of the total memory of the GPU, in bytes."""
        return memory_info()


class HostBuffer(Resource):
    """Page-locked host memory. The GPU copies from it at full speed, or reads and writes it in place.

    After `close`, `array` raises an error. The memory is freed with the last array that uses it, so that the thread of
    a camera can still write to its frame while the detector closes. The constructor raises `OutOfMemory` if too little
    memory is free.
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
        """Return an array that uses the memory from byte `offset` on, without a copy.

        Raise `ValueError` if the buffer is closed or too small.
        """
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if self._bytes is None or offset + nbytes > self.nbytes:
            held = 0 if self._bytes is None else self.nbytes
            raise ValueError(f"expected a part of {held} bytes, got {nbytes} bytes from byte {offset} on")
        return self._bytes[offset : offset + nbytes].view(dtype).reshape(shape)

    def _release(self) -> None:
        self._bytes = None


class _PageLock:
    """Page-locked memory that was allocated elsewhere. The memory is unlocked with the last array that uses it."""

    def __init__(self, memory: NDArray[np.uint8], purpose: str) -> None:
        self.address, nbytes = memory.ctypes.data, memory.nbytes
        flags = runtime.cudaHostRegisterMapped | runtime.cudaHostRegisterPortable
        (status,) = runtime.cudaHostRegister(self.address, nbytes, flags)
        if status != _SUCCESS:
            raise _refuse(status, nbytes, purpose, "page-locked")
        _ledger.add(host_bytes=nbytes)
        owner = (ctypes.c_uint8 * nbytes).from_address(self.address)
        owner.memory = memory  # type: ignore[attr-defined] # keeps it as long as the arrays
        weakref.finalize(owner, _unlock_host, self.address, nbytes).atexit = False
        self.array = np.frombuffer(memoryview(owner), np.uint8)
        self.device_address = int(
            check(runtime.cudaHostGetDevicePointer(self.address, 0), "mapping page-locked memory")
        )


def _unlock_host(address: int, nbytes: int) -> None:
    if not _abandoned.is_set():
        _ledger.add(host_bytes=-nbytes, calls=0)
        released(runtime.cudaHostUnregister(address), "page-locked memory")


_abandoned = threading.Event()


def abandon() -> None:
    """Stop freeing frame buffers and page-locked memory. Call this if the GPU hangs, because freeing would hang too."""
    _abandoned.set()


def is_abandoned() -> bool:
    """Return True if `abandon` was called."""
    return _abandoned.is_set()


def _free_device(buffer: DeviceBuffer) -> None:
    if not _abandoned.is_set():
        buffer.close()


def _free_host(address: int, nbytes: int) -> None:
    if not _abandoned.is_set():
        _ledger.add(host_bytes=-nbytes, calls=0)
        released(runtime.cudaFreeHost(address), "page-locked memory")


def queue_to_device(target: int, source: int, nbytes: int, stream: Stream) -> None:
    """Queue a copy of `nbytes` bytes from page-locked host memory (address `source`) to the GPU (address `target`).

    If the memory is not page-locked, use `copy_to_device` instead: `queue_to_device` would hold the GIL while it waits.
    """
    status = driver_calls().copy_to_device(target, source, nbytes, stream.address)
    queued(status, f"copying {nbytes} bytes to the device")


def copy_to_device(target: int, source: int, nbytes: int, stream: Stream) -> None:
    """Queue a copy of `nbytes` bytes from host memory (address `source`) to the GPU (address `target`).

    If the memory is not page-locked, wait until the copy has read the memory.
    """
    (status,) = runtime.cudaMemcpyAsync(target, source, nbytes, _TO_DEVICE, stream.handle)
    if status != _SUCCESS:
        raise failure(status, f"copying {nbytes} bytes to the device")


def copy_to_host(target: int, source: int, nbytes: int, stream: Stream) -> None:
    """Queue a copy of `nbytes` bytes from GPU memory (address `source`) to page-locked memory (address `target`)."""
    copied = runtime.cudaMemcpyAsync(target, source, nbytes, _TO_HOST, stream.handle)
    check(copied, f"copying {nbytes} bytes to the host")


def fill(address: int, byte: int, nbytes: int, stream: Stream | BorrowedStream) -> None:
    """Queue an operation that sets each of the `nbytes` bytes of GPU memory at `address` to `byte`."""
    check(runtime.cudaMemsetAsync(address, byte, nbytes, stream.handle), "filling device memory")


def copy_rows(
    target: int, source: int, stream: Stream | BorrowedStream, *, rows: int, row_bytes: int, pitch_bytes: int
) -> None:
    """Queue a copy of `rows` rows of `row_bytes` bytes each from the address `source` to the address `target`.

    At `source`, a row starts every `pitch_bytes` bytes. At `target`, the rows are adjacent. Both addresses can be in
    GPU memory or in host memory.
    """
    shape = (row_bytes, source, pitch_bytes, row_bytes, rows)
    check(runtime.cudaMemcpy2DAsync(target, *shape, _BY_ADDRESS, stream.handle), f"copying {rows} rows")


# ------------------------------------------------------------------------------------------------ frame buffers

_ALIGNMENT_BYTES: Final = 256  # of GPU memory
_HANDLE_BYTES: Final = 64  # size of cudaIpcMemHandle_t
_WORD_BYTES: Final = 16  # sizes of frames are padded to this, because kernels read whole words


class DeviceFrameMemory:
    """GPU memory of one frame, which is freed with its last reference. It implements `vision.types.DeviceMemory`."""

    def __init__(self, nbytes: int, purpose: str) -> None:
        buffer = DeviceBuffer(nbytes, purpose)
        self.address = buffer.address
        self.free = weakref.finalize(self, _free_device, buffer)
        self.free.atexit = False

    def read_rows(self, first_byte: int, pitch_bytes: int, rows: int, row_bytes: int) -> NDArray[np.uint8]:
        """Return a host copy of rows, uint8 (rows, row_bytes). Row n starts at byte first_byte + n * pitch_bytes."""
        return _read_rows(self.address, first_byte, pitch_bytes, rows, row_bytes)


def device_frame_buffer(height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
    """Return a new frame buffer in GPU memory.

    Raises:
        ValueError: the format does not allow this size.
        OutOfMemory: too little memory is free.
        DeviceError: the allocation failed for a different reason.
    """
    memory = DeviceFrameMemory(*_size(height_px, width_px, pixel_format))
    return FrameBuffer(pixel_format, height_px, width_px, None, memory.address, 0, memory)


def page_locked_frame_buffer(
    height_px: int, width_px: int, pixel_format: PixelFormat, *, in_place: bool
) -> FrameBuffer:
    """Return a new frame buffer in page-locked host memory and, unless `in_place` is True, also in GPU memory.

    If `in_place` is True, the GPU reads the frame from the host memory.

    Raises:
        ValueError: the format does not allow this size.
        OutOfMemory: too little memory is free. Nothing stays allocated.
        DeviceError: an allocation failed for a different reason. Nothing stays allocated.
    """
    nbytes, purpose = _size(height_px, width_px, pixel_format)
    memory = None if in_place else DeviceFrameMemory(nbytes, purpose)
    try:
        with HostBuffer(nbytes, purpose) as host:  # closed at the end of the block, but the array keeps the memory
            array = host.array(frame_shape(height_px, width_px, pixel_format))
    except BaseException:
        if memory is not None:
            memory.free()  # otherwise, the traceback of the error would keep the memory
        raise
    if memory is None:
        return FrameBuffer(pixel_format, height_px, width_px, array, host.device_address)
    return FrameBuffer(pixel_format, height_px, width_px, array, memory.address, host.address, memory)


def locked_frame_buffers(
    memory: NDArray[np.uint8], frames: Sequence[FrameBuffer], *, in_place: bool
) -> list[FrameBuffer]:
    """Page-lock `memory`. Return a frame buffer for each of `frames`, which are buffers within this memory.

    The returned buffers are like those of `page_locked_frame_buffer`, which lists the errors. The memory stays
    page-locked as long as a returned buffer exists.
    """
    own = [] if in_place else [device_frame_buffer(each.height_px, each.width_px, each.pixel_format) for each in frames]
    lock = _PageLock(memory, f"{len(frames)} shared frames")
    buffers = []
    for index, frame in enumerate(frames):
        pixels = frame.require_host()
        start = pixels.ctypes.data - lock.address
        host = lock.array[start : start + pixels.nbytes].reshape(pixels.shape)
        if in_place:
            buffers.append(replace(frame, host=host, device_address=lock.device_address + start))
        else:
            buffers.append(replace(own[index], host=host, upload_address=pixels.ctypes.data))
    return buffers


# ---------------------------------------------------------------------------------- frames of another process


class _ImportedMemory:
    """GPU memory of another process. It is closed with its last reference."""

    def __init__(self, handle: bytes) -> None:
        opened = runtime.cudaIpcMemHandle_t()
        ctypes.memmove(opened.getPtr(), handle, _HANDLE_BYTES)
        flags = runtime.cudaIpcMemLazyEnablePeerAccess
        self.address = int(check(runtime.cudaIpcOpenMemHandle(opened, flags), "opening memory of the main process"))
        weakref.finalize(self, _close_imported, self.address).atexit = False


def _close_imported(address: int) -> None:
    released(runtime.cudaIpcCloseMemHandle(address), "memory of the main process")


class _PartOfMemory:
    """A part of GPU memory that holds one frame. It implements `vision.types.DeviceMemory`."""

    def __init__(self, address: int, owner: object) -> None:
        self.address = address
        self._owner = owner

    def read_rows(self, first_byte: int, pitch_bytes: int, rows: int, row_bytes: int) -> NDArray[np.uint8]:
        """Return a host copy of rows, as `DeviceFrameMemory.read_rows` does."""
        return _read_rows(self.address, first_byte, pitch_bytes, rows, row_bytes)


def export_frame_buffers(
    count: int, height_px: int, width_px: int, pixel_format: PixelFormat
) -> tuple[bytes, list[FrameBuffer]] | None:
    """Return a handle to new GPU memory, and `count` frame buffers in it. Return None if this GPU cannot share memory.

    With the handle, another process can open the memory (`open_exported`).

    Raises:
        ValueError: the format does not allow this size.
        OutOfMemory: too little memory is free.
        DeviceError: the allocation failed for a different reason.
    """
    nbytes, purpose = _size(height_px, width_px, pixel_format)
    step = _export_step(nbytes)
    memory = DeviceFrameMemory(count * step, f"{count} times {purpose}")
    status, handle = runtime.cudaIpcGetMemHandle(memory.address)
    if status != _SUCCESS:
        _log.info("GPU memory cannot be shared with other processes: %s", failure(status, "sharing it").args[0])
        runtime.cudaGetLastError()
        return None
    exported = ctypes.string_at(handle.getPtr(), _HANDLE_BYTES)
    return exported, _parts(memory, step, count, (pixel_format, height_px, width_px))


def open_exported(
    handle: bytes, count: int, height_px: int, width_px: int, pixel_format: PixelFormat
) -> list[FrameBuffer]:
    """Return the frame buffers in GPU memory that `export_frame_buffers` allocated in another process.

    `handle` is the handle that `export_frame_buffers` returned. The other arguments must be the arguments of that call.

    Raises:
        DeviceError: the memory cannot be opened.
    """
    use_device(open_device())
    memory = _ImportedMemory(handle)
    step = _export_step(_size(height_px, width_px, pixel_format)[0])
    return _parts(memory, step, count, (pixel_format, height_px, width_px))


def _export_step(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _parts(
    memory: DeviceFrameMemory | _ImportedMemory, step: int, count: int, layout: tuple[PixelFormat, int, int]
) -> list[FrameBuffer]:
    addresses = range(memory.address, memory.address + count * step, step)
    return [FrameBuffer(*layout, None, address, 0, _PartOfMemory(address, memory)) for address in addresses]


def _read_rows(address: int, first_byte: int, pitch_bytes: int, rows: int, row_bytes: int) -> NDArray[np.uint8]:
    pixels = np.empty((rows, row_bytes), np.uint8)
    source = (address + first_byte, max(pitch_bytes, row_bytes))
    copied = runtime.cudaMemcpy2D(pixels.ctypes.data, row_bytes, *source, row_bytes, rows, _TO_HOST)
    check(copied, f"reading {rows} rows of {row_bytes} bytes")
    return pixels


def _size(height_px: int, width_px: int, pixel_format: PixelFormat) -> tuple[int, str]:
    """Return the padded size of a frame in bytes, and the purpose of its memory for error messages."""
    nbytes = math.prod(frame_shape(height_px, width_px, pixel_format))
    return -(-nbytes // _WORD_BYTES) * _WORD_BYTES, f"a frame of {width_px}x{height_px}"
