"""A frame in GPU memory that goes wherever frames of the host go.

NVDEC decodes into GPU memory, and the detector reads there: copying the frame to the host and back would cost the
bus twice. Everything between the two only carries frames around and asks for their shape, so a frame of the GPU is
given the coat of an array and nothing between has to know.
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vision.gpu.memory import DeviceBuffer, read_rows
from vision.types import PixelFormat, frame_shape

if TYPE_CHECKING:
    _Bytes = np.ndarray[Any, np.dtype[np.uint8]]
else:
    _Bytes = np.ndarray


class DeviceImage(_Bytes):
    """Shape and dtype of a frame (`vision.types.frame_shape`), its bytes in GPU memory at `address`.

    Read-only and not contiguous on the host, so that what expects pixels there refuses it; `to_host` brings them. The
    memory lives as long as this object; slices of it have no address.
    """

    address: int = 0

    @staticmethod
    def make(height_px: int, width_px: int, pixel_format: PixelFormat) -> DeviceImage:
        """A frame of undefined content.

        Raises:
            ValueError: the size is not possible in this format.
            OutOfMemory: what was asked for, and what is free.
        """
        shape = frame_shape(height_px, width_px, pixel_format)
        buffer = DeviceBuffer(-(-math.prod(shape) // 16) * 16, f"a frame of {width_px}x{height_px}")
        image = np.broadcast_to(np.zeros((), np.uint8), shape).view(DeviceImage)
        image.address = buffer.address
        weakref.finalize(image, buffer.close).atexit = False
        return image

    def to_host(self) -> NDArray[np.uint8]:
        """A copy in ordinary memory. Whoever wrote the frame has waited for that."""
        pixels: NDArray[np.uint8] = self._read(0, 1, 1, self.nbytes).reshape(self.shape)
        return pixels

    def rows_to_host(self, first: int, step: int) -> NDArray[np.uint8]:
        """A copy of the rows `first`, `first + step`, ... in ordinary memory: (rows, bytes of a row)."""
        row_bytes = self.nbytes // self.shape[0]
        return self._read(first, step, len(range(first, self.shape[0], step)), row_bytes)

    def _read(self, first: int, step: int, rows: int, row_bytes: int) -> NDArray[np.uint8]:
        if not self.address:
            raise ValueError("this is a part of a frame in GPU memory: only whole ones have an address")
        pixels = np.empty((rows, row_bytes), np.uint8)
        read_rows(pixels, self.address + first * row_bytes, pitch_bytes=step * row_bytes)
        return pixels
