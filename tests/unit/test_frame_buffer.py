"""Tests that `FrameBuffer` and `Frame` return the same pixels from host memory and from GPU memory."""

from __future__ import annotations

import numpy as np
import pytest

from tests.frame_buffers import PretendedDeviceMemory, on_device
from vision.types import Frame, FrameBuffer, FrameMeta, PixelFormat

FORMATS: tuple[PixelFormat, ...] = ("bgr", "bgrx", "nv12", "i420")
META = FrameMeta("a", 0, 0, 0, 0, 8, 6)


def filled(pixel_format: PixelFormat) -> FrameBuffer:
    buffer = FrameBuffer.allocate(6, 8, pixel_format)
    pixels = buffer.require_host()
    pixels[...] = np.arange(pixels.size, dtype=np.uint8).reshape(pixels.shape)
    return buffer


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_wrapped_array_has_the_size_of_its_format(pixel_format: PixelFormat) -> None:
    pixels = filled(pixel_format).require_host()
    buffer = FrameBuffer.wrap(pixels, pixel_format)
    assert (buffer.height_px, buffer.width_px, buffer.shape) == (6, 8, pixels.shape)
    assert buffer.read() is pixels


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_pixels_in_gpu_memory_are_read(pixel_format: PixelFormat) -> None:
    host = filled(pixel_format)
    device = on_device(host)
    np.testing.assert_array_equal(device.read(), host.read())
    for first, step in ((0, 1), (1, 2), (2, 5)):
        np.testing.assert_array_equal(device.read_rows(first, step), host.read_rows(first, step))


def test_frame_is_copied_from_the_gpu_at_most_once_and_only_if_read() -> None:
    buffer = on_device(filled("bgr"))
    memory = buffer.device
    assert isinstance(memory, PretendedDeviceMemory)
    frame = Frame(META, buffer)
    assert memory.copied_bytes == 0
    assert frame.pixels.mean() == filled("bgr").read().mean()
    assert frame.pixels is frame.pixels
    assert memory.copied_bytes == 6 * 8 * 3


def test_buffer_in_gpu_memory_has_no_host_pixels_to_write() -> None:
    buffer = on_device(filled("bgr"))
    with pytest.raises(ValueError):
        buffer.require_host()


def test_buffers_are_equal_only_to_themselves() -> None:
    buffer = filled("bgr")
    assert buffer == buffer  # noqa: PLR0124
    assert buffer != FrameBuffer.wrap(buffer.read(), "bgr")
