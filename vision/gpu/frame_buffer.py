"""Frame buffers that the GPU reads: in GPU memory, or in page-locked host memory with a copy on the GPU."""

from __future__ import annotations

import math
import weakref
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.gpu.memory import DeviceBuffer, HostBuffer, free_unless_abandoned, read_rows
from vision.types import FrameBuffer, PixelFormat, frame_shape

_WORD_BYTES: Final = 16  # kernels read whole words, so a frame is padded to them


class DeviceFrameMemory:
    """GPU memory of one frame. Freed when the last reference to it goes. Satisfies `vision.types.DeviceMemory`."""

    def __init__(self, nbytes: int, purpose: str) -> None:
        """Allocate.

        Raises:
            OutOfMemory: with the size that was asked for and the free memory.
        """
        buffer = DeviceBuffer(nbytes, purpose)
        self.address = buffer.address
        self.free = weakref.finalize(self, free_unless_abandoned, buffer)
        self.free.atexit = False

    def read_rows(self, first_byte: int, pitch_bytes: int, rows: int, row_bytes: int) -> NDArray[np.uint8]:
        pixels = np.empty((rows, row_bytes), np.uint8)
        read_rows(pixels, self.address + first_byte, pitch_bytes=max(pitch_bytes, row_bytes))
        return pixels


def device_frame_buffer(height_px: int, width_px: int, pixel_format: PixelFormat) -> FrameBuffer:
    """Return a buffer in GPU memory only, with undefined content.

    Raises:
        ValueError: the format does not allow this size.
        OutOfMemory: with the size that was asked for and the free memory.
    """
    memory = DeviceFrameMemory(*_size(height_px, width_px, pixel_format))
    return FrameBuffer(pixel_format, height_px, width_px, None, memory.address, 0, memory)


def page_locked_frame_buffer(
    height_px: int, width_px: int, pixel_format: PixelFormat, *, integrated: bool
) -> FrameBuffer:
    """Return a buffer in page-locked host memory.

    Args:
        integrated: CPU and GPU share the memory, so the GPU reads the host's. Otherwise the buffer also has GPU memory
            to copy to.

    Raises:
        ValueError: the format does not allow this size.
        OutOfMemory: with the size that was asked for and the free memory. Nothing stays allocated.
    """
    nbytes, purpose = _size(height_px, width_px, pixel_format)
    memory = None if integrated else DeviceFrameMemory(nbytes, purpose)
    try:
        with HostBuffer(nbytes, purpose) as host:  # closed, but the array keeps the memory
            array = host.array(frame_shape(height_px, width_px, pixel_format))
    except BaseException:
        if memory is not None:
            memory.free()  # the error's traceback would hold it
        raise
    if memory is None:
        return FrameBuffer(pixel_format, height_px, width_px, array, host.device_address)
    return FrameBuffer(pixel_format, height_px, width_px, array, memory.address, host.address, memory)


def _size(height_px: int, width_px: int, pixel_format: PixelFormat) -> tuple[int, str]:
    """Return the padded size in bytes and the purpose that an error names."""
    nbytes = math.prod(frame_shape(height_px, width_px, pixel_format))
    return -(-nbytes // _WORD_BYTES) * _WORD_BYTES, f"a camera's frame of {width_px}x{height_px}"
