from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from numpy.typing import NDArray

from vision.capture.planes import allowed_formats, copy_planes, has_shape, split_planes
from vision.types import PixelFormat, frame_shape

PADDING = 255


def padded(pixel_format: PixelFormat, height: int, width: int, pad: int, gap: int) -> tuple[NDArray[np.uint8], ...]:
    """Return a decoded frame with padded rows and gaps before its planes, and the expected copy without padding."""
    rng = np.random.default_rng(7)
    sizes = {
        "bgr": [(height, width * 3)],
        "bgrx": [(height, width * 4)],
        "nv12": [(height, width), (height // 2, width)],
        "i420": [(height, width), (height // 2, width // 2), (height // 2, width // 2)],
    }[pixel_format]
    memory, expected, strides, offsets, at = [], [], [], [], 0
    for rows, row_bytes in sizes:
        plane = rng.integers(0, PADDING, (rows, row_bytes), dtype=np.uint8)
        wide = np.pad(plane, ((0, 0), (0, pad)), constant_values=PADDING).reshape(-1)
        memory += [np.full(gap, PADDING, np.uint8), wide]
        offsets.append(at + gap)
        strides.append(row_bytes + pad)
        at += gap + wide.size
        expected.append(plane.reshape(-1))
    flat = np.concatenate(memory)[: at - pad if pad else at]  # the padding of the last row can be missing
    return flat, np.concatenate(expected), np.array(strides), np.array(offsets)


def copied(
    pixel_format: PixelFormat, height: int, width: int, sources: Iterable[tuple[NDArray[np.uint8], int]]
) -> NDArray[np.uint8]:
    out = np.zeros(frame_shape(height, width, pixel_format), np.uint8)
    copy_planes(sources, split_planes(out, height, width, pixel_format))
    return out.reshape(-1)


@pytest.mark.parametrize("pixel_format", ["bgr", "bgrx", "nv12", "i420"])
@pytest.mark.parametrize(("pad", "gap"), [(0, 0), (6, 0), (0, 16), (10, 32)])
def test_padding_is_left_out(pixel_format: PixelFormat, pad: int, gap: int) -> None:
    flat, expected, strides, offsets = padded(pixel_format, 6, 10, pad, gap)
    sources = [(flat[offset:], stride) for offset, stride in zip(offsets, strides, strict=True)]
    np.testing.assert_array_equal(copied(pixel_format, 6, 10, sources), expected)


def test_bgr_frame_with_odd_sides_is_copied() -> None:
    flat, expected, strides, _ = padded("bgr", 5, 7, 3, 0)
    np.testing.assert_array_equal(copied("bgr", 5, 7, [(flat, int(strides[0]))]), expected)


def test_surplus_planes_are_ignored() -> None:
    plane = np.zeros(16, np.uint8)
    assert copied("nv12", 4, 4, [(plane, 4), (plane, 4), (plane[:0], 0), (plane[:0], 0)]).size == 24


@pytest.mark.parametrize(("size", "stride"), [(69, 20), (200, 9)])
def test_memory_that_is_shorter_than_the_plane_is_refused(size: int, stride: int) -> None:
    memory = np.zeros(200, np.uint8)
    copied("nv12", 4, 10, [(memory[:70], 20), (memory, 20)])  # the padding of the last row can be missing
    with pytest.raises(ValueError):
        copied("nv12", 4, 10, [(memory[:size], stride), (memory, 20)])


@pytest.mark.parametrize("pixel_format", ["bgr", "bgrx", "nv12", "i420"])
def test_planes_are_views_of_the_frame(pixel_format: PixelFormat) -> None:
    pixels = np.zeros(frame_shape(4, 6, pixel_format), np.uint8)
    for number, plane in enumerate(split_planes(pixels, 4, 6, pixel_format), 1):
        plane[...] = number
    assert pixels.all()


def test_odd_sides_are_allowed_for_bgr_and_bgrx_only() -> None:
    formats: tuple[PixelFormat, ...] = ("nv12", "bgr", "i420", "bgrx")
    assert allowed_formats(formats, 5, 6) == ["bgr", "bgrx"]
    assert allowed_formats(formats, 4, 6) == list(formats)
    pixels = np.zeros((6, 6), np.uint8)
    assert has_shape(pixels, 4, 6, "i420")
    assert not has_shape(pixels, 5, 6, "i420")
