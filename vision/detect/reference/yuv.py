"""Coefficients for the conversion from YUV to BGR, for the CPU, the GPU kernels, and the reference in the tests.

This module does not import OpenCV, because OpenCV may be missing on a GPU machine.
"""

from __future__ import annotations

import functools
from typing import Final

from vision.types import YuvEncoding

FRACTION_BITS: Final = 20

_KR_KB: Final = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}


@functools.cache
def yuv_coefficients(encoding: YuvEncoding) -> tuple[int, int, int, int, int, int]:
    """Return the black level, and the factors for luma, U in blue, U in green, V in green, and V in red.

    The factors are in units of ``2**-FRACTION_BITS``. ``blue = luma * max(Y - black, 0) + u_blue * (U - 128)``, and
    similarly for green and red. The sources are ITU-R BT.601-7 and BT.709-6. For ``bt601``, the factors are the rounded
    factors of OpenCV's `cvtColor`, so that all implementations give identical results.
    """
    if encoding == "bt601":
        return (16, 1_220_542, 2_116_026, -409_993, -852_492, 1_673_527)
    red, blue = _KR_KB[encoding.removesuffix("-full")]
    green = 1 - red - blue
    black, luma_span, chroma_span = (0, 255, 255) if encoding.endswith("-full") else (16, 219, 224)
    luma, chroma = 255 / luma_span, 255 / chroma_span
    u_blue, v_red = 2 * (1 - blue) * chroma, 2 * (1 - red) * chroma
    factors = (luma, u_blue, -u_blue * blue / green, -v_red * red / green, v_red)
    scaled = [round(factor * (1 << FRACTION_BITS)) for factor in factors]
    return (black, scaled[0], scaled[1], scaled[2], scaled[3], scaled[4])
