"""Tests of cropping frames of every format to BGR, and of encoding whole frames as JPEG."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.frame_buffers import frame_on_device
from tests.letterbox_reference import to_bgr
from vision.detect.reference.crops import JpegEncoder, PartReader
from vision.types import Frame, FrameMeta, PixelFormat, YuvEncoding, frame_shape

FORMATS: tuple[PixelFormat, ...] = ("bgr", "bgrx", "nv12", "i420")
ENCODINGS: tuple[YuvEncoding, ...] = ("bt601", "bt601-full", "bt709", "bt709-full")


def noise(pixel_format: PixelFormat, encoding: YuvEncoding = "bt601", width_px: int = 64, height_px: int = 48) -> Frame:
    pixels = np.random.default_rng(1).integers(0, 256, frame_shape(height_px, width_px, pixel_format), np.uint8)
    return Frame.wrap(FrameMeta("a", 0, 0, 0, 0, width_px, height_px, yuv=encoding), pixels, pixel_format)


def scene(pixel_format: PixelFormat, width_px: int = 640, height_px: int = 480) -> Frame:
    """Return a frame with smooth content, like a camera frame."""
    x, y = np.meshgrid(np.arange(width_px), np.arange(height_px))
    planes = [128 + 100 * np.sin(x / 90), 128 + 100 * np.cos(y / 70), 128 + 60 * np.sin((x + y) / 120)]
    bgr = np.stack(planes, -1).astype(np.uint8)
    if pixel_format == "bgrx":
        pixels = cv2.cvtColor(bgr, cv2.COLOR_BGR2BGRA)
    elif pixel_format == "i420":
        pixels = cv2.cvtColor(bgr, cv2.COLOR_BGR2YUV_I420)
    else:
        pixels = bgr
    meta = FrameMeta("a", 0, 0, 0, 0, width_px, height_px)
    return Frame.wrap(meta, np.ascontiguousarray(pixels, np.uint8), pixel_format)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("pixel_format", FORMATS)
def test_part_equals_the_section_of_the_whole_frame(pixel_format: PixelFormat, encoding: YuvEncoding) -> None:
    frame = noise(pixel_format, encoding)
    whole = to_bgr(frame.pixels, pixel_format, encoding).astype(int)
    reader = PartReader()
    parts = [(0, 0, 64, 48), (0, 0, 1, 1), (63, 47, 64, 48), (3, 5, 4, 20), (2, 6, 40, 41), (31, 0, 64, 33)]
    for left, top, right, bottom in parts:
        part = reader.read(frame, left, top, right, bottom)
        assert part.shape == (bottom - top, right - left, 3)
        assert np.abs(part - whole[top:bottom, left:right]).max() <= (0 if encoding == "bt601" else 1)


@pytest.mark.parametrize(
    "part", [(0, 0, 65, 48), (0, 0, 64, 49), (-1, 0, 5, 5), (5, 5, 5, 6), (6, 5, 5, 6), (0, 9, 9, 9)]
)
def test_parts_outside_the_frame_are_refused(part: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError):
        PartReader().read(noise("bgr"), *part)


def test_frame_in_gpu_memory_is_read() -> None:
    frame = noise("nv12")
    expected = PartReader().read(frame, 3, 5, 9, 9)
    np.testing.assert_array_equal(PartReader().read(frame_on_device(frame), 3, 5, 9, 9), expected)


def decoded(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), np.uint8)


@pytest.mark.parametrize("pixel_format", ["bgr", "bgrx", "i420"])
def test_jpeg_shows_the_frame(pixel_format: PixelFormat) -> None:
    encoder = JpegEncoder(quality=95)
    image = decoded(encoder.encode(scene(pixel_format)))
    assert image.shape == (480, 640, 3)
    assert np.abs(image.astype(int) - scene("bgr").pixels).mean() < 2


@pytest.mark.parametrize(("longest", "shape"), [(320, (240, 320, 3)), (640, (480, 640, 3)), (100, (75, 100, 3))])
def test_large_frames_are_scaled_down(longest: int, shape: tuple[int, ...]) -> None:
    assert decoded(JpegEncoder(max_side_px=longest).encode(scene("bgr"))).shape == shape


def test_lower_quality_gives_smaller_files() -> None:
    sizes = [len(JpegEncoder(quality=quality).encode(scene("bgr"))) for quality in (10, 50, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] / 3
