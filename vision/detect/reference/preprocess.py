"""Pre-processing with OpenCV, on one core, without allocation.

This is most of what the CPU spends on a frame apart from the network. Measured on one core of a Xeon at 2.1 GHz, BGR
768x576 to 416x416, caches warm: 0.25 ms to scale, 0.04 ms to split, 0.15 ms to normalise; 0.8 ms in total right after a
run of the network, which leaves the caches cold. `cv2.dnn.blobFromImage` takes 1.5 ms after scaling, a `cv2.LUT` per
channel 0.3 ms, `cv2.addWeighted` 0.03 ms less or more, depending on the build.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.config import InputSpec
from vision.detect.reference.colour import Scratch, ToBgr
from vision.detect.reference.letterbox import Letterbox, gain_and_offset
from vision.types import PixelFormat, YuvEncoding

_MOST_PLANS = 256


class Preprocessor:
    """Writer of frames into one float32 tensor (B, 3, H, W) that the caller owns. Not thread-safe.

    Agrees with `letterbox.sample` and `letterbox.normalised` to within one of 255 levels.
    """

    def __init__(self, spec: InputSpec, tensor: NDArray[np.float32]) -> None:
        self._spec = spec
        self._tensor = tensor
        self._gain, self._offset = gain_and_offset(spec.scale, spec.mean, spec.std)
        self._channels = (0, 1, 2) if spec.color == "bgr" else (2, 1, 0)
        self._plans: dict[tuple[int, tuple[int, ...]], _Plan] = {}
        self._drawn: list[tuple[Letterbox, tuple[int, int]] | None] = [None] * len(tensor)
        self._scaled = Scratch()
        self._planes = Scratch()
        self._to_bgr = ToBgr()
        # A pool of OpenCV threads would spin on the cores that the other batches compute on. This is process-wide.
        cv2.setNumThreads(1)

    def write(
        self, index: int, pixels: NDArray[np.uint8], pixel_format: PixelFormat, encoding: YuvEncoding = "bt601"
    ) -> Letterbox:
        """Letterbox one frame into ``tensor[index]`` and return the geometry."""
        _allow_fast_scaling()
        bgr = self._to_bgr.convert(
            pixels, pixel_format, encoding
        )  # bgrx stays as it is: its fourth plane is never read
        plan = self._plan(index, bgr.shape)
        self._fill_around(index, plan)
        cv2.resize(bgr, plan.size, dst=plan.scaled, interpolation=cv2.INTER_LINEAR)
        cv2.split(plan.scaled, plan.planes)
        for target, source in enumerate(self._channels):
            region = plan.regions[target]
            np.copyto(region, plan.planes[source])
            np.multiply(region, self._gain[target], out=region)
            np.add(region, self._offset[target], out=region)
        return plan.letterbox

    def _plan(self, index: int, shape: tuple[int, ...]) -> _Plan:
        """Return everything that depends on the size alone; cameras seldom change theirs."""
        plan = self._plans.get((index, shape))
        if plan is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            plan = self._plans[index, shape] = self._make_plan(index, shape)
        return plan

    def _make_plan(self, index: int, shape: tuple[int, ...]) -> _Plan:
        height_px, width_px, channels = shape
        spec = self._spec
        letterbox = Letterbox.fit(width_px, height_px, spec.width, spec.height, spec.letterbox)
        width, height = letterbox.content(width_px, height_px)
        x, y = letterbox.pad_x_px, letterbox.pad_y_px
        return _Plan(
            letterbox,
            (width, height),
            self._scaled.array((height, width, channels)),
            list(self._planes.array((channels, height, width))),
            list(self._tensor[index, :, y : y + height, x : x + width]),
        )

    def _fill_around(self, index: int, plan: _Plan) -> None:
        """Repaint the canvas if the frame covers another part than the one before it."""
        if self._drawn[index] == (plan.letterbox, plan.size):
            return
        self._drawn[index] = (plan.letterbox, plan.size)
        grey = self._spec.fill * self._gain + self._offset
        self._tensor[index] = grey[:, None, None]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Views of the scratch memory and of the tensor for frames of one size."""

    letterbox: Letterbox
    size: tuple[int, int]  # width and height of the scaled frame
    scaled: NDArray[np.uint8]  # (H, W, channels)
    planes: list[NDArray[np.uint8]]  # channels x (H, W)
    regions: list[NDArray[np.float32]]  # 3 x (H, W), where the planes go


def _allow_fast_scaling() -> None:
    """Let OpenCV scale with Intel's library if its build has it: half the time, differs by at most one level.

    OpenCV keeps the switch per thread, so each thread sets it; builds without the library ignore it.
    """
    cv2.ipp.setUseIPP_NotExact(True)
