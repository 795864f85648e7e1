"""From the frames of ``cv2.VideoCapture`` to buffers of the program."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.capture.opencv.bindings import Capture
from vision.errors import SizeChanged, SourceError


@dataclass(slots=True)
class FrameRetriever:
    """Writes decoded frames into buffers. Keeps a frame of another size until the caller has a buffer for it."""

    capture: Capture
    _kept: NDArray[np.uint8] | None = None

    def discard(self) -> None:
        """Discard the kept frame: another frame was grabbed."""
        self._kept = None

    def retrieve(self, out: NDArray[np.uint8]) -> None:
        """Write the grabbed frame into `out`, as `vision.capture.source.Source.retrieve` does, in bgr."""
        if self._kept is None:
            pixels = self._decode(out)
            if pixels is out:
                return
            self._kept = pixels  # OpenCV allocates another array if the given one has the wrong size
        if self._kept.ndim != 3 or self._kept.shape[2] != 3:
            raise SourceError(f"expected a frame of 3 channels, got an array of shape {self._kept.shape}")
        if self._kept.shape != out.shape:
            raise SizeChanged(*self._kept.shape[:2])
        np.copyto(out, self._kept)

    def _decode(self, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
        try:
            success, pixels = self.capture.retrieve(out)
        except cv2.error as error:
            raise SourceError(f"a frame could not be decoded: {error}", code="decoding") from error
        if not success:
            raise SourceError("a frame could not be decoded", code="decoding")
        return pixels
