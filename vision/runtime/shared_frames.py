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
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.detect.detector import Detector, SharesFrames
from vision.types import FrameBuffer, PixelFormat, frame_shape

_PAGE_BYTES: Final = mmap.PAGESIZE
_numbers = itertools.count(1)


class SharedFile:
    """A file in memory, for other processes. It implements `vision.types.SharedMemory`.

    The descriptor is closed when the object is garbage-collected.
    """

    def __init__(self, fd: int, nbytes: int) -> None:
        """Duplicate the descriptor `fd` of a file of `nbytes`."""
        self.number = next(_numbers)
        self.nbytes = nbytes
        self._fd = os.dup(fd)
        weakref.finalize(self, os.close, self._fd)

    def fileno(self) -> int:
        return self._fd


def buffer_bytes(height_px: int, width_px: int, pixel_format: PixelFormat) -> int:
    """Return the distance in bytes from one buffer to the next. Raise `ValueError` if the format forbids this size."""
    return -(-math.prod(frame_shape(height_px, width_px, pixel_format)) // _PAGE_BYTES) * _PAGE_BYTES


def allocate_shared(
    detector: Detector, count: int, height_px: int, width_px: int, pixel_format: PixelFormat
) -> tuple[int, list[FrameBuffer]]:
    """Allocate buffers in shared host memory, and page-lock them if the detector profits from it.

    Return a file descriptor for the worker, which the caller closes, and the buffers.

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
        return fd, [replace(buffer, shared=(file, number * step)) for number, buffer in enumerate(buffers)]
    except BaseException:
        os.close(fd)
        raise


def map_shared(fd: int, count: int, height_px: int, width_px: int, pixel_format: PixelFormat) -> list[FrameBuffer]:
    """Return the buffers in the file `fd` of `allocate_shared`. Raise `MemoryError` if it cannot be mapped."""
    memory = map_file(fd, count * buffer_bytes(height_px, width_px, pixel_format))
    return _wrap(memory, count, height_px, width_px, pixel_format)


def _wrap(
    memory: NDArray[np.uint8], count: int, height_px: int, width_px: int, pixel_format: PixelFormat
) -> list[FrameBuffer]:
    """Return `count` buffers in `memory`, which has one dimension."""
    shape = frame_shape(height_px, width_px, pixel_format)
    step, nbytes = buffer_bytes(height_px, width_px, pixel_format), math.prod(shape)
    starts = range(0, count * step, step)
    return [FrameBuffer.wrap(memory[start : start + nbytes].reshape(shape), pixel_format) for start in starts]


def map_file(fd: int, size: int) -> NDArray[np.uint8]:
    """Map a file. The mapping exists as long as the array or a part of it. Raise `MemoryError` if this fails."""
    try:
        mapped = mmap.mmap(fd, size)
    except OSError as error:
        raise MemoryError(f"{size / 2**20:.1f} MiB of shared memory: {error.strerror}") from error
    owner = (ctypes.c_uint8 * size).from_buffer(mapped)
    return np.frombuffer(memoryview(owner), np.uint8)
