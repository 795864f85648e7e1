"""Structures that host and kernels exchange: those of ``cuda/*.cu`` as NumPy dtypes.

Values that depend on the size of a frame are computed once per buffer, so that a launch costs the host one copy of 112
bytes per frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vision.config import InputSpec
from vision.detect.reference.letterbox import Letterbox, gain_and_offset
from vision.detect.reference.yuv import yuv_coefficients
from vision.types import PixelFormat, YuvEncoding

FRAME: Final = np.dtype(
    [
        ("plane", np.uint64, 3),
        ("pitch", np.int32, 2),
        ("width", np.int32),
        ("height", np.int32),
        ("format", np.int32),
        ("content_width", np.int32),
        ("content_height", np.int32),
        ("pad_x", np.int32),
        ("pad_y", np.int32),
        ("luma_offset", np.int32),
        ("luma", np.int32),
        ("u_blue", np.int32),
        ("u_green", np.int32),
        ("v_green", np.int32),
        ("v_red", np.int32),
        ("ratio_x", np.float32),
        ("ratio_y", np.float32),
        ("step", np.int32),
        ("step_rest", np.int32),
        ("per_x", np.float32),
        ("per_y", np.float32),
        ("reserved", np.int32),
    ]
)
"""``struct Frame`` of ``device.cuh``. All zeros: no frame."""

NORMALISE: Final = np.dtype([("gain", np.float32, 3), ("offset", np.float32, 3), ("fill", np.float32, 3)])
"""``struct Normalise`` of ``letterbox.cu``."""

_FORMATS: Final[dict[PixelFormat, int]] = {"bgr": 0, "bgrx": 1, "nv12": 2, "i420": 3}


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """Memory layout of a frame: its planes one after the other, as in `vision.types.Frame`."""

    height_px: int
    width_px: int
    pixel_format: PixelFormat
    yuv: YuvEncoding = "bt601"
    pitch_bytes: int | None = None  # distance between rows; None: rows have no padding


def describe_frame(spec: InputSpec, frame: FrameLayout, address: int) -> bytes:
    """Return one `FRAME` for a frame at a device address."""
    width_px, height_px, pixel_format = frame.width_px, frame.height_px, frame.pixel_format
    letterbox = Letterbox.fit(width_px, height_px, spec.width, spec.height, spec.letterbox)
    content_width, content_height = letterbox.content(width_px, height_px)
    row = np.zeros((), FRAME)
    pitch = frame.pitch_bytes or width_px * {"bgr": 3, "bgrx": 4}.get(pixel_format, 1)
    row["pitch"] = (pitch, pitch // 2 if pixel_format == "i420" else pitch)
    chroma = address + pitch * height_px
    row["plane"] = (address, chroma, chroma + pitch // 2 * (height_px // 2))
    row["width"], row["height"], row["format"] = width_px, height_px, _FORMATS[pixel_format]
    row["content_width"], row["content_height"] = content_width, content_height
    row["pad_x"], row["pad_y"] = letterbox.pad_x_px, letterbox.pad_y_px
    (
        row["luma_offset"], row["luma"], row["u_blue"], row["u_green"], row["v_green"], row["v_red"],
    ) = yuv_coefficients(frame.yuv)  # fmt: skip
    row["ratio_x"], row["ratio_y"] = width_px / content_width, height_px / content_height
    row["step"], row["step_rest"] = divmod(2 * height_px, 2 * content_height)
    row["per_x"], row["per_y"] = 1 / (2 * content_width), 1 / (2 * content_height)
    return row.tobytes()


def describe_normalisation(spec: InputSpec) -> NDArray[np.void]:
    """Return one `NORMALISE`."""
    row = np.zeros((), NORMALISE)
    gain, offset = gain_and_offset(spec.scale, spec.mean, spec.std)
    row["gain"], row["offset"], row["fill"] = gain, offset, spec.fill * gain + offset
    return row
