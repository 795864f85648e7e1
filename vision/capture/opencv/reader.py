"""From an open ``cv2.VideoCapture`` to our buffers and types; the same for cameras and files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.capture.source import StreamInfo
from vision.errors import SizeChanged, SourceError
from vision.types import PixelFormat

_HIGHEST_FPS: Final = 1000.0  # above it the number is the clock of a stream that does not say its rate
_LONGEST_MS: Final = 1e12  # 30 years; OpenCV before 4.13 makes -3.7e20 of a time that is not there


class Capture(Protocol):
    """What is used of ``cv2.VideoCapture``."""

    def isOpened(self) -> bool: ...  # noqa: N802 - OpenCV's names
    def grab(self) -> bool: ...
    def retrieve(self, image: NDArray[np.uint8]) -> tuple[bool, NDArray[np.uint8]]: ...
    def get(self, propId: int) -> float: ...  # noqa: N803
    def set(self, propId: int, value: float) -> bool: ...  # noqa: N803
    def release(self) -> None: ...


@dataclass(slots=True)
class FrameReader:
    """Writes decoded frames into buffers of ours, and keeps one that does not fit until its buffer is there."""

    capture: Capture
    _kept: NDArray[np.uint8] | None = None

    def forget(self) -> None:
        """Another frame was grabbed."""
        self._kept = None

    def retrieve(self, out: NDArray[np.uint8]) -> None:
        """As `vision.capture.source.Source.retrieve`, for bgr."""
        if self._kept is None:
            pixels = self._decode(out)
            if pixels is out:
                return
            self._kept = pixels  # OpenCV makes another array where the given one has the wrong size
        if self._kept.ndim != 3 or self._kept.shape[2] != 3:
            raise SourceError(f"expected a frame of 3 channels, got an array of shape {self._kept.shape}")
        if self._kept.shape != out.shape:
            raise SizeChanged(*self._kept.shape[:2])
        np.copyto(out, self._kept)

    def _decode(self, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
        try:
            found, pixels = self.capture.retrieve(out)
        except cv2.error as error:
            raise SourceError(f"a frame could not be decoded: {error}") from error
        if not found:
            raise SourceError("a frame could not be decoded")
        return pixels


def describe(capture: Capture, decoder: str) -> StreamInfo:
    """What an open capture says of its frames."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return StreamInfo(
        width_px=int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
        height_px=int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        pixel_format="bgr",
        fps=fps if math.isfinite(fps) and 0 < fps <= _HIGHEST_FPS else None,
        decoder=decoder,
    )


def position_ns(capture: Capture) -> int | None:
    """Presentation time of the frame grabbed last; None where the stream has none."""
    position_ms = capture.get(cv2.CAP_PROP_POS_MSEC)
    return int(position_ms * 1e6) if math.isfinite(position_ms) and 0 < abs(position_ms) < _LONGEST_MS else None


def require_bgr(pixel_formats: tuple[PixelFormat, ...], name: str) -> None:
    """OpenCV delivers bgr and nothing else.

    Raises:
        SourceError: the detector does not take it.
    """
    if "bgr" not in pixel_formats:
        raise SourceError(
            f"{name}: OpenCV delivers bgr frames, the detector takes {', '.join(pixel_formats)}",
            hint="open the camera with `reader: gstreamer`",
        )
