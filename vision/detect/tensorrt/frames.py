"""Preparation of the frames of a batch for the letterbox kernel: descriptions, and copies to GPU memory if necessary.

For a frame in a buffer of the detector (`vision.gpu.memory`), the host writes a description of 112 bytes and starts one
asynchronous copy of the pixels to GPU memory. The pixels are not copied if the GPU reads them in place
(`vision.detect.tensorrt.reading`), or if the frame was decoded on the GPU.
"""

from __future__ import annotations

import functools
import logging
from typing import Final

import numpy as np

from vision.config import InputSpec
from vision.detect.tensorrt.kernels import FRAME, FrameLayout, describe_frame
from vision.gpu.cuda import Stream
from vision.gpu.memory import DeviceBuffer, copy_to_device, queue_to_device
from vision.types import Frame, PixelFormat, YuvEncoding, frame_shape

_log = logging.getLogger(__name__)

PIXEL_FORMATS: Final[tuple[PixelFormat, ...]] = ("nv12", "i420", "bgrx", "bgr")
"""Pixel formats that the letterbox kernel reads, in order of ascending cost."""

DESCRIPTION_BYTES: Final = FRAME.itemsize
_WORD_BYTES: Final = 16  # buffer sizes are multiples of this, because kernels read whole words
_DESCRIPTIONS_KEPT: Final = 4096  # one per buffer and encoding; computing one takes 12 µs, a lookup 0.2 µs


class FrameUploader:
    """Uploader of the frames of a batch, for the letterbox kernel. Only one thread may use it."""

    def __init__(self, spec: InputSpec) -> None:
        def describe(address: int, height_px: int, width_px: int, pixel_format: PixelFormat, yuv: YuvEncoding) -> bytes:
            return describe_frame(spec, FrameLayout(height_px, width_px, pixel_format, yuv), address)

        self._describe = functools.lru_cache(_DESCRIPTIONS_KEPT)(describe)

    def place(self, frame: Frame, row: memoryview, staging: StagingBuffers, index: int, stream: Stream) -> None:
        """Write the frame's description to `row`, and queue a copy of the frame to the GPU if necessary.

        Args:
            row: host memory of `DESCRIPTION_BYTES` bytes.
            staging: memory for a frame whose own buffer the GPU cannot read.
            index: position of the frame in the batch.
            stream: stream to which the copy is queued.

        Raises:
            ValueError: the buffer does not fit the frame's metadata.
            DeviceError: the copy fails, or the GPU has too little memory for it.
        """
        buffer, meta = frame.buffer, frame.meta
        require_size(frame)
        address = buffer.device_address or staging.copy(frame, index, stream)
        row[:] = self._describe(address, buffer.height_px, buffer.width_px, buffer.pixel_format, meta.yuv)
        if buffer.upload_address:
            queue_to_device(address, buffer.upload_address, buffer.require_host().nbytes, stream)


def require_size(frame: Frame) -> None:
    """Check the size of a frame's buffer and, if the GPU cannot read the buffer, the layout of its pixels.

    Raises:
        ValueError: the size differs from the metadata, or the pixels are not contiguous bytes of the buffer's format.
    """
    buffer, meta = frame.buffer, frame.meta
    if (buffer.height_px, buffer.width_px) != (meta.height_px, meta.width_px):
        raise ValueError(
            f"camera {meta.camera_id}: a frame of {meta.width_px}x{meta.height_px} is in a buffer for "
            f"{buffer.width_px}x{buffer.height_px}"
        )
    pixels = buffer.host
    if buffer.device_address or pixels is None:
        return
    expected = frame_shape(meta.height_px, meta.width_px, buffer.pixel_format)
    if pixels.shape != expected or pixels.dtype != np.uint8 or not pixels.flags.c_contiguous:
        raise ValueError(
            f"camera {meta.camera_id}: expected contiguous uint8 {expected} for a {buffer.pixel_format} frame of "
            f"{meta.width_px}x{meta.height_px}, got {pixels.dtype} {pixels.shape}"
        )


class StagingBuffers:
    """GPU memory for frames whose own buffers the GPU cannot read, by position in the batch.

    Such frames are copied more slowly, because their memory is not page-locked. Such frames come from image files and
    tests.
    """

    def __init__(self) -> None:
        self._buffers: dict[int, DeviceBuffer] = {}

    def copy(self, frame: Frame, index: int, stream: Stream) -> int:
        """Queue a copy of a frame to the memory of position `index`. Return the device address of this memory."""
        pixels = frame.pixels
        buffer = self._buffers.get(index)
        if buffer is None or buffer.nbytes < pixels.nbytes:
            if buffer is not None:
                buffer.close()
            nbytes = -(-pixels.nbytes // _WORD_BYTES) * _WORD_BYTES
            _log.debug("a frame of camera %s is not in a buffer of the detector", frame.meta.camera_id)
            buffer = self._buffers[index] = DeviceBuffer(nbytes, "copies of frames")
        copy_to_device(buffer.address, pixels.ctypes.data, pixels.nbytes, stream)
        return buffer.address

    def close(self) -> None:
        """Free the memory. Idempotent."""
        for buffer in self._buffers.values():
            buffer.close()
