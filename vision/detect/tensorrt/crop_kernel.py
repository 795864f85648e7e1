"""Compile-time constants, launch size, and arguments of ``crops.cu``, which cuts out objects for a second model.

This module needs no GPU, so that tests can compare the kernel with its reference on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from vision.config.model_spec import CropSpec
from vision.detect.reference.classifier import Box, CropFit
from vision.detect.reference.yuv import FRACTION_BITS
from vision.detect.tensorrt.kernels import FRAME, Definitions, FrameLayout, Grid, frame_planes

CROP: Final = np.dtype(
    [
        ("frame", FRAME),
        ("left", np.int32),
        ("top", np.int32),
        ("width", np.int32),
        ("height", np.int32),
        ("covers", np.int32),
        ("reserved", np.int32),
    ]
)
"""Memory layout of ``struct Crop`` in ``crops.cu``."""


@dataclass(frozen=True, slots=True)
class CropProgram:
    """Compile-time constants and launch size of the kernel in ``crops.cu``, for the input of one classifier."""

    spec: CropSpec
    dtype: str  # of the tensor: float32 or float16

    file: ClassVar[str] = "crops.cu"
    block: ClassVar[Grid] = (256, 1, 1)

    @property
    def definitions(self) -> Definitions:
        return {
            "WIDTH": self.spec.width,
            "HEIGHT": self.spec.height,
            "HALF_INPUT": int(self.dtype == "float16"),
            "RED_FIRST": int(self.spec.color == "rgb"),
            "FRACTION_BITS": FRACTION_BITS,
        }

    @property
    def grid(self) -> Grid:
        return (-(-self.spec.width * self.spec.height // self.block[0]), 1, 1)

    def describe(self, frame: FrameLayout, address: int, box: Box) -> NDArray[np.void]:
        """Return the `CROP` structure, the kernel's argument for the part `box` of a frame at a device address."""
        left, top, right, bottom = box
        fit = CropFit.of(self.spec, right - left, bottom - top)
        row = np.zeros((), CROP)
        of_frame = frame_planes(frame, address)
        of_frame["content_width"], of_frame["content_height"] = fit.width, fit.height
        of_frame["pad_x"], of_frame["pad_y"] = fit.left, fit.top
        row["frame"] = of_frame
        row["left"], row["top"], row["width"], row["height"] = left, top, right - left, bottom - top
        row["covers"] = fit.shrinks
        return row
