"""Conversion of GStreamer's samples to buffers and types of the program."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision.capture.gstreamer import pipeline
from vision.capture.gstreamer.bindings import library, mapped
from vision.capture.planes import copy_planes, split_planes, yuv_encoding
from vision.capture.source import StreamInfo
from vision.types import PixelFormat, YuvEncoding

_FORMATS: dict[str, PixelFormat] = {name: pixel_format for pixel_format, name in pipeline.NAMES.items()}


def describe(sample: Any, decoder: str) -> StreamInfo:
    """Return the properties of a sample's frame."""
    structure = sample.get_caps().get_structure(0)
    width_px, height_px = structure.get_value("width"), structure.get_value("height")
    _, numerator, denominator = structure.get_fraction("framerate")
    return StreamInfo(
        width_px,
        height_px,
        _FORMATS[structure.get_string("format")],
        numerator / denominator if numerator and denominator else None,
        decoder,
        parse_colorimetry(structure.get_string("colorimetry"), height_px),
    )


def copy_sample(sample: Any, info: StreamInfo, out: NDArray[np.uint8]) -> None:
    """Copy a sample's pixels to `out`, uint8 of the frame's shape.

    Raises:
        ValueError: GStreamer cannot map its memory, or the memory is shorter than the frame.
    """
    buffer, video = sample.get_buffer(), library().GstVideo
    layout = video.buffer_get_video_meta(buffer)
    if layout is None:  # the layout is then the default of these caps
        layout = video.VideoInfo.new_from_caps(sample.get_caps())
    with mapped(buffer) as memory:
        sources = [(memory[offset:], stride) for offset, stride in zip(layout.offset, layout.stride, strict=True)]
        copy_planes(sources, split_planes(out, info.height_px, info.width_px, info.pixel_format))


def parse_colorimetry(colorimetry: str | None, height_px: int) -> YuvEncoding:
    """Return the encoding from GStreamer's notation, ``range:matrix:transfer:primaries`` or a name.

    Without one, the frame size decides, as in television.
    """
    text = colorimetry or ("bt709" if height_px >= 720 else "bt601")
    parts = text.split(":")
    full = parts[0] == "1"  # GstVideoColorRange: 1 is 0..255
    bt709 = parts[1] == "3" if len(parts) == 4 else text == "bt709"  # GstVideoColorMatrix: 3 is BT.709
    return yuv_encoding(bt709=bt709, full=full)
