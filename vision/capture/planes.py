"""Functions for sizes, planes, color encodings, and orientations of frames. Buffers store planes without padding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.errors import SourceError
from vision.types import PixelFormat, YuvEncoding, frame_shape


def allowed_formats(pixel_formats: tuple[PixelFormat, ...], height_px: int, width_px: int) -> list[PixelFormat]:
    """Return the formats in `pixel_formats` that allow this size. Only bgr and bgrx allow odd sides.

    Raises:
        SourceError: none of the formats allows this size.
    """
    even = height_px % 2 == 0 and width_px % 2 == 0
    allowed = [pixel_format for pixel_format in pixel_formats if even or pixel_format in ("bgr", "bgrx")]
    if not allowed:
        raise SourceError(
            f"expected frames with even sides for {', '.join(pixel_formats)}, got {width_px}x{height_px}",
            hint="choose a different frame size in the camera's settings",
            code="pixel-format",
        )
    return allowed


def has_shape(pixels: NDArray[np.uint8], height_px: int, width_px: int, pixel_format: PixelFormat) -> bool:
    """Return True if `pixels` has the shape of a frame of this size and format, and the format allows the size."""
    try:
        return pixels.shape == frame_shape(height_px, width_px, pixel_format)
    except ValueError:
        return False


def split_planes(
    pixels: NDArray[np.uint8], height_px: int, width_px: int, pixel_format: PixelFormat
) -> tuple[NDArray[np.uint8], ...]:
    """Return views of the planes of a frame, each with the shape (rows, columns, channels)."""
    if pixel_format in ("bgr", "bgrx"):
        return (pixels,)
    flat, size, half = pixels.reshape(-1), height_px * width_px, (height_px // 2, width_px // 2)
    luma, chroma = flat[:size].reshape(height_px, width_px, 1), flat[size:]
    return (luma, chroma.reshape(*half, 2)) if pixel_format == "nv12" else (luma, *chroma.reshape(2, *half, 1))


def copy_planes(sources: Iterable[tuple[NDArray[np.uint8], int]], targets: Iterable[NDArray[np.uint8]]) -> None:
    """Copy the planes of a frame, without the padding of their rows.

    Args:
        sources: for each plane, its memory (flat, uint8) from the first row on, and the number of bytes from the start
            of one row to the start of the next. The padding of the last row may be missing. Planes without a target
            are ignored.
        targets: the planes to write, as `split_planes` returns them.

    Raises:
        ValueError: the memory of a plane, or the distance between its rows, is too small.
    """
    for (memory, stride), target in zip(sources, targets, strict=False):
        rows, row_bytes = target.shape[0], target.shape[1] * target.shape[2]
        if not row_bytes <= stride or stride * (rows - 1) + row_bytes > memory.size:
            raise ValueError(f"expected {rows} rows of {row_bytes} bytes, got {memory.size} bytes in rows of {stride}")
        # `ndarray` instead of `as_strided`, which takes several times as long.
        source = np.ndarray((rows, row_bytes), np.uint8, memory, strides=(stride, 1))
        target.reshape(rows, row_bytes)[...] = source


def yuv_encoding(*, bt709: bool, full: bool) -> YuvEncoding:
    """Return the name of a color encoding.

    If `bt709` is True, the matrix is BT.709; otherwise, it is BT.601. If `full` is True, the range is full; otherwise,
    it is limited.
    """
    if bt709:
        return "bt709-full" if full else "bt709"
    return "bt601-full" if full else "bt601"


_STRAIGHT: Final = 0.0175  # tangent of 1 degree, the deviation from a quarter turn that FFmpeg's command allows


@dataclass(frozen=True, slots=True)
class Orientation:
    """The steps that turn a decoded frame upright: transpose it if `transposed` is True, then flip it.

    `flip_x` mirrors left and right, and `flip_y` top and bottom.
    """

    transposed: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def from_matrix(cls, a: float, b: float, c: float, d: float) -> Orientation | None:
        """Return the orientation that maps (x, y) to (a x + c y, b x + d y), or None if the rotation is oblique."""
        straight, crossed = max(abs(a), abs(d)), max(abs(b), abs(c))
        if crossed <= _STRAIGHT * straight:
            return cls(flip_x=a < 0, flip_y=d < 0)
        if straight <= _STRAIGHT * crossed:
            return cls(transposed=True, flip_x=c < 0, flip_y=b < 0)
        return None

    @property
    def is_upright(self) -> bool:
        return not (self.transposed or self.flip_x or self.flip_y)

    def shown_size(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Return the height and width, in pixels, at which a decoded frame of this size is shown."""
        return (width_px, height_px) if self.transposed else (height_px, width_px)

    def apply(self, plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return an upright view of a decoded plane (rows, columns, channels)."""
        plane = plane.swapaxes(0, 1) if self.transposed else plane
        return plane[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


UPRIGHT: Final = Orientation()
