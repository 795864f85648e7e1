"""Reader of a camera's frames without a pipeline, for commands such as `vision draw` and `vision bench`."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from vision.capture.open import open_source
from vision.capture.source import Grab, StreamInfo
from vision.config import CameraConfig
from vision.errors import EndOfStream, SizeChanged, SourceError
from vision.types import FrameBuffer


@dataclass(frozen=True, slots=True)
class CapturedFrame:
    """A frame that `read_frames` yields. `pixels` is (H, W, 3) uint8 BGR. The next frame overwrites these pixels."""

    index: int  # number of frames before this one
    grab: Grab
    pixels: NDArray[np.uint8]
    info: StreamInfo


def read_frames(camera: CameraConfig, *, offline: bool) -> Generator[CapturedFrame, None, None]:
    """Yield each frame of a camera until its stream ends. To close the source, close the generator.

    If `offline` is True, files and synthetic cameras are read as fast as possible. Live cameras are not affected by
    `offline`.

    Raises:
        ConfigError: the library that the camera needs is not installed.
        SourceError: the source cannot be opened or read, or no frame arrived for `camera.read_timeout_s`.
    """
    with closing(open_source(camera, offline=offline, pixel_formats=("bgr",))) as source:
        info = source.open()
        buffer = FrameBuffer.allocate(info.height_px, info.width_px, "bgr")
        for index in count():
            try:
                grab = source.grab(camera.read_timeout_s)
            except EndOfStream:
                return
            if grab is None:
                raise SourceError(f"no frame within {camera.read_timeout_s:g} s", code="silent")
            try:
                source.retrieve(buffer)
            except SizeChanged as changed:
                buffer = FrameBuffer.allocate(changed.height_px, changed.width_px, "bgr")
                source.retrieve(buffer)
            yield CapturedFrame(index, grab, buffer.require_host(), info)
