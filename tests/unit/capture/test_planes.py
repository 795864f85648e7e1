from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vision.capture.planes import copy_planes, planes_of
from vision.types import PixelFormat, frame_shape

PADDING = 255


def padded(pixel_format: PixelFormat, height: int, width: int, pad: int, gap: int) -> tuple[NDArray[np.uint8], ...]:
    """Return a decoder's frame with padded rows and gaps before its planes, and the expected copy."""
    rng = np.random.default_rng(7)
    sizes = {
        "bgr": [(height, width * 3)],
        "bgrx": [(height, width * 4)],
        "nv12": [(height, width), (height // 2, width)],
        "i420": [(height, width), (height // 2, width // 2), (height // 2, width // 2)],
    }[pixel_format]
    memory, wanted, strides, offsets, at = [], [], [], [], 0
    for rows, row_bytes in sizes:
        plane = rng.integers(0, PADDING, (rows, row_bytes), dtype=np.uint8)
        wide = np.pad(plane, ((0, 0), (0, pad)), constant_values=PADDING).reshape(-1)
        memory += [np.full(gap, PADDING, np.uint8), wide]
        offsets.append(at + gap)
        strides.append(row_bytes + pad)
        at += gap + wide.size
        wanted.append(plane.reshape(-1))
    flat = np.concatenate(memory)[: at - pad if pad else at]  # the last row's padding need not be there
    return flat, np.concatenate(wanted), np.array(strides), np.array(offsets)


@pytest.mark.parametrize("pixel_format", ["bgr", "bgrx", "nv12", "i420"])
@pytest.mark.parametrize(("pad", "gap"), [(0, 0), (6, 0), (0, 16), (10, 32)])
def test_padding_is_left_out(pixel_format: PixelFormat, pad: int, gap: int) -> None:
    flat, wanted, strides, offsets = padded(pixel_format, 6, 10, pad, gap)
    out = np.zeros(frame_shape(6, 10, pixel_format), np.uint8)
    copy_planes(flat, planes_of(pixel_format, 6, 10, strides.tolist(), offsets.tolist()), out)
    np.testing.assert_array_equal(out.reshape(-1), wanted)


def test_odd_sides_are_possible_without_planes() -> None:
    flat, wanted, strides, offsets = padded("bgr", 5, 7, 3, 0)
    out = np.zeros(frame_shape(5, 7, "bgr"), np.uint8)
    copy_planes(flat, planes_of("bgr", 5, 7, strides.tolist(), offsets.tolist()), out)
    np.testing.assert_array_equal(out.reshape(-1), wanted)


def test_four_strides_of_a_two_plane_format() -> None:
    assert len(planes_of("nv12", 4, 4, [4, 4, 0, 0], [0, 16, 0, 0])) == 2


@pytest.mark.parametrize(
    ("size", "shape", "text"),
    [(119, (6, 10), "120 bytes in a buffer of 119"), (120, (6, 9), "expected a buffer of 60 bytes, got 54")],
)
def test_sizes_that_do_not_fit_are_refused(size: int, shape: tuple[int, int], text: str) -> None:
    planes = planes_of("nv12", 4, 10, [20, 20], [0, 90])  # the last byte of the second plane is 90 + 20 + 10
    with pytest.raises(ValueError, match=text):
        copy_planes(np.zeros(size, np.uint8), planes, np.zeros(shape, np.uint8))
