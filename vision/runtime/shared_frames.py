"""Frame buffers that a capture worker writes and the main process reads.

The buffers of one camera are in one file that exists only in memory, so nothing remains if every process is killed.
Each buffer starts at a multiple of the page size, because the GPU reads whole words and pages.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import os
import weakref
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vision.detect.detector import Detector, SharesFrames
from vision.types import FrameBuffer, PixelFormat, frame_shape

_PAGE_BYTES: Final = mmap.PAGESIZE
_numbers = itertools.count(1)


class SharedFile:
    """A file in memory that other processes can map. It implements `vision.types.SharedMemory`.

    The descriptor is closed when the object is garbage-collected.
    """

    def __init__(self, fd: int, nbytes: int) -> None:
        """Duplicate the descriptor `fd` of a file with `nbytes` bytes. The caller keeps `fd`."""
        self.number = next(_numbers)
        self.nbytes = nbytes
        self._fd = os.dup(fd)
        weakref.finalize(self, os.close, self._fd)

    def fileno(self) -> int:
        return self._fd


def buffer_bytes(height_px: int, width_px: int, pixel_format: PixelFormat) -> int:
    """Return the distance in bytes from one buffer to the next. Raise `ValueError` if the format forbids this size."""
    return -(-math.prod(frame_shape(height_px, width_px, pixel_format)) // _PAGE_BYTES) * _PAGE_BYTES


Layout: TypeAlias = tuple[int, int, PixelFormat]
"""Height in px, width in px, and format of the frames of a camera."""


@dataclass(frozen=True, slots=True)
class FrameMemory:
    """The frame buffers of one camera, which the main process allocated for a worker."""

    layout: Layout
    buffers: list[FrameBuffer]
    handle: bytes  # handle with which the worker opens GPU memory; empty for shared host memory

    @property
    def fds(self) -> list[int]:
        """The descriptor of shared host memory, or an empty sequence for GPU memory.

        The descriptor stays open as long as the buffers exist.
        """
        shared = self.buffers[0].shared
        return [] if shared is None else [shared[0].fileno()]


def allocate_frames(detector: Detector, count: int, layout: Layout, *, on_gpu: bool) -> FrameMemory:
    """Allocate `count` frame buffers to which a worker can write.

    If `on_gpu` is True, and the detector and the driver can share GPU memory, allocate GPU memory. Otherwise, allocate
    shared host memory.

    Raises:
        ValueError: the format does not allow this size.
        OutOfMemory, MemoryError: too little memory is free.
        OSError: too many files are open.
    """
    if on_gpu and isinstance(detector, SharesFrames):
        exported = detector.exported_buffers(count, *layout)
        if exported is not None:
            return FrameMemory(layout, exported[1], exported[0])
    return FrameMemory(layout, _allocate_shared(detector, count, *layout), b"")


def _allocate_shared(
    detector: Detector, count: int, height_px: int, width_px: int, pixel_format: PixelFormat
) -> list[FrameBuffer]:
    """Allocate buffers in shared host memory, and page-lock the buffers if this makes the detector faster.

    Raises:
        ValueError: the format does not allow this size.
        OutOfMemory, MemoryError: too little memory is free.
        OSError: too many files are open.
    """
    size = count * buffer_bytes(height_px, width_px, pixel_format)
    fd = os.memfd_create("vision-frames", os.MFD_CLOEXEC)
    try:
        try:
            os.posix_fallocate(fd, 0, size)  # otherwise, a lack of memory would kill the process that writes
        except OSError as error:
            raise MemoryError(f"{size / 2**20:.1f} MiB of shared memory: {error.strerror}") from error
        memory = map_file(fd, size)
        buffers = _wrap(memory, count, height_px, width_px, pixel_format)
        if isinstance(detector, SharesFrames):
            buffers = detector.shared_buffers(memory, buffers)
        file, step = SharedFile(fd, size), buffer_bytes(height_px, width_px, pixel_format)
        return [replace(buffer, shared=(file, number * step)) for number, buffer in enumerate(buffers)]
    finally:
        os.close(fd)


def map_shared(fd: int, count: int, height_px: int, width_px: int, pixel_format: PixelFormat) -> list[FrameBuffer]:
    """Map the file `fd` from `allocate_frames`, and return its buffers. Raise `MemoryError` if this is impossible."""
    memory = map_file(fd, count * buffer_bytes(height_px, width_px, pixel_format))
    return _wrap(memory, count, height_px, width_px, pixel_format)


def _wrap(
    memory: NDArray[np.uint8], count: int, height_px: int, width_px: int, pixel_format: PixelFormat
) -> list[FrameBuffer]:
    """Return `count` buffers that are views of `memory` (N,), at distances of `buffer_bytes`."""
    shape = frame_shape(height_px, width_px, pixel_format)
    step, nbytes = buffer_bytes(height_px, width_px, pixel_format), math.prod(shape)
    starts = range(0, count * step, step)
    return [FrameBuffer.wrap(memory[start : start + nbytes].reshape(shape), pixel_format) for start in starts]


def map_file(fd: int, size: int) -> NDArray[np.uint8]:
    """Map the first `size` bytes of a file, and return them as a writable uint8 array (size,).

    The mapping exists as long as the array or a view of it.

    Raises:
        MemoryError: the file cannot be mapped.
    """
    try:
        mapped = mmap.mmap(fd, size)
    except OSError as error:
        raise MemoryError(f"{size / 2**20:.1f} MiB of shared memory: {error.strerror}") from error
    owner = (ctypes.c_uint8 * size).from_buffer(mapped)
    return np.frombuffer(memoryview(owner), np.uint8)
