"""Real frames for benchmarks, so that NMS and the results thread have realistic work."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from typing import Final

import av
import numpy as np
from numpy.typing import NDArray

from vision.capture.frame_reader import read_frames
from vision.config import CameraConfig, shipped_configs
from vision.detect.detector import Detector
from vision.errors import SourceError
from vision.types import Frame, FrameMeta, PixelFormat, frame_shape

CLIP: Final = "vtest.mp4"
"""File name of the shipped clip."""
_AV_FORMATS: Final = {"bgrx": "bgra", "nv12": "nv12", "i420": "yuv420p"}

Image = NDArray[np.uint8]
"""Pixels of a frame in a format of `PixelFormat`."""


def shipped_clip() -> str:
    """Return the path of the shipped clip, which shows people in a street at 768x576."""
    return str(next(iter(shipped_configs().values())).parent / CLIP)


def load_frames(source: str, count: int) -> list[Image]:
    """Load up to `count` frames from the start of a recording or a synthetic camera, and return the frames as BGR.

    Raises:
        SourceError: the source cannot be read, or has no frames.
    """
    camera = CameraConfig.model_validate({"id": "bench", "source": source})
    with closing(read_frames(camera, offline=True)) as frames:
        images = [frame.pixels.copy() for frame in islice(frames, count)]
    if not images:
        raise SourceError(f"{source} has no frames")
    return images


def convert(bgr: Image, pixel_format: PixelFormat) -> Image:
    """Convert a BGR frame to `pixel_format`. NV12 and I420 use BT.601 with limited range.

    Raises:
        ValueError: the format is NV12 or I420, but the width or the height is odd.
    """
    frame_shape(bgr.shape[0], bgr.shape[1], pixel_format)
    if pixel_format == "bgr":
        return bgr
    frame = av.VideoFrame.from_ndarray(bgr, format="bgr24").reformat(format=_AV_FORMATS[pixel_format])
    return np.ascontiguousarray(frame.to_ndarray(), np.uint8)


def make_batches(
    detector: Detector, images: Sequence[Image], slots: int, batch: int, pixel_format: PixelFormat
) -> list[list[Frame]]:
    """Copy images to buffers of the detector. Return `slots` batches of `batch` frames each.

    The images must have the format `pixel_format`. If there are fewer images than frames, repeat the images in order.
    """
    frames: list[Frame] = []
    for index in range(slots * batch):
        image = images[index % len(images)]
        height_px, width_px = size_of(image, pixel_format)
        buffer = detector.frame_buffer(height_px, width_px, pixel_format)
        buffer.require_host()[...] = image
        frames.append(Frame(FrameMeta("bench", index, 0, 0, 0, width_px, height_px), buffer))
    return [frames[slot * batch : (slot + 1) * batch] for slot in range(slots)]


def size_of(image: Image, pixel_format: PixelFormat) -> tuple[int, int]:
    """Return the height and width of the frame in `image`, in pixels."""
    height, width = image.shape[:2]
    return (height * 2 // 3, width) if pixel_format in ("nv12", "i420") else (height, width)
