"""Report when a camera is out of focus, and when it is sharp again.

    pipeline: examples/blur_detection.py

The variance of the Laplacian is small in a blurred frame (Pech-Pacheco et al., ICPR 2000). Adapt `LIMIT` to your scene.
"""

import cv2
import numpy as np
from msgspec.structs import replace

from vision.pipelines import pipeline_with
from vision.types import Event, Frame, Result

LIMIT = 100.0  # variance of the Laplacian below which a frame counts as blurred
CHECK_EVERY_NS = 1_000_000_000


class BlurDetection:
    """A stage that reads pixels: `vision.stages.stage.PixelStage`."""

    def __init__(self) -> None:
        self._due_ns: dict[str, int] = {}
        self._blurred: dict[str, bool] = {}

    def with_frame(self, result: Result, frame: Frame) -> Result:
        """Check one frame per second. Return the result, with an event if the camera became blurred or sharp."""
        camera = result.meta.camera_id
        if result.meta.captured_ns < self._due_ns.get(camera, 0):
            return result
        self._due_ns[camera] = result.meta.captured_ns + CHECK_EVERY_NS
        sharpness = self._sharpness(frame)
        blurred = sharpness < LIMIT
        if blurred == self._blurred.get(camera, False):
            return result
        self._blurred[camera] = blurred
        data = {"phase": "begin" if blurred else "end", "sharpness": round(sharpness, 1)}
        event = Event("blurred", "focus", camera, None, result.meta.captured_ns, data)
        return replace(result, events=(*result.events, event))

    @staticmethod
    def _sharpness(frame: Frame) -> float:
        height, width = frame.meta.height_px, frame.meta.width_px
        if frame.pixel_format in {"nv12", "i420"}:  # the first rows are the luma plane
            return float(cv2.Laplacian(frame.pixels[:height, :width], cv2.CV_64F).var())
        bgr = np.ascontiguousarray(frame.pixels[..., :3])
        return float(cv2.Laplacian(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), cv2.CV_64F).var())


build = pipeline_with([BlurDetection()], after="detect")
