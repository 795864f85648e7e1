"""Copies a decoder's frame, whose rows and planes may be padded, to a buffer without padding (`vision.types`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vision.types import PixelFormat


@dataclass(frozen=True, slots=True)
class Plane:
    """The position of one plane's rows, in bytes."""

    offset: int
    stride: int
    rows: int
    row_bytes: int

    @property
    def end(self) -> int:
        """Return the end of the last row. Its padding may be missing."""
        return self.offset + self.stride * (self.rows - 1) + self.row_bytes


def planes_of(
    pixel_format: PixelFormat, height_px: int, width_px: int, strides: Sequence[int], offsets: Sequence[int]
) -> tuple[Plane, ...]:
    """Return the planes of a frame with these strides and offsets."""
    sizes = {
        "bgr": ((height_px, width_px * 3),),
        "bgrx": ((height_px, width_px * 4),),
        "nv12": ((height_px, width_px), (height_px // 2, width_px)),
        "i420": ((height_px, width_px), (height_px // 2, width_px // 2), (height_px // 2, width_px // 2)),
    }[pixel_format]
    return tuple(
        Plane(offset, stride, rows, row_bytes)
        for (rows, row_bytes), stride, offset in zip(sizes, strides, offsets, strict=False)
    )


def copy_planes(frame: NDArray[np.uint8], planes: Sequence[Plane], out: NDArray[np.uint8]) -> None:
    """Copy `planes` of `frame` (flat, uint8) one after the other into `out` (C-contiguous, of their total size).

    Raises:
        ValueError: `frame` is shorter than its planes, or `out` has another size.
    """
    flat = out.reshape(-1)
    total = sum(plane.rows * plane.row_bytes for plane in planes)
    if flat.size != total:
        raise ValueError(f"expected a buffer of {total} bytes, got {flat.size}")
    if max(plane.end for plane in planes) > frame.size:
        raise ValueError(f"a frame of {max(plane.end for plane in planes)} bytes in a buffer of {frame.size}")
    start = 0
    for plane in planes:
        end = start + plane.rows * plane.row_bytes
        rows = np.lib.stride_tricks.as_strided(
            frame[plane.offset :], (plane.rows, plane.row_bytes), (plane.stride, 1), writeable=False
        )
        np.copyto(flat[start:end].reshape(plane.rows, plane.row_bytes), rows)
        start = end
