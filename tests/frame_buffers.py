"""Frame buffers for tests: buffers around existing arrays, and buffers with the pixels in simulated GPU memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vision.types import Frame, FrameBuffer, PixelFormat


def wrap(pixels: NDArray[np.uint8]) -> FrameBuffer:
    """Return a buffer around an array. The array's shape determines the pixel format: nv12 (2 axes), bgr, or bgrx."""
    pixel_format: PixelFormat = "nv12" if pixels.ndim == 2 else "bgr" if pixels.shape[2] == 3 else "bgrx"
    return FrameBuffer.wrap(pixels, pixel_format)


@dataclass
class PretendedDeviceMemory:
    """Implementation of `vision.types.DeviceMemory` that counts the bytes copied to the host."""

    pixels: NDArray[np.uint8]
    copied_bytes: int = 0

    def read_rows(self, first_byte: int, pitch_bytes: int, rows: int, row_bytes: int) -> NDArray[np.uint8]:
        flat = self.pixels.reshape(-1)
        starts = [first_byte + row * pitch_bytes for row in range(rows)]
        self.copied_bytes += rows * row_bytes
        return np.stack([flat[start : start + row_bytes] for start in starts])


def on_device(buffer: FrameBuffer) -> FrameBuffer:
    """Return a copy of a buffer whose pixels are only in simulated GPU memory."""
    memory = PretendedDeviceMemory(buffer.require_host())
    return FrameBuffer(buffer.pixel_format, buffer.height_px, buffer.width_px, None, 0x1000, 0, memory)


def frame_on_device(frame: Frame) -> Frame:
    """Return a copy of a frame whose pixels are only in simulated GPU memory."""
    return Frame(frame.meta, on_device(frame.buffer))
