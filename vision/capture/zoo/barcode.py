"""Frame numbers that are painted into frames, and that remain readable after lossy compression.

The upper quarter of a frame contains two rows of eight blocks. A white block is a 1. The first row and the left half of
the second row contain the number (12 bits); the right half of the second row contains a checksum (4 bits).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_COLUMNS: Final = 8
_ROWS: Final = 2
_ROWS_OF_FRAME: Final = 8  # the height of a block is an eighth of the frame
_NUMBER_BITS: Final = 12
_BLACK, _WHITE = 32, 224
_MIDDLE: Final = 128
_CERTAIN: Final = 48  # a block that is nearer than this to the middle is damaged

MOST_NUMBERS: Final = 1 << _NUMBER_BITS


def _checksum(number: int) -> int:
    return (number ^ number >> 4 ^ number >> 8 ^ 0b1010) & 0b1111


def paint_number(luma: NDArray[np.uint8], number: int) -> None:
    """Paint `number` (less than `MOST_NUMBERS`) into the plane `luma`, uint8 (H, W)."""
    code = number << 4 | _checksum(number)
    height_px, width_px = luma.shape
    for bit in range(_ROWS * _COLUMNS):
        row, column = divmod(bit, _COLUMNS)
        top, bottom = (height_px * edge // _ROWS_OF_FRAME for edge in (row, row + 1))
        left, right = (width_px * edge // _COLUMNS for edge in (column, column + 1))
        luma[top:bottom, left:right] = _WHITE if code >> (15 - bit) & 1 else _BLACK


def read_number(luma: NDArray[np.uint8]) -> int | None:
    """Return the number in the plane `luma`, uint8 (H, W), or None if the frame is damaged or contains no number."""
    height_px, width_px = luma.shape
    code = 0
    for bit in range(_ROWS * _COLUMNS):
        row, column = divmod(bit, _COLUMNS)
        y_px = height_px * (2 * row + 1) // (2 * _ROWS_OF_FRAME)
        x_px = width_px * (2 * column + 1) // (2 * _COLUMNS)
        level = float(luma[y_px - 3 : y_px + 3, x_px - 3 : x_px + 3].mean())
        if abs(level - _MIDDLE) < _CERTAIN:
            return None
        code = code << 1 | int(level > _MIDDLE)
    number = code >> 4
    return number if _checksum(number) == code & 0b1111 else None
