"""Protocol of `cv2.VideoCapture`, and functions that read its properties.

Importing this module disables OpenCV's log, which prints errors that the supervisor handles.
"""

from __future__ import annotations

import math
import os
from typing import Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.capture.source import StreamInfo, plausible_fps

_MAX_POSITION_MS: Final = 1e12  # 30 years; OpenCV before 4.13 returns -3.7e20 for a missing time


if "OPENCV_LOG_LEVEL" not in os.environ:  # the operator has not configured it
    _set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # moved in OpenCV 5
    _set_level(0)


class Capture(Protocol):
    """The methods of ``cv2.VideoCapture`` that the project uses."""

    def isOpened(self) -> bool: ...  # noqa: N802 - OpenCV's names
    def grab(self) -> bool: ...
    def retrieve(self, image: NDArray[np.uint8]) -> tuple[bool, NDArray[np.uint8]]: ...
    def get(self, propId: int) -> float: ...  # noqa: N803
    def set(self, propId: int, value: float) -> bool: ...  # noqa: N803
    def release(self) -> None: ...


def describe(capture: Capture) -> StreamInfo:
    """Return the stream properties that an open capture reports."""
    return StreamInfo(
        width_px=int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
        height_px=int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        pixel_format="bgr",
        fps=plausible_fps(capture.get(cv2.CAP_PROP_FPS)),
        decoder="v4l2",
    )


def position_ns(capture: Capture) -> int | None:
    """Return the presentation time of the last grabbed frame in ns, or None if it is 0 or not plausible."""
    position_ms = capture.get(cv2.CAP_PROP_POS_MSEC)
    return int(position_ms * 1e6) if math.isfinite(position_ms) and 0 < abs(position_ms) < _MAX_POSITION_MS else None
