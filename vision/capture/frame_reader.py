"""The frames of one camera in order, without a running pipeline: for `vision draw`, the first pass over a labelled
video, and its annotated copy.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vision.capture.open import open_source
from vision.capture.source import Grab, Source, StreamInfo
from vision.config import CameraConfig
from vision.errors import EndOfStream, SizeChanged, SourceError
from vision.types import FrameBuffer, frame_shape


@dataclass(frozen=True, slots=True)
class CapturedFrame:
    """One frame. The next frame overwrites `pixels`, (H, W, 3) uint8 BGR."""

    index: int  # frames before it
    grab: Grab
    pixels: NDArray[np.uint8]
    info: StreamInfo


def read_frames(camera: CameraConfig, *, offline: bool) -> Generator[CapturedFrame, None, None]:
    """Yield the frames of a camera until it ends. Closing the generator closes the source.

    Args:
        camera: the camera to read.
        offline: read every frame of a file, as fast as possible. Has no effect on live cameras.

    Raises:
        SourceError: the source cannot be opened or read, or no frame arrived for `camera.read_timeout_s`.
    """
    with closing(open_source(camera, offline=offline, pixel_formats=("bgr",))) as source:
        info = source.open()
        pixels = np.empty(frame_shape(info.height_px, info.width_px, "bgr"), np.uint8)
        index = 0
        while (grab := _next(source, camera.read_timeout_s)) is not None:
            pixels = _retrieve(source, pixels)
            yield CapturedFrame(index, grab, pixels, info)
            index += 1


def _next(source: Source, timeout_s: float) -> Grab | None:
    """Return the next frame, or None at the end."""
    try:
        grab = source.grab(timeout_s)
    except EndOfStream:
        return None
    if grab is None:
        raise SourceError(f"no frame within {timeout_s:g} s")
    return grab


def _retrieve(source: Source, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    try:
        source.retrieve(FrameBuffer.wrap(pixels, "bgr"))
    except SizeChanged as changed:
        pixels = np.empty(frame_shape(changed.height_px, changed.width_px, "bgr"), np.uint8)
        source.retrieve(FrameBuffer.wrap(pixels, "bgr"))
    return pixels
