"""Rotation of recorded frames.

A telephone that is held upright records rotated frames, and a matrix to rotate them back. FFmpeg passes the matrix on
with each frame, and leaves the rotation to the application.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vision.capture.ffmpeg.bindings import open_container
from vision.capture.ffmpeg.frames import FrameWriter
from vision.capture.planes import has_shape, split_planes
from vision.errors import SizeChanged, SourceError
from vision.types import PixelFormat, frame_shape

_MATRIX: Final = "DISPLAYMATRIX"
_ONE: Final = 1 << 16
_TURNS: Final = {(0, -_ONE, _ONE, 0): 1, (-_ONE, 0, 0, -_ONE): 2, (0, _ONE, -_ONE, 0): 3}
"""Quarter turns to the left by a, b, c, d of AV_FRAME_DATA_DISPLAYMATRIX, of 16.16 bits. Other matrices are ignored."""


def quarter_turns(frame: VideoFrame) -> int:
    """Return the quarter turns to the left from the decoded frame to the frame to show: 0 to 3."""
    matrix: Any = frame.side_data.get(_MATRIX)
    if matrix is None:
        return 0
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    return _TURNS.get((a, b, c, d), 0)


def require_upright(path: Path, stream: VideoStream) -> None:
    """Check that a recording needs no rotation, for a decoder that cannot rotate. Other errors are left to the decoder.

    Raises:
        SourceError: its first frame needs one.
    """
    with suppress(av.FFmpegError, StopIteration), open_container(str(path.absolute())) as container:
        frame = next(container.decode(container.streams[stream.index]))
        if isinstance(frame, VideoFrame) and (turns := quarter_turns(frame)):
            raise SourceError(f"its frames need a rotation by {90 * turns} degrees, which NVDEC does not support")


class RotatingWriter(FrameWriter):
    """Rotates frames by a number of quarter turns to the left."""

    def __init__(self, pixel_format: PixelFormat, turns: int) -> None:
        super().__init__(pixel_format)
        self._turns = turns
        self._unrotated = np.empty(0, np.uint8)

    def size(self, frame: VideoFrame) -> tuple[int, int]:
        return (frame.width, frame.height) if self._turns % 2 else (frame.height, frame.width)

    def write(self, frame: VideoFrame, out: NDArray[np.uint8]) -> None:
        height_px, width_px = self.size(frame)
        if not has_shape(out, height_px, width_px, self._pixel_format):
            raise SizeChanged(height_px, width_px)
        shape = frame_shape(frame.height, frame.width, self._pixel_format)
        if self._unrotated.shape != shape:
            self._unrotated = np.empty(shape, np.uint8)
        super().write(frame, self._unrotated)
        sources = split_planes(self._unrotated, frame.height, frame.width, self._pixel_format)
        for target, source in zip(split_planes(out, height_px, width_px, self._pixel_format), sources, strict=True):
            target[...] = np.rot90(source, self._turns)
